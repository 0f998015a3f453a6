"""Which sampling llama.cpp can do."""

from pice.core import NUM_SEEDS, Sampling
from pice.engine.llama.text import MAX_STOP_CHARS, MAX_STOP_STRINGS
from pice.errors import InputError

LARGEST = 1e6
"""Well inside of what single floats hold, in which llama.cpp reckons: an infinite number would end in no number."""


def check_sampling(sampling: Sampling) -> None:
    """Refuses what llama.cpp would take without a word or die of.

    Raises:
        InputError: names the value and what was expected.
    """
    _check_types(sampling)
    presence, frequency, repeat = sampling.presence_penalty, sampling.frequency_penalty, sampling.repeat_penalty
    rules = {
        "max_tokens": (sampling.max_tokens, sampling.max_tokens >= 1, ">= 1"),
        "temperature": (sampling.temperature, 0 <= sampling.temperature <= LARGEST, f"from 0 to {LARGEST:g}"),
        "top_p": (sampling.top_p, 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        "top_k": (sampling.top_k, 0 <= sampling.top_k < 2**31, ">= 0 (0 is off)"),
        "min_p": (sampling.min_p, 0 <= sampling.min_p <= 1, "from 0 to 1"),
        "repeat_penalty": (repeat, 1 / LARGEST <= repeat <= LARGEST, f"from {1 / LARGEST:g} to {LARGEST:g}"),
        "presence_penalty": (presence, -LARGEST <= presence <= LARGEST, f"from {-LARGEST:g} to {LARGEST:g}"),
        "frequency_penalty": (frequency, -LARGEST <= frequency <= LARGEST, f"from {-LARGEST:g} to {LARGEST:g}"),
        "seed": (sampling.seed, sampling.seed is None or 0 <= sampling.seed < NUM_SEEDS, f"from 0 to {NUM_SEEDS - 1}"),
        "stop": (
            sampling.stop,
            len(sampling.stop) <= MAX_STOP_STRINGS and all(0 < len(each) <= MAX_STOP_CHARS for each in sampling.stop),
            f"at most {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARS} characters",
        ),
    }
    for name, (value, right, expected) in rules.items():
        if not right:
            raise InputError(f"{name} must be {expected}, got {value!r}")


def _check_types(sampling: Sampling) -> None:
    """A number is an integer where it counts, and a truth is none: what a process is sent must be what it reads."""
    for name in ("max_tokens", "top_k", "seed"):
        value = getattr(sampling, name)
        if type(value) is not int and not (name == "seed" and value is None):
            raise InputError(f"{name} must be an integer, got {value!r}")
    for name in ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"):
        value = getattr(sampling, name)
        if type(value) not in (int, float):
            raise InputError(f"{name} must be a number, got {value!r}")
    if not isinstance(sampling.stop, tuple) or not all(isinstance(each, str) for each in sampling.stop):
        raise InputError(f"stop must be a tuple of strings, got {sampling.stop!r}")
