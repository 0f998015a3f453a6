"""Nodes of two versions side by side. Of the other version there is a real copy: the same modules, on a `pice.core`
whose dataclasses have a field more or less at their end, as an earlier or later one would."""

import ast
import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import MISSING, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest

import pice.core
from pice.core import CLOUD_SITE
from pice.errors import DecodeError
from pice.message.codec import TYPES
from pice.transport.base import CANDIDATES, DEAD, REQUESTS, segments_topic

CODEC = "pice.message.codec"
NODES = (
    "pice.answer.steps",
    "pice.engine.emulated",
    "pice.message.signing",
    "pice.node.client",
    "pice.node.cloud",
    "pice.node.collector",
    "pice.node.edge",
    "pice.node.load",
    "pice.plan.planner",
    "pice.sketch.prompts",
    "pice.store.memory",
    "pice.transport.memory",
)
ADDED = "added"
SEGMENTS = segments_topic("main")
SECRET = "the secret of this cluster"
LIMIT_S = 20.0


class Version:
    """All names of some modules of the package, in one version."""

    def __init__(self, modules: Mapping[str, ModuleType]) -> None:
        self.codec: Any = modules[CODEC]
        self._modules = modules

    def __getattr__(self, name: str) -> Any:
        return next(vars(module)[name] for module in self._modules.values() if name in vars(module))


def another(alter: Callable[[ast.ClassDef], None], *names: str) -> Version:
    """A copy of modules on a core of which every class that travels was altered. Errors are shared, since a queue
    may raise them into nodes of either version."""
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "pice"}
    package = ModuleType("pice")
    package.__path__ = list(ours["pice"].__path__)
    for name in ours:
        del sys.modules[name]
    try:
        sys.modules |= {"pice": package, "pice.errors": ours["pice.errors"], "pice.core": altered_core(alter)}
        modules = {name: import_module(name) for name in (CODEC,)}
        says_all(modules[CODEC])
        return Version(modules | {name: import_module(name) for name in ("pice.core", *names)})
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "pice"]:
            del sys.modules[name]
        sys.modules.update(ours)


def altered_core(alter: Callable[[ast.ClassDef], None]) -> ModuleType:
    tree = ast.parse(Path(pice.core.__file__).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and "frozen=True" in ast.unparse(node.decorator_list[0]):
            alter(node)
    core = ModuleType("pice.core")
    sys.modules["pice.core"] = core
    exec(compile(ast.fix_missing_locations(tree), "pice/core.py", "exec"), vars(core))
    return core


def says_all(codec: Any) -> None:
    """A later version fills the field it has added: what is at its default would not be sent."""
    encode = codec.encode
    codec.encode = lambda message: encode(replace(message, added="news") if hasattr(message, ADDED) else message)


def with_one_more_field(cls: ast.ClassDef) -> None:
    cls.body += ast.parse(f'{ADDED}: str = ""').body


def without_its_last_field(cls: ast.ClassDef) -> None:
    """Unless that has no default: such a one was there from the beginning."""
    last = [node for node in cls.body if isinstance(node, ast.AnnAssign)][-1]
    if last.value is not None:
        cls.body.remove(last)


CURRENT = Version({name: import_module(name) for name in (CODEC, "pice.core", *NODES)})
OLDER = another(without_its_last_field)
NEWER = another(with_one_more_field, *NODES)
PAIRS = {"today's after an older one": (OLDER, CURRENT), "a newer one after today's": (CURRENT, NEWER)}


def sample(cls: Any) -> Any:
    """An instance, no field of which has its default."""
    hints = get_type_hints(cls)
    values = {field.name: value(hints[field.name]) for field in fields(cls)}
    return cls(**values | {field.name: False for field in fields(cls) if default(field) is True})


def value(hint: Any) -> Any:
    kind, args = get_origin(hint) or hint, get_args(hint)
    if is_dataclass(kind):
        return sample(kind)
    if kind is Literal:
        return args[-1]
    if kind in (Union, UnionType):
        return value(args[0])
    if kind is tuple:
        return (value(args[0]),)
    if kind is Mapping:
        return {"some": value(args[1])}
    return {str: "some", bytes: b"some", int: 7, float: 2.5, bool: True}[kind]


def default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def says_the_same(old: Any, new: Any) -> bool:
    """Whether `new` says what `old` does, and of what `old` cannot say only the default."""
    if isinstance(old, tuple):
        return len(old) == len(new) and all(map(says_the_same, old, new))
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(says_the_same(old[key], new[key]) for key in old)
    if not is_dataclass(old):
        return bool(old == new)
    known = {field.name for field in fields(old)}
    return all(
        says_the_same(getattr(old, field.name), getattr(new, field.name))
        if field.name in known
        else getattr(new, field.name) == default(field)
        for field in fields(new)
    )


@pytest.mark.parametrize("version", [OLDER, CURRENT, NEWER], ids=["older", "current", "newer"])
@pytest.mark.parametrize("tag", TYPES)
def test_sample_has_no_default_that_would_not_be_sent(version: Version, tag: str) -> None:
    cls = version.codec.TYPES[tag]
    message = sample(cls)
    assert [field.name for field in fields(cls) if getattr(message, field.name) == default(field)] == []


@pytest.mark.parametrize("tag", TYPES)
def test_newer_version_has_a_field_more_of_every_type_that_travels(tag: str) -> None:
    added = len(fields(NEWER.codec.TYPES[tag])) - len(fields(TYPES[tag]))
    removed = len(fields(TYPES[tag])) - len(fields(OLDER.codec.TYPES[tag]))
    assert (added, removed) == (1, fields(TYPES[tag])[-1].default is not MISSING)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("tag", TYPES)
def test_message_with_fields_that_a_reader_lacks_is_read_without_them(tag: str, pair: str) -> None:
    older, newer = PAIRS[pair]
    payload = newer.codec.encode(sample(newer.codec.TYPES[tag]))
    assert older.codec.decode(payload) == sample(older.codec.TYPES[tag])


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("tag", TYPES)
def test_message_without_fields_that_a_reader_has_is_read_with_their_defaults(tag: str, pair: str) -> None:
    older, newer = PAIRS[pair]
    message = sample(older.codec.TYPES[tag])
    read = newer.codec.decode(older.codec.encode(message))
    assert type(read) is newer.codec.TYPES[tag]
    assert says_the_same(message, read)


def test_message_of_a_version_or_type_that_a_reader_does_not_know_is_refused() -> None:
    payload = {"v": 2, "t": "point", "index": 1, "text": "x", "words": 9}
    with pytest.raises(DecodeError, match="unknown schema version 2, known is 1: upgrade the older side"):
        CURRENT.codec.decode(msgpack.packb(payload))
    with pytest.raises(DecodeError, match="unknown tag 'pointer', known are request, segment"):
        CURRENT.codec.decode(msgpack.packb(payload | {"v": 1, "t": "pointer"}))


# --- nodes ---


class Bridge:
    """A store of one version for a node of another: what it is told goes there as bytes, as it would to Redis."""

    def __init__(self, store: Any, there: Version, here: Version) -> None:
        self._store = store
        self._across: Callable[[Any], Any] = lambda message: there.codec.decode(here.codec.encode(message))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def heartbeat(self, state: Any, *, ttl_s: float) -> None:
        await self._store.heartbeat(self._across(state), ttl_s=ttl_s)

    async def emit(self, event: Any) -> None:
        await self._store.emit(self._across(event))


class Deployment:
    """A cloud node, its site and a collector of one version; the site lyon of another; a queue that remembers."""

    def __init__(self, rest: Version, edge: Version) -> None:
        self.rest = rest
        self.edge = edge
        self.store = rest.MemoryStore()
        self.transport = rest.MemoryTransport()
        self.client = rest.Client(self.transport, self.store)
        self.sent: list[tuple[str, bytes]] = []
        self._publish, self.transport.publish = self.transport.publish, self._remember

    async def _remember(self, topic: str, payload: bytes, **rest: Any) -> None:
        self.sent.append((topic, payload))
        await self._publish(topic, payload, **rest)

    def topics_with_news(self) -> set[str]:
        """Those with messages that hold the field which the older version lacks."""
        return {topic for topic, payload in self.sent if ADDED in msgpack.unpackb(payload)}

    async def ask(self) -> Any:
        rest = self.rest
        request = rest.Request("r", (rest.Message("user", "How do tides work?"),), mode="progressive")
        return await self.client.ask(request)

    async def nodes(self) -> list[Any]:
        rest = self.rest
        prompts, engine, load = rest.load_prompts("default"), await instant(rest, "large"), rest.Load()
        ports = {"transport": self.transport, "store": self.store}
        planner = rest.EarliestFinish(rest.PlanPolicy(segment_words=10))
        policy = rest.CloudPolicy()
        cloud = rest.CloudNode(**ports, engine=engine, load=load, planner=planner, prompts=prompts, policy=policy)
        return [
            cloud,
            rest.CollectorNode(**ports, planner=planner, policy=rest.EnsemblePolicy(), secret=SECRET),
            await site(rest, CLOUD_SITE, engine, self.transport, self.store),
            await site(
                self.edge,
                "lyon",
                await instant(self.edge, "small"),
                self.transport,
                Bridge(self.store, self.rest, self.edge),
            ),
        ]


async def instant(version: Version, model: str) -> Any:
    engine = version.EmulatedEngine(model=model, curve=version.Curve((1,), (0.0,)), seed=1)
    await engine.start()
    return engine


async def site(version: Version, name: str, engine: Any, transport: Any, store: Any) -> Any:
    """An edge node that has said that it is there."""
    address = version.Address(name, CLOUD_SITE if name == CLOUD_SITE else "main", 0)
    engines = [(engine, version.Load(), version.load_prompts("default"))]
    key = version.site_key(SECRET, name)
    node = version.EdgeNode(
        address, transport=transport, store=store, engines=engines, policy=version.EdgePolicy(), key=key
    )
    await node.announce()
    return node


@asynccontextmanager
async def running(rest: Version, edge: Version) -> AsyncIterator[Deployment]:
    deployment, stopping = Deployment(rest, edge), asyncio.Event()
    async with asyncio.timeout(LIMIT_S), AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        stack.push_async_callback(deployment.transport.close)
        stack.push_async_callback(deployment.store.close)
        for node in await deployment.nodes():
            tasks.create_task(node.run(stopping))
        yield deployment
        stopping.set()


@pytest.mark.parametrize(
    ("rest", "edge", "news"),
    [(NEWER, CURRENT, {REQUESTS, SEGMENTS}), (CURRENT, NEWER, {CANDIDATES})],
    ids=["older", "newer"],
)
async def test_edge_node_of_another_version_expands_every_segment(rest: Version, edge: Version, news: set[str]) -> None:
    async with running(rest, edge) as deployment:
        answer = await deployment.ask()
    assert answer.text
    assert {span.site for span in answer.spans} == {"lyon"}
    assert answer.degraded == ()
    assert deployment.topics_with_news() == news


async def test_what_a_node_does_not_know_is_put_aside_and_stops_nothing() -> None:
    unknown = [{"v": 2, "t": "segment"}, {"v": 1, "t": "telegram"}]
    async with running(CURRENT, CURRENT) as deployment:
        dead = await deployment.transport.subscribe(DEAD, group="test")
        for topic in (REQUESTS, SEGMENTS, CANDIDATES):
            for message in unknown:
                await deployment.transport.publish(topic, msgpack.packb(message), partition=0)
        found = [await dead.receive() for _ in range(6)]
        answer = await deployment.ask()
    assert {span.site for span in answer.spans} == {"lyon"}
    assert {each.headers["topic"].decode() for each in found} == {REQUESTS, SEGMENTS, CANDIDATES}
    reasons = {each.headers["reason"].decode().split(",")[0] for each in found}
    assert reasons == {"unknown schema version 2", "unknown tag 'telegram'"}
