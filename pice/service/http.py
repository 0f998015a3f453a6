"""Health and metrics over HTTP, from threads of their own: they answer also while the event loop is stuck."""

import errno
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from http import HTTPStatus
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import orjson

from pice.errors import ConfigError
from pice.service.health import Health
from pice.service.metrics import Registry, exposition, health_metrics

log = logging.getLogger(__name__)

Page = tuple[HTTPStatus, str, bytes]
"""Status, content type, body."""
Pages = Mapping[str, Callable[[str], Page]]
"""By path: the page for an Accept header."""

_POLL_S = 0.1
_NUM_THREADS = 16
_MAX_HEAD_BYTES = 16_384
_HEAD_ENDS = re.compile(rb"\r?\n\r?\n")
_REQUEST_LINE = re.compile(rb"([A-Z]+) ([!-~]+) HTTP/1\.[01]\r?\n")
_ACCEPT = re.compile(rb"^accept:(.*)$", re.IGNORECASE | re.MULTILINE)


@contextmanager
def serve_health(host: str, port: int, health: Health, registry: Registry, *, patience_s: float = 5.0) -> Iterator[int]:
    """Serves GET /livez, /readyz and /metrics; gives the port, which is picked where 0 was asked for. To be entered on
    the event loop whose life `health` is told of.

    At most 16 clients are served at a time, and no more than `patience_s` are spent on listening to one, and on
    answering it.

    Raises:
        ConfigError: nothing can listen there; names the setting.
    """
    with (
        closing(_listen(host, port, _pages(health, registry), patience_s)) as server,
        health_metrics(registry, health),
        health.beating(),
    ):
        threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="pice-health", daemon=True).start()
        try:
            log.info("health and metrics at %s port %d", host, server.port)
            yield server.port
        finally:
            server.shutdown()


def _pages(health: Health, registry: Registry) -> Pages:
    def live(_: str) -> Page:
        is_live = health.is_live
        return _json(_status(is_live), {"live": is_live, "loop_stalled_s": round(health.stalled_s, 1)})

    def ready(_: str) -> Page:
        is_ready = health.is_ready
        return _json(_status(is_ready), {"ready": is_ready, "state": health.state, "down": health.outages})

    def metrics(accept: str) -> Page:
        return HTTPStatus.OK, *exposition(registry, accept)

    return {"/livez": live, "/readyz": ready, "/metrics": metrics}


def _status(is_well: bool) -> HTTPStatus:
    return HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE


def _json(status: HTTPStatus, facts: Mapping[str, object]) -> Page:
    return status, "application/json", orjson.dumps(facts)


def _listen(host: str, port: int, pages: Pages, patience_s: float) -> "_Server":
    try:
        return _Server(host, port, pages, patience_s)
    except OSError as error:
        wrong_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        key = "service.health_host" if wrong_host else "service.health_port"
        raise ConfigError(f"{key}: cannot listen at {host} port {port}: {error.strerror}: choose another") from error


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, pages: Pages, patience_s: float) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.pages = pages
        self.patience_s = patience_s
        self._free = threading.Semaphore(_NUM_THREADS)
        super().__init__((host, port), _Connection)

    @property
    def port(self) -> int:
        port: int = self.server_address[1]
        return port

    def close(self) -> None:
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Waits a little for a free thread, so that there are never more than so many; else the client is sent off."""
        if self._free.acquire(timeout=min(1.0, self.patience_s)):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, *_: object) -> None:
        if not isinstance(sys.exception(), OSError):  # those are clients that went away
            log.error("a request for health or metrics failed", exc_info=True)


class _Connection(BaseRequestHandler):
    """One client, one request. The time for all it says is bounded, not that for each byte."""

    server: _Server

    def handle(self) -> None:
        until_s = time.monotonic() + self.server.patience_s
        answer = _answer(self._head(until_s), self.server.pages)
        self.request.settimeout(self.server.patience_s)
        self.request.sendall(answer)
        self.request.shutdown(socket.SHUT_WR)
        while self._receive(until_s):  # closing before a client has said all could take the answer from it
            pass

    def _head(self, until_s: float) -> bytes:
        """What the client says up to the empty line, or the most that is listened to."""
        head = b""
        while not _HEAD_ENDS.search(head) and len(head) <= _MAX_HEAD_BYTES and (more := self._receive(until_s)):
            head += more
        return head

    def _receive(self, until_s: float) -> bytes:
        """Raises OSError when the client took too long, or went away."""
        self.request.settimeout(max(0.001, until_s - time.monotonic()))
        received: bytes = self.request.recv(4096)
        return received


def _answer(head: bytes, pages: Pages) -> bytes:
    """The response to a request, of which `head` was heard."""
    status, content_type, body = _page(head, pages)
    return b"".join(
        [
            f"HTTP/1.1 {status} {status.phrase}\r\n".encode(),
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n".encode(),
            b"Allow: GET, HEAD\r\nConnection: close\r\n\r\n",
            b"" if head.startswith(b"HEAD ") else body,
        ]
    )


def _page(head: bytes, pages: Pages) -> Page:
    if len(head) > _MAX_HEAD_BYTES:
        return _fault(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    if not (line := _REQUEST_LINE.match(head)):
        return _fault(HTTPStatus.BAD_REQUEST)
    if line[1] not in (b"GET", b"HEAD"):
        return _fault(HTTPStatus.METHOD_NOT_ALLOWED)
    if (page := pages.get(line[2].partition(b"?")[0].decode())) is None:
        return _fault(HTTPStatus.NOT_FOUND)
    accept = _ACCEPT.search(head)
    return page(accept[1].decode("latin-1") if accept else "")


def _fault(status: HTTPStatus) -> Page:
    return _json(status, {"error": status.phrase})
