"""The machine that a model runs on, and the memory it takes there."""

import os
import platform
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from pice.engine.llama.options import num_cores

READ_AT_LOADING = ("OMP_", "GOMP_", "KMP_")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a time depends on beside the model. `omp` holds what the environment says to OpenMP."""

    cpu: str
    num_cores: int
    library: str
    omp: Mapping[str, str] = field(default_factory=dict)


def this_machine() -> Machine:
    """With llama-cpp-python installed."""
    return Machine(
        cpu=_cpu_name(),
        num_cores=num_cores(),
        library=f"llama-cpp-python {version('llama-cpp-python')}",
        omp={name: value for name, value in os.environ.items() if name.startswith(READ_AT_LOADING)},
    )


def rss_bytes() -> int:
    """Memory of this process that is in RAM, pages of a mapped file included; where the system does not tell, the most
    it ever was."""
    try:
        resident = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(resident) * resource.getpagesize()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
