"""Several queues as one: each topic goes where it belongs."""

from collections.abc import Mapping

from pice.transport.base import Subscription, Transport


class RoutedTransport:
    """See `pice.transport.base.Transport`. Topics in `by_topic` go there, all others to `otherwise`."""

    def __init__(self, by_topic: Mapping[str, Transport], otherwise: Transport) -> None:
        self._by_topic = dict(by_topic)
        self._otherwise = otherwise

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        await self._of(topic).publish(topic, payload, key=key, partition=partition, headers=headers)

    async def subscribe(
        self, topic: str, *, group: str, partition: int | None = None, prefetch: int = 64
    ) -> Subscription:
        return await self._of(topic).subscribe(topic, group=group, partition=partition, prefetch=prefetch)

    async def close(self) -> None:
        for transport in (*self._by_topic.values(), self._otherwise):
            await transport.close()

    def _of(self, topic: str) -> Transport:
        return self._by_topic.get(topic, self._otherwise)
