"""The topics on Kafka: made, grown, looked at and checked."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from pice.errors import ConfigError
from pice.kafka_client import (
    ConfigResource,
    ConfigResourceType,
    KafkaClient,
    KafkaOptions,
    NewPartitions,
    NewTopic,
    for_code,
)
from pice.transport.kafka_lag import lags
from pice.transport.kafka_metadata import TopicFacts, find_topics, raise_for

_KNOWN_WITHIN_S = 15.0
_LOOK_EVERY_S = 0.05
_EXISTS, _NO_GROWTH, _UNSEEN = 36, 37, 29
"""Kafka's codes for a topic that is there already, one that has that many partitions already, and a missing right."""
_SEGMENTS_PER_RETENTION = 4
"""Kafka deletes whole segments of a topic's log: so much more than `retention_s` is kept at most, in parts of it."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What a topic has to be. `num_copies` -1 is the broker's default."""

    name: str
    num_partitions: int
    retention_s: float
    num_copies: int = -1


@dataclass(frozen=True, slots=True)
class TopicChange:
    """What `create` did: from how many partitions, 0 for a new topic, to how many."""

    name: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class TopicState:
    """What a topic is. `faults` say what is wrong with it; `lag` is how many messages each group has not finished.
    `retention_s` and `max_bytes` are None where the broker does not tell us."""

    name: str
    num_partitions: int = 0
    num_copies: int = 0
    retention_s: float | None = None
    max_bytes: int | None = None
    faults: tuple[str, ...] = ()
    lag: Mapping[str, int] = field(default_factory=dict)


class KafkaTopics:
    """Each call connects for itself. Names go without the prefix of `options`.

    Every call raises `TransportError` where no broker answers, and `ConfigError` where Kafka refuses this user.
    """

    def __init__(self, options: KafkaOptions) -> None:
        self._kafka = KafkaClient(options)
        self._prefix = options.prefix
        self._max_bytes = options.max_record_bytes

    async def create(self, specs: Sequence[TopicSpec]) -> list[TopicChange]:
        """Makes the topics that are missing and grows those with too few partitions; nothing else is changed."""
        names = {spec.name: self._prefix + spec.name for spec in specs}
        async with self._admin("topics could not be made") as admin:
            found = await find_topics(admin, list(names.values()))
            missing = [spec for spec in specs if names[spec.name] not in found]
            if missing:
                answer = await admin.create_topics([self._new(spec) for spec in missing])
                for name, code, message in answer.topic_errors:
                    raise_for(code, f"{name}: {message}", but=(_EXISTS,))
            for spec in specs:
                await self._grow(admin, names[spec.name], spec.num_partitions)
        before = {name: found[full].num_partitions if full in found else 0 for name, full in names.items()}
        return [TopicChange(it.name, before[it.name], max(before[it.name], it.num_partitions)) for it in specs]

    async def describe(self, specs: Sequence[TopicSpec]) -> list[TopicState]:
        """What the topics are, beside what they have to be."""
        states = await self._states(specs)
        partitions = {self._prefix + state.name: state.num_partitions for state in states}
        behind = await lags(self._kafka, partitions)
        return [replace(state, lag=behind.get(self._prefix + state.name, {})) for state in states]

    async def check(self, specs: Sequence[TopicSpec]) -> None:
        """Returns if the topics are as they have to be.

        Raises:
            ConfigError: a line for each that is not, with what to change.
        """
        faults = [
            f"{self._prefix}{state.name}: {fault}" for state in await self._states(specs) for fault in state.faults
        ]
        if faults:
            raise ConfigError("\n".join(faults))

    async def ensure_partition(self, topic: str, partition: int) -> None:
        """The topic has the partition, and other clients can see it. It is grown where it has too few.

        Raises:
            ConfigError: there is no such topic, or this user may not grow it.
        """
        name = self._prefix + topic
        async with self._admin(f"{name} needs a partition {partition} and could not be grown") as admin:
            if name not in await find_topics(admin, [name]):
                raise ConfigError(f"{name}: the topic does not exist: run `pice topics create`")
            await self._grow(admin, name, partition + 1)

    @asynccontextmanager
    async def _admin(self, what: str) -> AsyncIterator[Any]:
        async with self._kafka.admin() as admin:
            with self._kafka.mapped(what):
                yield admin

    async def _grow(self, admin: Any, name: str, num_partitions: int) -> None:
        """To at least so many partitions. A topic that was made a moment ago is waited for."""
        known = await self._known(admin, name, 1)
        if known.num_partitions < num_partitions:
            with suppress(for_code(_NO_GROWTH)):  # others were faster
                await admin.create_partitions({name: NewPartitions(num_partitions)})
            await self._known(admin, name, num_partitions)

    async def _known(self, admin: Any, name: str, num_partitions: int) -> TopicFacts:
        async with asyncio.timeout(_KNOWN_WITHIN_S):
            while True:
                facts = (await find_topics(admin, [name])).get(name)
                if facts is not None and facts.num_partitions >= num_partitions:
                    return facts
                await asyncio.sleep(_LOOK_EVERY_S)

    def _new(self, spec: TopicSpec) -> NewTopic:
        retention_ms = round(1000 * spec.retention_s)
        settings = {
            "retention.ms": retention_ms,
            "segment.ms": retention_ms // _SEGMENTS_PER_RETENTION,
            "max.message.bytes": self._max_bytes,
        }
        return NewTopic(
            self._prefix + spec.name,
            spec.num_partitions,
            spec.num_copies,
            replica_assignments={} if spec.num_copies == -1 else None,  # or aiokafka takes no -1
            topic_configs={name: str(value) for name, value in settings.items()},
        )

    async def _states(self, specs: Sequence[TopicSpec]) -> list[TopicState]:
        names = [self._prefix + spec.name for spec in specs]
        async with self._admin("topics cannot be looked at") as admin:
            found = await find_topics(admin, names)
            settings = await _settings(admin, list(found))
        return [self._state(spec, found, settings) for spec in specs]

    def _state(
        self, spec: TopicSpec, found: Mapping[str, TopicFacts], settings: Mapping[str, Mapping[str, str]]
    ) -> TopicState:
        name = self._prefix + spec.name
        if name not in found:
            return TopicState(spec.name, faults=("is missing: run `pice topics create`",))
        facts, known = found[name], settings.get(name, {})
        retention_ms, max_bytes = known.get("retention.ms"), known.get("max.message.bytes")
        state = TopicState(
            spec.name,
            facts.num_partitions,
            facts.num_copies,
            None if retention_ms is None else int(retention_ms) / 1000,
            None if max_bytes is None else int(max_bytes),
        )
        return replace(state, faults=tuple(self._faults(spec, state)))

    def _faults(self, spec: TopicSpec, state: TopicState) -> list[str]:
        faults = []
        if state.num_partitions < spec.num_partitions:
            faults.append(
                f"has {state.num_partitions} partitions, {spec.num_partitions} are needed: run `pice topics create`"
            )
        if state.max_bytes is not None and state.max_bytes < self._max_bytes:
            faults.append(
                f"takes messages of up to {state.max_bytes} bytes, but ours may have {self._max_bytes}: set its "
                f"max.message.bytes to that, or lower limits.max_message_bytes by {self._max_bytes - state.max_bytes}"
            )
        return faults


async def _settings(admin: Any, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """By topic, those of its settings that we look at. Topics of which we may not know are left out."""
    wanted = {"retention.ms": "", "max.message.bytes": ""}
    if not names:
        return {}
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name, wanted) for name in names])
    known: dict[str, dict[str, str]] = {}
    for code, message, _, name, entries in (each for answer in answers for each in answer.resources):
        raise_for(code, f"{name}: {message}", but=(_UNSEEN,))
        known[name] = {entry[0]: entry[1] for entry in entries}
    return known
