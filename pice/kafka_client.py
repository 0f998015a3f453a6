"""Connections to Apache Kafka, with its errors as ours. Nothing else imports the `aiokafka` package."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import ConsumerRebalanceListener as ConsumerRebalanceListener
from aiokafka import OffsetAndMetadata as OffsetAndMetadata
from aiokafka import TopicPartition as TopicPartition
from aiokafka import errors as refusals
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin import NewPartitions as NewPartitions
from aiokafka.admin import NewTopic as NewTopic
from aiokafka.admin.config_resource import ConfigResource as ConfigResource
from aiokafka.admin.config_resource import ConfigResourceType as ConfigResourceType
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import for_code as for_code
from aiokafka.protocol.admin import ApiVersionRequest
from aiokafka.protocol.metadata import MetadataRequest as MetadataRequest

from pice.errors import ConfigError, MessageTooLarge, TransportError

log = logging.getLogger(__name__)

OLDEST = "2.4"
_CREATE_TOPICS = 19
_SINCE_OLDEST = 4
"""Kafka 2.4 is the first with this version of the request to make topics, in which copies may be left to the broker."""
_TIMEOUT_S = 15.0
_STOP_S = 5.0
_STOPPING: set[asyncio.Task[None]] = set()
_KNOWN_FOR_MS = 60_000
"""After this time partitions that were added are seen by whoever did not have to look for them."""
_OVERHEAD = 64 * 1024
"""Bytes allowed for a record's frame, key and headers beyond its payload."""

_ADVICE: dict[type[BaseException], str] = {
    refusals.SaslAuthenticationFailed: "check kafka.username and kafka.password",
    refusals.AuthenticationFailedError: "check kafka.username and kafka.password",
    refusals.UnsupportedSaslMechanismError: "set kafka.sasl_mechanism to one that it has",
    refusals.IllegalSaslStateError: "that port takes no SASL: check kafka.security_protocol and the port",
    refusals.TopicAuthorizationFailedError: "give this user the right to the topic; see docs/security.md",
    refusals.GroupAuthorizationFailedError: "give this user the right to the group; see docs/security.md",
    refusals.ClusterAuthorizationFailedError: "give this user the right to do it, or let another user do it",
    refusals.UnsupportedVersionError: "upgrade the broker",
    refusals.IncompatibleBrokerVersion: "upgrade the broker",
    ssl.SSLError: "check kafka.ca_file, kafka.cert_file, and that this port takes TLS",
}
"""What to change where Kafka refuses us for good."""
_HUNG_UP = (
    ": if it stays so, kafka.security_protocol does not fit this port, or it wants a certificate (kafka.cert_file)"
)
UNREADABLE = (UnicodeDecodeError, refusals.CorruptRecordException, refusals.UnsupportedCodecError)
"""What reading ends with at a record that the broker took from a client of another make, and aiokafka cannot read."""
_OUT_OF_STEP = (
    refusals.OutOfOrderSequenceNumber,
    refusals.UnknownProducerId,
    refusals.InvalidProducerEpoch,
    refusals.ProducerFenced,
    refusals.MessageSizeTooLargeError,
    refusals.RecordListTooLargeError,
)


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """How to reach Kafka; see `pice.settings.KafkaSettings`. `max_bytes` is the longest payload, `prefix` stands before
    the names of topics and groups."""

    bootstrap_servers: str
    security_protocol: str = "PLAINTEXT"
    ca_file: Path | None = None
    cert_file: Path | None = None
    cert_key_file: Path | None = None
    sasl_mechanism: str = "SCRAM-SHA-512"
    username: str = ""
    password: str = field(default="", repr=False)
    prefix: str = ""
    max_bytes: int = 1 << 20

    @property
    def max_record_bytes(self) -> int:
        """What a broker must take, so that the longest payload fits with its key and headers."""
        return self.max_bytes + _OVERHEAD


class KafkaClient:
    """Makes the clients of one Kafka: of aiokafka, connected. Whoever asked for one stops it, with `stop_producer` or
    `stop_consumer`.

    Raises:
        ConfigError: a file of a certificate cannot be used.
    """

    def __init__(self, options: KafkaOptions) -> None:
        self.options = options
        self._connection = _connection(options)

    async def check(self) -> None:
        """Returns if one of the servers takes us.

        Raises:
            ConfigError: one refuses us, or is too old; says what to change.
            TransportError: none answers; says each one's cause.
        """
        causes = []
        for host, port, _ in collect_hosts(self.options.bootstrap_servers, randomize=False):
            try:
                with _mapped(f"{host}:{port}"):
                    await self._greet(host, port)
            except TransportError as error:
                hung_up = isinstance(error.__cause__, refusals.KafkaConnectionError)
                causes.append(f"{error}{_HUNG_UP if hung_up else ''}")
            else:
                return
        raise TransportError(f"Kafka cannot be reached: {'; '.join(causes)}")

    async def producer(self) -> Any:
        """One that stores each message once, and confirms it when all copies in step have it. Raises as `check`."""
        options = {"enable_idempotence": True, "acks": "all", "max_request_size": self.options.max_record_bytes}
        return await self._started(AIOKafkaProducer, **options)

    async def consumer(self, group: str | None) -> Any:
        """One that begins with the oldest message its group has not committed, or without a group where it is told to.
        Is never taken for dead because its caller is slow (P9). Raises as `check`."""
        return await self._started(
            AIOKafkaConsumer,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_interval_ms=2**31 - 1,
            max_partition_fetch_bytes=self.options.max_record_bytes,
        )

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        """Raises as `check`."""
        admin = await self._started(AIOKafkaAdminClient)
        try:
            yield admin
        finally:
            await admin.close()

    @contextmanager
    def mapped(self, what: str) -> Generator[None]:
        """Kafka's errors as ours, with its address and `what` could not be done."""
        with _mapped(f"Kafka at {self.options.bootstrap_servers}: {what}"):
            yield

    async def _started(self, kind: type[Any], **options: Any) -> Any:
        await self.check()
        client = kind(
            bootstrap_servers=self.options.bootstrap_servers,
            metadata_max_age_ms=_KNOWN_FOR_MS,
            **self._connection,
            **options,
        )
        with self.mapped("cannot be used"):
            try:
                async with asyncio.timeout(2 * _TIMEOUT_S):
                    await client.start()
            except BaseException:
                await (client.close() if kind is AIOKafkaAdminClient else _stopped(client))
                raise
        return client

    async def _greet(self, host: str, port: int) -> None:
        connection = await create_conn(host, port, **self._connection)
        try:
            answer = await connection.send(ApiVersionRequest())
            newest = {key: most for key, _, most in answer.api_versions}
            if newest.get(_CREATE_TOPICS, 0) < _SINCE_OLDEST:
                raise ConfigError(f"{host}:{port}: Kafka {OLDEST} or newer is needed, got an older: upgrade the broker")
            await connection.send(MetadataRequest([], False))
        finally:
            connection.close()


async def stop_producer(producer: Any) -> None:
    """Sends what it holds; what cannot be sent within 5 s fails. May be called twice."""
    if not await _stopped(producer):
        sender, held = producer._sender.sender_task, producer._message_accumulator  # noqa: SLF001 - else it never ends
        sender.add_done_callback(lambda _: _give_up(held))
        sender.cancel()


def _give_up(held: Any) -> None:
    """Fails all messages that a producer holds, and tells nobody else. It sends no more."""
    waiting = [batch for batches in held._batches.values() for batch in batches]  # noqa: SLF001 - nothing else does it
    held._pending_batches.update(waiting)  # noqa: SLF001 - where each looks for itself when it ends
    held.fail_all(refusals.ProducerClosed())
    for batch in waiting:
        batch._drain_waiter.exception()  # noqa: SLF001 - or it is logged as never looked at


async def stop_consumer(consumer: Any) -> None:
    """Leaves its group. May be called twice."""
    await _stopped(consumer)


async def _stopped(client: Any) -> bool:
    """Whether it is stopped now; if not, since Kafka is away, it goes on with that."""
    stopping: asyncio.Task[None] = asyncio.ensure_future(client.stop())
    _STOPPING.add(stopping)
    stopping.add_done_callback(_after_stopping)
    await asyncio.wait({stopping}, timeout=_STOP_S)
    return stopping.done()


def _after_stopping(stopping: asyncio.Task[None]) -> None:
    _STOPPING.discard(stopping)
    if not stopping.cancelled() and (error := stopping.exception()):
        log.warning("a client of Kafka did not end well: %r", error)


def pass_over(consumer: Any) -> tuple[int, int]:
    """Partition and offset of the record at which a read just ended with one of `UNREADABLE`; the consumer goes on
    behind it."""
    place, fetched = next(iter(consumer._fetcher._records.items()))  # noqa: SLF001 - the error does not say it
    offset: int = fetched._partition_records.next_fetch_offset  # noqa: SLF001
    consumer.seek(place, offset + 1)
    return place.partition, offset


def is_out_of_step(producer: Any, error: BaseException) -> bool:
    """Whether a producer that failed with this fails with all that follows: Kafka and it do not number messages alike
    any more, or it has ended."""
    has_ended: bool = producer._sender.sender_task.done()  # noqa: SLF001 - nothing else says so
    return has_ended or isinstance(error, _OUT_OF_STEP)


def _connection(options: KafkaOptions) -> dict[str, Any]:
    known = {"security_protocol": options.security_protocol, "request_timeout_ms": round(1000 * _TIMEOUT_S)}
    if options.security_protocol.startswith("SASL"):
        known["sasl_mechanism"] = options.sasl_mechanism
        known["sasl_plain_username"] = options.username
        known["sasl_plain_password"] = options.password
    return known | ({"ssl_context": _tls(options)} if options.security_protocol.endswith("SSL") else {})


def _tls(options: KafkaOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        if options.cert_file:
            context.load_cert_chain(options.cert_file, options.cert_key_file)
    except OSError as error:
        files = ", ".join(str(it) for it in (options.ca_file, options.cert_file, options.cert_key_file) if it)
        raise ConfigError(f"kafka.ca_file, cert_file, cert_key_file: {files} cannot be used: {error}") from error
    return context


@contextmanager
def _mapped(where: str) -> Generator[None]:
    try:
        yield
    except (refusals.MessageSizeTooLargeError, refusals.RecordListTooLargeError) as error:
        raise MessageTooLarge(f"{where}: the broker's limit is lower than ours: {error}") from error
    except ssl.SSLEOFError as error:  # as any other connection that broke
        raise TransportError(f"{where}: {error}") from error
    except tuple(_ADVICE) as error:
        advice = next(text for kind, text in _ADVICE.items() if isinstance(error, kind))
        raise ConfigError(f"{where}: {error}: {advice}") from error
    except (refusals.KafkaError, refusals.ConsumerStoppedError, OSError) as error:
        if isinstance(alert := error.__cause__, ssl.SSLError) and not isinstance(alert, ssl.SSLEOFError):
            raise ConfigError(f"{where}: {alert}: {_ADVICE[ssl.SSLError]}") from error
        cause = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        raise TransportError(f"{where}: {cause}") from error
