"""llama.cpp's own programs, as far as they can be built without llama.cpp."""

import shutil
from pathlib import Path

import pytest

from tools.llama_cpp_tools import Tools

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")


def test_what_make_venv_leaves_out_of_llama_cpp_is_built_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = Tools(tmp_path)
    source = tools.programs.parents[1] / "source" / "vendor" / "llama.cpp"
    source.mkdir(parents=True)
    Path(source, "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.14)\nproject(llama.cpp NONE)\n")
    left_out = tmp_path / "left_out.cmake"
    left_out.write_text('message(FATAL_ERROR "the library of the programs was left out")\n')
    monkeypatch.setenv("CMAKE_ARGS", f"-DGGML_NATIVE=ON -DCMAKE_PROJECT_llama.cpp_INCLUDE={left_out}")

    tools.configure()

    cache = Path(tools.programs.parent, "CMakeCache.txt").read_text()
    assert "GGML_NATIVE" in cache
    assert "LLAMA_BUILD_TESTS" in cache
