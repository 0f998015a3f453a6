"""The generations that share an emulated model, as a fluid: while b of them decode, a step passes every `step_s` at b.

It waits on loop timers alone.
"""

import asyncio
import math
from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import accumulate, count
from typing import Literal

from pice.core import Curve
from pice.errors import EngineError
from pice.plan.estimate import prefill_s, step_s

_TOLERANCE_STEPS = 1e-6


class Sequence:
    """One generation as the batch sees it: which piece ends with which token, and how many pieces are ready.

    `joined` is the batch's step at its first token.
    """

    __slots__ = ("ends", "error", "joined", "num_ready", "number", "state", "ttft_s", "waiter")

    def __init__(self, number: int, num_tokens: Iterable[int], ttft_s: float) -> None:
        self.number = number
        self.ends = tuple(accumulate(num_tokens))
        self.ttft_s = ttft_s
        self.num_ready = 0
        self.joined = 0.0
        self.state: Literal["waiting", "prefilling", "decoding", "gone"] = "waiting"
        self.error: EngineError | None = None
        self.waiter: asyncio.Future[None] | None = None

    def due_step(self) -> float:
        return self.joined + self.ends[self.num_ready] - 1

    async def ready(self, index: int) -> None:
        while self.num_ready <= index:
            if self.error is not None:
                raise self.error.with_traceback(None)
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


_Heap = list[tuple[float, int, Sequence]]


class Batch:
    """The sequences that share a model.

    One loop timer stands at the next event, the end of a prefill or of a piece. `_now_s` is on the batch's own
    clock, which stands still in a pause; `_steps` have passed in all. Sequences that are gone stay
    in the heaps until they come up.
    """

    def __init__(self, curve: Curve, max_inflight: int) -> None:
        self.instant = not any((curve.base_s, curve.prefill_s_per_token, *curve.step_s))
        self._curve = curve
        self._step_s = [max(0.0, step_s(curve, size)) for size in range(max_inflight + 1)]
        self._num_free = max_inflight
        self._num_decoding = 0
        self._numbers = count()
        self._waiting: _Heap = []
        self._prefilling: _Heap = []
        self._decoding: _Heap = []
        self._steps = 0.0
        self._now_s = 0.0
        self._behind_s = 0.0
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, num_tokens: Iterable[int], num_prompt_tokens: int, deadline_s: float = math.inf) -> Sequence:
        sequence = Sequence(next(self._numbers), num_tokens, prefill_s(self._curve, num_prompt_tokens))
        if self.instant and not self._paused:
            sequence.num_ready, sequence.state = len(sequence.ends), "gone"
        else:
            self._catch_up()
            heappush(self._waiting, (deadline_s, sequence.number, sequence))
            self._advance()
        return sequence

    def leave(self, sequence: Sequence) -> None:
        if sequence.state != "gone":
            self._catch_up()
            self._release(sequence)
            self._advance()

    def fail(self, error: EngineError) -> None:
        self._catch_up()
        for sequence in [entry[2] for entry in (*self._waiting, *self._prefilling, *self._decoding)]:
            if sequence.state != "gone":
                self._release(sequence)
                sequence.num_ready, sequence.error = 0, error
                sequence.wake()
        self._advance()

    def pause(self) -> None:
        self._catch_up()
        self._paused = True
        self._set_timer(math.inf)

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._behind_s = asyncio.get_running_loop().time() - self._now_s
            self._advance()

    def _advance(self, due_s: float = 0.0) -> None:
        """Catches up, at least to `due_s` (a clock may be rounded), and sets the timer to what comes next."""
        self._catch_up(due_s)
        self._set_timer(math.inf if self._paused else self._next_s())

    def _catch_up(self, due_s: float = 0.0) -> None:
        if self._paused:
            return
        now_s = max(due_s, asyncio.get_running_loop().time() - self._behind_s)
        self._admit()
        while (event_s := self._next_s()) <= now_s:
            self._happen(event_s)
            self._admit()
        self._pass(now_s)

    def _set_timer(self, event_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if event_s < math.inf:
            self._timer = asyncio.get_running_loop().call_at(event_s + self._behind_s, self._advance, event_s)

    def _next_s(self) -> float:
        return min(_first(self._prefilling), self._piece_s())

    def _piece_s(self) -> float:
        """When the next piece ends, at the pace of now."""
        steps = _first(self._decoding) - self._steps
        return self._now_s + max(0.0, steps) * self._step_s[self._num_decoding] if steps < math.inf else math.inf

    def _happen(self, event_s: float) -> None:
        is_piece = self._piece_s() <= event_s
        self._pass(event_s)
        if is_piece:
            self._steps = max(self._steps, self._decoding[0][0])
        self._emit()
        self._join()

    def _pass(self, now_s: float) -> None:
        step_s = self._step_s[self._num_decoding]
        if self._num_decoding and step_s:
            self._steps += max(0.0, now_s - self._now_s) / step_s
        self._now_s = now_s

    def _emit(self) -> None:
        while self._decoding and self._decoding[0][0] <= self._steps + _TOLERANCE_STEPS:
            sequence = heappop(self._decoding)[2]
            if sequence.state == "gone":
                continue
            sequence.num_ready += 1
            sequence.wake()
            if sequence.num_ready == len(sequence.ends):
                self._release(sequence)
            else:
                heappush(self._decoding, (sequence.due_step(), sequence.number, sequence))

    def _join(self) -> None:
        while _first(self._prefilling) <= self._now_s:
            sequence = heappop(self._prefilling)[2]
            sequence.state, sequence.joined = "decoding", self._steps
            self._num_decoding += 1
            heappush(self._decoding, (sequence.due_step(), sequence.number, sequence))

    def _admit(self) -> None:
        while self._num_free and self._waiting:
            sequence = heappop(self._waiting)[2]
            if sequence.state == "waiting":
                sequence.state = "prefilling"
                self._num_free -= 1
                heappush(self._prefilling, (self._now_s + sequence.ttft_s, sequence.number, sequence))

    def _release(self, sequence: Sequence) -> None:
        self._num_free += sequence.state in ("prefilling", "decoding")
        self._num_decoding -= sequence.state == "decoding"
        sequence.state = "gone"


def _first(heap: _Heap) -> float:
    while heap and heap[0][2].state == "gone":
        heappop(heap)
    return heap[0][0] if heap else math.inf
