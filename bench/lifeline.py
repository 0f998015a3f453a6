"""A process that does not outlive the one that started it, however that ends."""

import ctypes
import signal
import sys
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1


def killed_with_parent() -> dict[str, Any]:
    """Arguments for `subprocess` to start such a process, in a session of its own: Ctrl-C is its parent's to answer.

    Only Linux can kill it when the parent was killed by SIGKILL; elsewhere it then stays.
    """
    return {"start_new_session": True, "preexec_fn": _die_with_parent()}


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def between_fork_and_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return between_fork_and_exec
