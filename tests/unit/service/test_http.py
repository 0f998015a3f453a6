"""The pages of a service, over real connections."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack, closing, suppress

import httpx
import pytest

from pice.errors import ConfigError
from pice.service.health import Health
from pice.service.http import serve_health
from pice.service.metrics import PrometheusTelemetry
from tests.unit.service.clock import Clock

HOST = "127.0.0.1"
PATIENCE_S = 0.2
WELL_WITHIN_S = 10.0


class Service:
    """A service's pages on a port of its own, asked by clients that block the loop."""

    def __init__(self, health: Health, port: int, host: str = HOST) -> None:
        self.health = health
        self.port = port
        self.url = f"http://{host}:{port}"

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=WELL_WITHIN_S)

    def connect(self) -> socket.socket:
        return socket.create_connection((HOST, self.port), timeout=WELL_WITHIN_S)

    def says(self, request: bytes) -> bytes:
        """All that comes back for these bytes, until the connection is closed."""
        with closing(self.connect()) as connection:
            connection.sendall(request)
            return rest(connection)


def rest(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


@pytest.fixture
async def service(health: Health) -> AsyncIterator[Service]:
    with serve_health(HOST, 0, health, PrometheusTelemetry().registry) as port:
        yield Service(health, port)


@pytest.fixture
async def impatient(health: Health) -> AsyncIterator[Service]:
    with serve_health(HOST, 0, health, PrometheusTelemetry().registry, patience_s=PATIENCE_S) as port:
        yield Service(health, port)


async def test_service_is_ready_once_it_has_started(service: Service) -> None:
    before = service.get("/readyz")
    service.health.started()
    after = service.get("/readyz")
    assert (before.status_code, before.json()) == (503, {"ready": False, "state": "starting", "down": {}})
    assert (after.status_code, after.json()) == (200, {"ready": True, "state": "serving", "down": {}})


async def test_service_without_its_broker_says_which_and_why(service: Service) -> None:
    service.health.started()
    service.health.down("kafka", "kafka:9092: \udcff refuses")
    answer = service.get("/readyz?verbose")
    assert answer.status_code == 503
    assert answer.json()["down"] == {"kafka": r"kafka:9092: \udcff refuses"}
    assert answer.headers["content-type"] == "application/json"


async def test_draining_service_is_alive_but_not_ready(service: Service) -> None:
    service.health.started()
    service.health.draining()
    assert service.get("/livez").status_code == 200
    assert service.get("/readyz").json()["state"] == "draining"
    assert service.get("/readyz").status_code == 503


async def test_stuck_loop_is_told_of_while_it_is_stuck(service: Service, clock: Clock) -> None:
    """The client below blocks the very loop it asks about, so no beat can come in between."""
    alive = service.get("/livez")
    clock.passes(20)
    stuck = service.get("/livez")
    assert (alive.status_code, alive.json()["live"]) == (200, True)
    assert (stuck.status_code, stuck.json()) == (503, {"live": False, "loop_stalled_s": 20.0})


async def test_metrics_are_shown_with_the_health_in_them(service: Service) -> None:
    service.health.down("redis", "away")
    answer = service.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'pice_component_up{component="redis"} 0.0' in answer.text.splitlines()
    assert "pice_ready 0.0" in answer.text.splitlines()


async def test_metrics_come_as_openmetrics_when_asked_for(service: Service) -> None:
    answer = service.get("/metrics", accept="application/openmetrics-text; version=1.0.0, text/plain;q=0.5")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_head_request_gets_the_head_of_the_answer_alone(service: Service) -> None:
    head, _, body = service.says(b"HEAD /livez HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b""


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /secrets HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"GET /metrics/../livez HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /livez HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", b"405 Method Not Allowed"),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET /livez HTTP/9.9\r\n\r\n", b"400 Bad Request"),
        (b"GET /livez\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\x01\xff\xfe\r\n\r\n", b"400 Bad Request"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", b"431 Request Header Fields Too Large"),
        (b"GET /livez HTTP/1.1\r\n" + b"X: " + b"a" * 20_000, b"431 Request Header Fields Too Large"),
    ],
    ids=["unknown", "climbing", "post", "delete", "version", "no version", "tls", "long target", "long header"],
)
async def test_bad_request_is_refused_as_the_clients_fault(
    service: Service, request_bytes: bytes, status: bytes
) -> None:
    assert service.says(request_bytes).startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert service.get("/livez").status_code == 200


async def test_client_that_says_nothing_is_cut_off(impatient: Service) -> None:
    with closing(impatient.connect()) as silent:
        assert rest(silent) == b""


async def test_client_that_drips_is_cut_off(impatient: Service) -> None:
    """One byte at a time: a server that bounded the wait for each byte would listen for ever."""
    with closing(impatient.connect()) as slow:
        slow.settimeout(PATIENCE_S / 10)
        heard = next((it for it in map(drip, [slow] * 200) if it is not None), None)
    assert heard == b""


def drip(connection: socket.socket) -> bytes | None:
    """What is heard after one more byte; None where nothing is yet."""
    try:
        connection.sendall(b"G")
        return connection.recv(1)
    except TimeoutError:
        return None
    except ConnectionError:
        return b""


async def test_silent_clients_neither_pile_up_threads_nor_keep_others_out(impatient: Service) -> None:
    """16 are served at a time; as many may just be ending."""
    most = 0
    with ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(closing(impatient.connect()))
        asking = asyncio.create_task(asyncio.to_thread(ask_until_served, impatient))
        while not asking.done():
            most = max(most, num_threads())
            await asyncio.wait({asking}, timeout=0.01)
    await asking
    assert most <= 32


def num_threads() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def ask_until_served(service: Service) -> None:
    for _ in range(100):
        with suppress(httpx.TransportError):
            assert service.get("/livez").status_code == 200
            return
    pytest.fail("was never served")


async def test_port_in_use_is_refused_by_the_name_of_its_setting(service: Service, health: Health) -> None:
    registry = PrometheusTelemetry().registry
    with (
        pytest.raises(ConfigError, match=rf"service\.health_port: cannot listen at {HOST} port {service.port}: "),
        serve_health(HOST, service.port, health, registry),
    ):
        pass


async def test_host_of_another_machine_is_refused_by_the_name_of_its_setting(health: Health) -> None:
    registry = PrometheusTelemetry().registry
    with pytest.raises(ConfigError, match=r"service\.health_host"), serve_health("192.0.2.1", 0, health, registry):
        pass


async def test_port_is_free_again_after_serving(health: Health) -> None:
    registry = PrometheusTelemetry().registry
    with serve_health(HOST, 0, health, registry) as port:
        pass
    with serve_health(HOST, port, health, registry) as again:
        assert again == port


async def test_pages_are_served_on_ipv6_too(health: Health) -> None:
    if not _has_ipv6():
        pytest.skip("this machine has no ::1")
    with serve_health("::1", 0, health, PrometheusTelemetry().registry) as port:
        assert Service(health, port, "[::1]").get("/livez").status_code == 200


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
