"""In which order a site takes the segments that wait for a model."""

import heapq
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

Order = Literal["multilist", "fcfs", "longest"]
T = TypeVar("T")


@dataclass(slots=True)
class WaitingSegments(Generic[T]):
    """A queue of items with an expected length in words and a deadline.

    "fcfs" and "longest" are what they say. "multilist" keeps a list per doubling of length, so that a decode batch
    holds work of one length: a list is served, oldest deadline first, for up to `batch` items, then the list whose
    first item has waited longest has its turn, so no list starves.
    """

    order: Order
    batch: int
    _lists: dict[int, list[tuple[float, int, T]]] = field(default_factory=dict)
    _num_pushed: int = 0
    _current: int = 0
    _left: int = 0

    def __len__(self) -> int:
        return sum(len(waiting) for waiting in self._lists.values())

    def push(self, item: T, *, words: int, deadline_s: float) -> None:
        key, rank = 0, 0.0
        if self.order == "multilist":
            key, rank = words.bit_length(), deadline_s
        elif self.order == "longest":
            rank = -float(words)
        heapq.heappush(self._lists.setdefault(key, []), (rank, self._num_pushed, item))
        self._num_pushed += 1

    def pop(self) -> T:
        """The next item. Raises IndexError when none waits."""
        if self._left == 0 or not self._lists.get(self._current):
            self._turn()
        self._left -= 1
        item = heapq.heappop(self._lists[self._current])[2]
        if not self._lists[self._current]:
            del self._lists[self._current]
        return item

    def _turn(self) -> None:
        if not self._lists:
            raise IndexError("no segment waits")
        self._left = self.batch
        self._current = min(self._lists, key=lambda key: min(entry[1] for entry in self._lists[key]))
