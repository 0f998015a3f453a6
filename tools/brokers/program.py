"""Programs that brokers need, installed where that can be done, and started so that none outlives its keeper."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tools.brokers.errors import NoBrokers

STARTED_WITHIN_S = 120.0
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


class Broker(Protocol):
    """A broker that was started here."""

    def stop(self) -> None:
        """Asks it to end, and ends it if it does not. May be called twice."""
        ...

    def kill(self) -> None:
        """Ends it without asking; `restart` starts it again."""
        ...

    def restart(self) -> None:
        """Stops it and starts it with the data it has; returns once it answers.

        Raises:
            NoBrokers: it does not start.
        """
        ...

    def pause(self) -> None:
        """It keeps its connections, and does nothing until `resume`."""
        ...

    def resume(self) -> None:
        """Ends a pause."""
        ...


class Program:
    """A `Broker` that is a program of this machine. Its output goes to a file in `folder`."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, *, env: dict[str, str] | None = None) -> None:
        self._name = name
        self._command = command
        self._folder = folder
        self._env = env
        self._log = folder / f"{name}.log"
        self._answers: Callable[[], bool] = lambda: True
        self._process = self._start()

    @property
    def pid(self) -> int:
        """Its process, another one after a restart."""
        return self._process.pid

    def wait_until(self, answers: Callable[[], bool]) -> None:
        """Returns once it answers; after a restart too.

        Raises:
            NoBrokers: it ended, or does not answer in time.
        """
        self._answers = answers
        until_s = time.monotonic() + STARTED_WITHIN_S
        while not answers():
            if self._process.poll() is not None:
                raise NoBrokers(f"{self._name} ended with {self._process.returncode}:\n{self._last_words()}")
            if time.monotonic() > until_s:
                self.stop()
                raise NoBrokers(f"{self._name} did not answer within {STARTED_WITHIN_S:g} s:\n{self._last_words()}")
            time.sleep(_LOOK_EVERY_S)

    def stop(self) -> None:
        self._process.terminate()
        self.resume()
        try:
            self._process.wait(_STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        self.stop()
        self._process = self._start()
        self.wait_until(self._answers)

    def pause(self) -> None:
        """Returns once it stands: threads of it may go on for a moment after the signal."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _last_words(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:].strip()


def listens(port: int) -> bool:
    """Whether something on loopback accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
