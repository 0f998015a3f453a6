"""What one consumer knows of one partition: begun, finished, and how far the group may be said to have come.

Kafka keeps one position for a group and partition. With several messages in flight it is that of the first unfinished
one; what is finished beyond it, and how often each was begun, travels in the metadata of the commit, so that whoever
takes the partition over repeats little and counts on (P6).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

MAX_METADATA = 3500
"""Characters; brokers take 4,096 unless told otherwise. What does not fit is forgotten: it is delivered again."""
_FINISHED = 0


@dataclass(slots=True)
class Ledger:
    """Of one partition. `next_offset` is the one after the last that was begun."""

    next_offset: int
    times: dict[int, int] = field(default_factory=dict)
    """How often each message from the committed position on was begun; 0 says that it is finished."""

    def is_finished(self, offset: int) -> bool:
        return self.times.get(offset) == _FINISHED

    def finished(self) -> list[int]:
        """Those from the committed position on."""
        return [offset for offset in self.times if self.is_finished(offset)]

    def begin(self, offset: int) -> int:
        """How often the message has been begun, this time included."""
        self.next_offset = max(self.next_offset, offset + 1)
        self.times[offset] = self.times.get(offset, 0) + 1
        return self.times[offset]

    def skip(self, offset: int) -> None:
        """Of a message that was finished before it was read here."""
        self.next_offset = max(self.next_offset, offset + 1)

    def finish(self, offset: int) -> None:
        if self.times.get(offset):
            self.times[offset] = _FINISHED

    def position(self) -> int:
        """The first message that is not finished, or was not read yet. Forgets what is before it."""
        unfinished = [offset for offset, times in self.times.items() if times != _FINISHED]
        position = min([*unfinished, self.next_offset])
        for offset in [offset for offset in self.times if offset < position]:
            del self.times[offset]
        return position

    def metadata(self) -> str:
        """What is known of messages from `position` on, in the order of their offsets."""
        position = self.position()
        return "".join(
            _fitting(f"{offset - position}:{times} " for offset, times in sorted(self.times.items()))
        ).strip()


def read_ledger(position: int, metadata: str) -> Ledger:
    """The ledger as it was committed. Metadata that is none of ours says nothing."""
    return Ledger(position, dict(_entries(position, metadata)))


def _entries(position: int, metadata: str) -> Iterator[tuple[int, int]]:
    for entry in metadata.split():
        ahead, _, times = entry.partition(":")
        if ahead.isdecimal() and times.isdecimal():
            yield position + int(ahead), int(times)


def _fitting(entries: Iterator[str]) -> Iterator[str]:
    room = MAX_METADATA
    for entry in entries:
        room -= len(entry)
        if room < 0:
            return
        yield entry


def commits(ledgers: Mapping[int, Ledger]) -> dict[int, tuple[int, str]]:
    """By partition, the position to commit and its metadata."""
    return {partition: (ledger.position(), ledger.metadata()) for partition, ledger in ledgers.items()}
