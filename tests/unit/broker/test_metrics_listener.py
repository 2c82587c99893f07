"""The HTTP listener for metrics, asked by good and bad callers over real sockets."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry, Gauge

from certplane.broker.metrics_listener import CONNECTIONS, MetricsListener
from certplane.config.values import ListenAddress
from tests.support.waiting import HANG, blocking_until

LONG = timedelta(minutes=5)
SHORT = timedelta(milliseconds=200)


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    for number in range(500):
        Gauge(f"measure_{number}", "A figure. " * 200, registry=registry).set(number)
    return registry


@contextlib.contextmanager
def listening(registry: CollectorRegistry, span: timedelta) -> Iterator[MetricsListener]:
    listener = MetricsListener(ListenAddress("127.0.0.1", 0), registry, time=span)
    try:
        yield listener
    finally:
        listener.close()


@pytest.fixture
def listener(registry: CollectorRegistry) -> Iterator[MetricsListener]:
    """One whose times never end by themselves."""
    with listening(registry, LONG) as listener:
        yield listener


def ask(
    listener: MetricsListener, method: str = "GET", path: str = "/metrics", accept: str = "*/*"
) -> tuple[int, str, str]:
    """Status, content type and body."""
    connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=HANG)
    with contextlib.closing(connection):
        connection.request(method, path, headers={"Accept": accept})
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"].partition(";")[0], response.read().decode()


def connect(listener: MetricsListener) -> socket.socket:
    return socket.create_connection(("127.0.0.1", listener.port), timeout=HANG)


def raw(listener: MetricsListener, octets: bytes) -> bytes:
    """All that comes back."""
    answer = b""
    with connect(listener) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(octets)
        while more := connection.recv(65_536):
            answer += more
    return answer


def test_figures(listener: MetricsListener) -> None:
    """All of them, in the format that was asked for; HEAD has the head alone."""
    status, kind, body = ask(listener)
    assert (status, kind) == (200, "text/plain")
    assert "measure_499 499.0" in body
    _, kind, body = ask(listener, accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert (kind, body[-6:]) == ("application/openmetrics-text", "# EOF\n")
    assert "process_open_fds" in body
    assert ask(listener, "HEAD") == (200, "text/plain", "")


@pytest.mark.parametrize(
    ("question", "status"),
    [
        pytest.param(b"GET /favicon.ico HTTP/1.1\r\n\r\n", b"404", id="another path"),
        pytest.param(b"GET /metrics/x HTTP/1.1\r\n\r\n", b"404", id="a path below"),
        pytest.param(b"POST /metrics HTTP/1.1\r\n\r\n", b"405", id="another method"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\n", b"505", id="HTTP/2"),
        pytest.param(b"\x16\x03\x01\x02\x00\r\n\r\n", b"400", id="TLS"),
        pytest.param(b"GET /metrics\r\n\r\n", b"400", id="no version"),
    ],
)
def test_other_questions(listener: MetricsListener, question: bytes, status: bytes) -> None:
    """Each gets its status and an end; the next one its figures."""
    assert raw(listener, question).split(b" ")[1] == status
    assert ask(listener)[0] == 200


@pytest.mark.parametrize("end", [b"\r\n\r\n", b""])
def test_a_question_without_end(listener: MetricsListener, end: bytes) -> None:
    """Is refused as soon as it is too long; the rest of it may reset the connection before the refusal is read."""
    answer = raw(listener, b"GET /metrics HTTP/1.1\r\nx: " + b"y" * 200_000 + end)
    assert answer == b"" or b" 431 " in answer
    assert ask(listener)[0] == 200


def test_silent_connections_keep_nobody_out(listener: MetricsListener) -> None:
    """The oldest silent one makes room: a scraper is answered at once, and neither threads nor descriptors grow."""
    threads = set(threading.enumerate())
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(listener)) for _ in range(500)]
        for number in range(5):
            silent[-number - 1].sendall(b"GET /metr")
            assert ask(listener)[0] == 200
        assert set(threading.enumerate()) <= threads  # those of other tests may end meanwhile
        assert sum(map(is_ended, silent)) >= len(silent) - CONNECTIONS


def is_ended(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\n"])
def test_who_does_not_ask_in_time_is_ended(registry: CollectorRegistry, said: bytes) -> None:
    """Also the one that says half of a question."""
    with listening(registry, SHORT) as listener, connect(listener) as connection:
        connection.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_who_does_not_read_is_ended(registry: CollectorRegistry) -> None:
    """Sixteen that ask and don't read keep nobody out for good, nor their answers in memory."""
    with listening(registry, SHORT) as listener, contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            lazy = stack.enter_context(socket.socket())
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.connect(("127.0.0.1", listener.port))
            lazy.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")

        def is_answered() -> bool:
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                return ask(listener)[0] == 200
            return False

        blocking_until(is_answered, what="an answer")


def test_a_closed_listener_ends_its_connections(registry: CollectorRegistry) -> None:
    """A stop waits for nobody, and closing again is no mistake."""
    listener = MetricsListener(ListenAddress("127.0.0.1", 0), registry)
    with connect(listener) as silent:
        assert ask(listener)[0] == 200
        listener.close()
        listener.close()
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b""
    with pytest.raises(ConnectionError):
        connect(listener)


def test_an_address_without_a_host_is_all_addresses(registry: CollectorRegistry) -> None:
    """As the port for calls is."""
    listener = MetricsListener(ListenAddress("", 0), registry)
    try:
        assert ask(listener)[0] == 200
    finally:
        listener.close()
