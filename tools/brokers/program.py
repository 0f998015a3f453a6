"""Programs that brokers need, installed where that can be done, and started so that none outlives its keeper."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.brokers.errors import NoBrokers

STARTED_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.05
_STOPPED_WITHIN_S = 20.0
_LAST_WORDS = 2000


def found(name: str, package: str) -> str:
    """The path of a program; as root on Debian and its kin it is installed from `package` where it is missing.

    Raises:
        NoBrokers: it is not there and cannot be installed.
    """
    if path := shutil.which(name):
        return path
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _apt_install(package)
        if path := shutil.which(name):
            return path
    raise NoBrokers(f"{name} is needed and is not installed: install it (Debian's package: {package})")


def _apt_install(package: str) -> None:
    """Errors show in that the program is still missing; RUNLEVEL keeps a service from being started."""
    print(f"brokers: installing {package}", file=sys.stderr)
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", package]):
        subprocess.run(command, env=quiet, stdout=subprocess.DEVNULL, check=False)


def free_port() -> int:
    """A port of loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Program:
    """A program that runs until it is stopped. Its output goes to a file in `folder`."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, *, env: dict[str, str] | None = None) -> None:
        self._name = name
        self._log = folder / f"{name}.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def wait_until(self, answers: Callable[[], bool]) -> None:
        """Returns once it answers.

        Raises:
            NoBrokers: it ended, or does not answer in time.
        """
        until_s = time.monotonic() + STARTED_WITHIN_S
        while not answers():
            if self._process.poll() is not None:
                raise NoBrokers(f"{self._name} ended with {self._process.returncode}:\n{self._last_words()}")
            if time.monotonic() > until_s:
                self.stop()
                raise NoBrokers(f"{self._name} did not answer within {STARTED_WITHIN_S:g} s:\n{self._last_words()}")
            time.sleep(_LOOK_EVERY_S)

    def stop(self) -> None:
        """Asks it to end, and ends it if it does not. May be called twice."""
        self._process.terminate()
        try:
            self._process.wait(_STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:].strip()


def listens(port: int) -> bool:
    """Whether something on loopback accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
