"""What people hold of a running pipeline: questions in, answers and events out."""

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence

from pice.core import Answer, Event, Message, Mode, Plan, Request, Sampling
from pice.errors import InputError
from pice.message.fields import shown
from pice.node.client import Client
from pice.settings import Settings


class Pipeline:
    """A running pipeline. Safe to use from any number of tasks of its event loop."""

    def __init__(
        self, settings: Settings, client: Client, plan: Callable[[Request], Awaitable[Plan]], rng: random.Random
    ) -> None:
        self.settings = settings
        self._client = client
        self._plan = plan
        self._rng = rng

    def new_request(
        self,
        question: str | Sequence[Message],
        *,
        mode: Mode | None = None,
        timeout_s: float | None = None,
        sampling: Sampling | None = None,
    ) -> Request:
        """A request with an id of its own.

        Raises:
            InputError: there is no question in it.
        """
        messages = _conversation(question)
        if not any(message.role == "user" and message.content.strip() for message in messages):
            raise InputError("the question is empty: expected some text to answer")
        timeout_s = self.settings.limits.request_timeout_s if timeout_s is None else timeout_s
        return Request(f"req_{self._rng.getrandbits(96):024x}", messages, sampling or Sampling(), timeout_s, mode)

    def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """What happens, as it happens; see `pice.node.client.Client.stream`."""
        return self._client.stream(request)

    async def ask_request(self, request: Request) -> Answer:
        """The answer; see `pice.node.client.Client.ask`."""
        return await self._client.ask(request)

    async def ask(
        self,
        question: str | Sequence[Message],
        *,
        mode: Mode | None = None,
        timeout_s: float | None = None,
        sampling: Sampling | None = None,
    ) -> Answer:
        """The answer to one question."""
        return await self.ask_request(self.new_request(question, mode=mode, timeout_s=timeout_s, sampling=sampling))

    async def plan(self, request: Request) -> Plan:
        """What would be done about a request now, and how long it is predicted to take."""
        return await self._plan(request)


def _conversation(question: object) -> tuple[Message, ...]:
    expected = "expected a question as text, or a sequence of pice.Message(role, content)"
    if isinstance(question, str):
        return (Message("user", question),)
    if not isinstance(question, Iterable):
        raise InputError(f"{expected}, got {shown(question)}")
    messages = tuple(question)
    for message in messages:
        if not isinstance(message, Message):
            raise InputError(f"{expected}, got {shown(question)} with {shown(message)} in it")
        if not isinstance(message.content, str):
            raise InputError(f"{expected}, got a message whose content is {shown(message.content)}")
    return messages
