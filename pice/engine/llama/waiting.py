"""How the threads of one engine wait for one another."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def waiting(own: Mapping[str, str], *, shares_cores: bool) -> dict[str, str]:
    """Variables for OpenMP, beside those of a process; what the user has set stands.

    Threads that spin at a barrier stand still when anything else wants their core; those that sleep take long to wake.
    So they sleep where the cores are known to be shared, and else spin for as long as pays: OpenMP's own 300,000
    rounds are no faster than 3,000, and beside a busy program some twenty times slower.
    """
    if any(name in own for name in _OWN):
        return {}
    return {"OMP_WAIT_POLICY": "passive"} if shares_cores else {"GOMP_SPINCOUNT": "3000"}


@contextmanager
def set_while_loading(*, shares_cores: bool) -> Iterator[None]:
    """Sets what OpenMP reads once, when it is loaded, and takes it back: it is not for processes started later."""
    added = waiting(os.environ, shares_cores=shares_cores)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
