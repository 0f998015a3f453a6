"""What a node knows of its own load, and of the sites."""

import asyncio
from collections.abc import Sequence

import pytest

from pice.core import SiteState
from pice.node.load import Load
from pice.node.sites import SiteNews
from pice.plan.planner import EarliestFinish, PlanPolicy
from pice.store.memory import MemoryStore
from tests.node.stage import Stage, time_passes


class Asked(MemoryStore):
    """Counts how often it is asked for the sites."""

    times_asked = 0

    async def sites(self) -> list[SiteState]:
        self.times_asked += 1
        return await super().sites()


async def test_heartbeats_are_looked_at_no_more_often_than_they_may_change() -> None:
    store = Asked()
    news = SiteNews(store, EarliestFinish(PlanPolicy()), max_age_s=1.0)
    for _ in range(4):
        await news.refresh()
        await time_passes(0.5)
    assert store.times_asked == 2


async def test_all_who_come_during_the_first_look_wait_for_it() -> None:
    class Slow(Asked):
        async def sites(self) -> list[SiteState]:
            await asyncio.sleep(0.2)
            return await super().sites()

    class Sees(EarliestFinish):
        has_seen = False

        def see(self, sites: Sequence[SiteState]) -> None:
            self.has_seen = True

    store, planner = Slow(), Sees(PlanPolicy())
    news = SiteNews(store, planner, max_age_s=1.0)

    async def waits() -> bool:
        await news.refresh()
        return planner.has_seen

    assert all(await asyncio.gather(waits(), waits(), waits()))
    assert store.times_asked == 1


async def test_site_that_announces_itself_is_known_to_the_planner(stage: Stage) -> None:
    planner = EarliestFinish(PlanPolicy())
    await stage.site("paris")
    await SiteNews(stage.store, planner, max_age_s=1.0).refresh()
    assert planner.address("paris") == ("main", 0)


def test_load_is_what_its_generations_have_still_to_write() -> None:
    load = Load()
    one, two = load.add(10), load.add(5)
    assert (load.num_outstanding, load.backlog_tokens) == (2, 15)
    one.wrote(4)
    assert load.backlog_tokens == 11
    two.wrote(50)
    assert load.backlog_tokens == 6
    for _ in range(2):
        one.end()
        one.wrote(1)
    assert (load.num_outstanding, load.backlog_tokens) == (1, 0)


@pytest.mark.parametrize("num_tokens", [0, 7])
def test_load_of_ended_generations_is_nothing(num_tokens: int) -> None:
    load = Load()
    load.add(num_tokens).end()
    assert load == Load()
