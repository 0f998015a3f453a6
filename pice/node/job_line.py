"""One line of a batch job in the hands of a runner: asked, or followed where it was asked before."""

import asyncio
import logging
from collections.abc import Callable

from pice.batch.format import BatchItem, InputLine, failure_line, name_of, request_id_of, success_line
from pice.batch.settle import Settled, settle
from pice.core import Answer, Request
from pice.errors import DecodeError, Overloaded, PiceError
from pice.jobs.base import Result
from pice.node.client import Client
from pice.store.base import Store

log = logging.getLogger(__name__)


class LineInHand:
    """Asks for the answer to one line, under request ids that follow from job, line and number of the try.

    Whoever is given the line again finds the requests that were made for it, as long as the store keeps them.
    `request_id` is the one that runs now, "" while there is none.
    """

    def __init__(self, job_id: str, line: InputLine, client: Client, store: Store, timeout_s: float) -> None:
        self.request_id = ""
        self._job_id = job_id
        self._line = line
        self._client = client
        self._store = store
        self._timeout_s = timeout_s

    async def result(self, wall_s: Callable[[], float]) -> Result:
        """The line's result, whatever became of it."""
        try:
            item = self._line.item()
        except PiceError as error:
            return self.failure(error)
        settled = await self._settled(item)
        if isinstance(settled.outcome, Answer):
            line = success_line(item, settled.outcome, created=int(wall_s()))
            return Result(name_of(self._line.key), line, answered=True)
        return self.failure(settled.outcome, settled.request_id)

    def failure(self, error: PiceError, request_id: str = "") -> Result:
        """The result of a line that has no answer."""
        key = self._line.key
        line = failure_line(key, error, request_id=request_id or request_id_of(self._job_id, key))
        return Result(name_of(key), line, answered=False)

    async def _settled(self, item: BatchItem) -> Settled:
        """What a former runner's try gives, if that is an answer; its errors are not this line's: it may have been
        cancelled as that runner was stopped. Then the tries of this one."""
        number = 0
        while await self._is_known(request_id := request_id_of(self._job_id, item.custom_id, number)):
            try:
                return Settled(request_id, await self._ask(item.request(request_id, timeout_s=self._timeout_s)))
            except PiceError as error:
                log.info("request %s of a former runner: %s", request_id, error)
            number += 1
        settled = await settle(
            item,
            self._ask,
            run_id=self._job_id,
            timeout_s=self._timeout_s,
            stopped_within=_never_stopped_within,
            first_try=number,
        )
        assert settled is not None
        return settled

    async def _ask(self, request: Request) -> Answer:
        """Asks under the same id until it is let in: so the numbers of the tries that there were have no gap, and
        whoever comes later finds them all."""
        self.request_id = request.request_id
        try:
            while True:
                try:
                    return await self._client.ask(request)
                except Overloaded as error:
                    if await self._is_known(request.request_id):
                        raise
                    await asyncio.sleep(error.retry_after_s)
        finally:
            self.request_id = ""

    async def _is_known(self, request_id: str) -> bool:
        try:
            return await self._store.record(request_id) is not None
        except DecodeError:
            return True


async def _never_stopped_within(wait_s: float) -> bool:
    await asyncio.sleep(wait_s)
    return False
