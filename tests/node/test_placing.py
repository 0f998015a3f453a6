"""A segment goes to its site once, and only if the record will have it."""

import asyncio

import pytest

from pice.core import Failure, Placement
from pice.errors import Full, TransportError
from pice.node.placing import Placer
from pice.plan.planner import EarliestFinish, PlanPolicy
from tests.node.stage import SEGMENTS, Stage

ROME = Placement("rome", "tiny", 1.0, 2.0, "hedge")


@pytest.fixture
async def placer(stage: Stage) -> Placer:
    planner = EarliestFinish(PlanPolicy())
    for name in ("paris", "rome"):
        await stage.site(name)
    planner.see(await stage.store.sites())
    return Placer(stage.transport, stage.store, planner)


async def test_segment_is_noted_sent_and_shown(stage: Stage, placer: Placer) -> None:
    (segment,) = await stage.sealed(("paris", "small"))
    assert await placer.send(segment, ROME)
    assert (await stage.record()).segments[0].placements[1] == ROME
    await stage.store.close_request("r", None, Failure("r", "cancelled", "gone"))
    event = (await stage.events("r"))[0]
    assert (event.kind, event.index, event.site, event.model) == ("segment_released", 0, "rome", "tiny")
    assert (event.text, event.at_s, event.points) == ("hedge", 1.0, segment.points)


async def test_segment_that_is_placed_there_already_is_not_sent_again(stage: Stage, placer: Placer) -> None:
    (segment,) = await stage.sealed(("rome", "tiny"))
    assert not await placer.send(segment, ROME)
    assert stage.transport.num_messages(SEGMENTS) == 0


async def test_segment_that_cannot_be_sent_is_not_noted(stage: Stage, placer: Placer) -> None:
    (segment,) = await stage.sealed(("paris", "small"))
    stage.transport._max_messages = 0
    with pytest.raises(Full):
        await placer.send(segment, ROME)
    assert [it.site for it in (await stage.record()).segments[0].placements] == ["paris"]


async def test_segment_that_is_not_taken_in_time_stays_noted_since_it_may_come_yet(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.get_running_loop().create_future()

    planner = EarliestFinish(PlanPolicy())
    await stage.site("rome")
    planner.see(await stage.store.sites())
    (segment,) = await stage.sealed(("paris", "small"))
    monkeypatch.setattr(stage.transport, "publish", never)
    with pytest.raises(TransportError, match="within 2 s"):
        await Placer(stage.transport, stage.store, planner, within_s=2.0).send(segment, ROME)
    assert [it.site for it in (await stage.record()).segments[0].placements] == ["paris", "rome"]
