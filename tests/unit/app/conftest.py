"""Every test here runs on a virtual clock: waiting takes no time and always goes the same way."""

import asyncio
from collections.abc import Callable, Mapping

import pytest

from pice.simulation.clock import VirtualClockLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": VirtualClockLoop}
