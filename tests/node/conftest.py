"""Every test here runs on a virtual clock: waiting takes no time and always goes the same way."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from pice.simulation.clock import Deadlock, VirtualClockLoop
from tests.node.stage import Stage

LIMIT_S = 1000.0


class BoundedLoop(VirtualClockLoop):
    """Ends a test that waits for what never comes, though heartbeats may keep its clock going."""

    limit_s = LIMIT_S

    def jump(self, wait_s: float) -> None:
        super().jump(wait_s)
        if self.time() > self.limit_s:
            self.limit_s = math.inf
            raise Deadlock(f"the test still waits after {LIMIT_S:g} s")

    def run_until_complete(self, future: Any) -> Any:
        try:
            return super().run_until_complete(future)
        except Deadlock:
            self.limit_s = math.inf
            super().run_until_complete(_cancelled(future))
            raise


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": BoundedLoop}


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    await stage.close()
