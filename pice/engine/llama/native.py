"""The library itself; the one file that imports llama_cpp.

llama.cpp ends the process on wrong input instead of raising, so ids, positions, counts and indices are right by
construction or checked before each call. All calls on one model come from one thread.
"""

import ctypes
import threading
from collections import deque
from typing import Any

import llama_cpp
from llama_cpp.llama_cpp import _lib

__all__ = ["llama_cpp", "log", "quick"]

_PROBLEM_LEVELS = (3, 4)
"""Warnings and errors, as ggml numbers them."""


class _Log(threading.local):
    """What llama.cpp last complained of in this thread."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=20)

    def reason(self) -> str:
        return "; ".join(self.lines) or "llama.cpp gave no reason"


log = _Log()


def _keep_problem(level: int, text: bytes, _data: object) -> None:
    if level in _PROBLEM_LEVELS:
        log.lines.append(text.decode(errors="replace").strip())


_log_callback = llama_cpp.llama_log_callback(_keep_problem)
llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()

_quick_library = ctypes.PyDLL(vars(_lib)["_name"])


def quick(name: str) -> Any:
    """A function by a handle that keeps the GIL: for calls too short to be worth winning it back for."""
    function = getattr(_quick_library, name)
    slow = getattr(llama_cpp.llama_cpp, name)
    function.argtypes, function.restype = slow.argtypes, slow.restype
    return function
