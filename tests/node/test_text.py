"""Text becomes few events and loses nothing."""

from pice.core import Event
from pice.node.text import TextEvents
from pice.store.memory import MemoryStore
from tests.node.stage import time_passes


class Noting(MemoryStore):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.emitted: list[tuple[float, str]] = []

    async def emit(self, event: Event) -> None:
        assert (event.kind, event.site) == ("segment_text", "paris")
        self.emitted.append((event.at_s, event.text))


EVENT = Event("r", "segment_text", 0.0, 1, 0, site="paris")


async def test_first_text_is_shown_at_once_and_the_rest_gathered() -> None:
    store = Noting()
    events = TextEvents(store, EVENT, interval_s=1.0)
    for word in ("a", "b", "c", "d"):
        await events.write(word)
        await time_passes(0.5)
    await events.flush()
    assert store.emitted == [(0.0, "a"), (1.0, "bc"), (2.0, "d")]


async def test_text_held_back_is_shown_by_a_flush_and_only_once() -> None:
    store = Noting()
    events = TextEvents(store, EVENT, interval_s=1.0)
    for text in ("a", "", "b"):
        await events.write(text)
    await events.flush()
    await events.flush()
    assert [text for _, text in store.emitted] == ["a", "b"]


async def test_text_that_nobody_wants_is_let_go() -> None:
    store = Noting()
    events = TextEvents(store, EVENT, interval_s=0.0, is_wanted=False)
    assert not events.hold("a")
    await events.write("b")
    await events.flush()
    assert store.emitted == []


async def test_no_text_is_no_event() -> None:
    store = Noting()
    await TextEvents(store, EVENT, interval_s=1.0).write("")
    assert store.emitted == []
