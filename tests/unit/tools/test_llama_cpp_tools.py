"""llama.cpp's own programs, as far as they can be built without llama.cpp: a project of its name stands for it."""

import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.llama_cpp_tools import Tools

pytestmark = pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="needs cmake and c++")
PROJECT = """
cmake_minimum_required(VERSION 3.19)
project(llama.cpp CXX)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
add_subdirectory(ggml)
"""
GGML = "add_library(ggml-cpu STATIC ggml.cpp)\ntarget_compile_options(ggml-cpu PRIVATE -march=native)\n"
TILES = """
#include <immintrin.h>
#include <cstdint>
#if defined(__AMX_INT8__)
#error AMX is used
#endif
"""


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    tools = Tools(tmp_path)
    ggml = tools.programs.parents[1] / "source" / "vendor" / "llama.cpp" / "ggml"
    ggml.mkdir(parents=True)
    ggml.with_name("CMakeLists.txt").write_text(PROJECT)
    Path(ggml, "CMakeLists.txt").write_text(GGML)
    Path(ggml, "ggml.cpp").write_text(TILES)
    return tools


def test_what_make_venv_leaves_out_of_llama_cpp_is_built_here(
    tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_out = tmp_path / "left_out.cmake"
    left_out.write_text('message(FATAL_ERROR "the library of the programs was left out")\n')
    monkeypatch.setenv("CMAKE_ARGS", f"-DGGML_NATIVE=ON -DCMAKE_PROJECT_llama.cpp_INCLUDE={left_out}")

    tools.configure()

    cache = Path(tools.programs.parent, "CMakeCache.txt").read_text()
    assert "GGML_NATIVE" in cache
    assert "LLAMA_BUILD_TESTS" in cache


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is of x86-64")
def test_a_compiler_that_stores_no_tiles_builds_ggml_without_amx(tools: Tools) -> None:
    tools.configure()

    command = json.loads(Path(tools.programs.parent, "compile_commands.json").read_text())[0]["command"].split()
    assert ("-mno-amx-int8" in command) == _stores_no_tiles()
    if _stores_no_tiles():
        subprocess.run(["c++", *command[1 : command.index("-o")], "-fsyntax-only", command[-1]], check=True)


def _stores_no_tiles() -> bool:
    macros = subprocess.run(["c++", "-dM", "-E", "-xc++", "/dev/null"], check=True, capture_output=True, text=True)
    known = dict(line.split(maxsplit=2)[1:] for line in macros.stdout.splitlines() if len(line.split()) > 2)
    return "__clang__" not in known and int(known["__GNUC__"]) < 14
