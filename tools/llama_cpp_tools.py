"""Builds llama.cpp's own `llama-server` and `llama-batched-bench`, to measure the engine against.

    python tools/llama_cpp_tools.py

They come from the source release of the llama-cpp-python that is installed, so both run the same llama.cpp. The folder
that holds them is printed; what is there already is used again. Takes some 10 CPU-minutes, half a gigabyte and the
network, once. `CMAKE_ARGS` counts here as it does when llama-cpp-python itself is built.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = "llama-cpp-python"
TOOLS = ("llama-server", "llama-batched-bench")
CACHE = Path.home() / ".cache" / "pice"
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
)
READ_FIRST = "-DCMAKE_PROJECT_llama.cpp_INCLUDE="
"""The file llama.cpp's project() reads. That of `make venv` leaves out what these programs need."""
GGML_CPU = Path(__file__).with_name("ggml_cpu.cmake")


class NotBuilt(Exception):
    """The tools cannot be had; says why and what to do."""


class Tools:
    """The tools of one version, in a folder of `cache`: `source/` and `build/` are its parts.

    Raises:
        NotBuilt: llama-cpp-python is not installed.
    """

    def __init__(self, cache: Path = CACHE) -> None:
        try:
            self.version = version(PACKAGE)
        except PackageNotFoundError as error:
            raise NotBuilt(f'expected {PACKAGE} to be installed: pip install "pice[llama]"') from error
        self._folder = cache / f"llama-cpp-{self.version}"
        self._source, self._build = self._folder / "source", self._folder / "build"
        self.programs = self._build / "bin"

    def are_built(self) -> bool:
        return all(os.access(self.programs / tool, os.X_OK) for tool in TOOLS)

    def fetch(self) -> None:
        """Downloads and unpacks the source, unless it is there.

        Raises:
            NotBuilt: pip cannot get it.
        """
        if self._source.exists():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            folder = Path(name)
            wanted = f"{PACKAGE}=={self.version}"
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "--dest", name, wanted]
            _run(
                pip, f"pip cannot download the source of {wanted}; is there a network, and is pip in this environment?"
            )
            with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
                archive.extractall(folder, filter="data")
            next(folder.glob("*/vendor/llama.cpp")).parents[1].rename(self._source)

    def configure(self) -> None:
        """Sets the build up.

        Raises:
            NotBuilt: without CMake or a compiler.
        """
        if shutil.which("cmake") is None:
            raise NotBuilt("expected cmake, found none: install CMake (3.14 or newer) and a C++ compiler")
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        own = [flag for flag in shlex.split(os.environ.get("CMAKE_ARGS", "")) if not flag.startswith(READ_FIRST)]
        flags = [*FLAGS, *own, f"{READ_FIRST}{GGML_CPU}"]
        folders = ["-S", str(self._source / "vendor" / "llama.cpp"), "-B", str(self._build)]
        _run(["cmake", *folders, *generator, *flags], "CMake cannot set the build up; is there a C++ compiler?")

    def build(self, num_jobs: int) -> None:
        """Compiles.

        Raises:
            NotBuilt: the compiler gave up.
        """
        command = ["cmake", "--build", str(self._build), "--parallel", str(num_jobs), "--target", *TOOLS]
        _run(command, f"the build failed, see above; it goes on where it stopped, or remove {self._build}")


def _run(command: list[str], problem: str) -> None:
    """Runs it with all it says on stderr."""
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise NotBuilt(f"{problem}\nthe command was: {shlex.join(command)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build llama-server and llama-batched-bench, print their folder.")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder to keep them in (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once (%(default)s)")
    arguments = parser.parse_args()
    try:
        tools = Tools(arguments.cache)
        if not tools.are_built():
            tools.fetch()
            tools.configure()
            tools.build(arguments.jobs)
    except NotBuilt as problem:
        print(problem, file=sys.stderr)
        return 1
    print(tools.programs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
