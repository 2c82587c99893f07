"""One request to the internal CA: what counts as sent, and what is never accepted."""

from __future__ import annotations

import ssl
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.stepca.errors import EnrollmentError, UnreachableError
from certplane.stepca.exchange import Endpoint, Reply, exchange
from tests.support.scripted_https import Script, ScriptedHttps, answer

SECOND = timedelta(seconds=1)


def call(server: ScriptedHttps, *, timeout: timedelta = 5 * SECOND, context: ssl.SSLContext | None = None) -> Reply:
    return exchange(
        Endpoint.from_url(server.url),
        "POST",
        "/sign",
        context=context or server.client_context(),
        timeout=timeout,
        body={"ott": "secret-token"},
    )


def hang_up(tls: ssl.SSLSocket, request: bytes) -> None:
    """Ends the connection without an answer."""


def half_an_answer(tls: ssl.SSLSocket, request: bytes) -> None:
    tls.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\nhalf")


def garbage(tls: ssl.SSLSocket, request: bytes) -> None:
    tls.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def too_much(tls: ssl.SSLSocket, request: bytes) -> None:
    tls.sendall(b"HTTP/1.1 201 Created\r\n\r\n" + b"x" * 300 * 1024)


def headers_without_end(tls: ssl.SSLSocket, request: bytes) -> None:
    tls.sendall(b"HTTP/1.1 201 Created\r\n" + b"X-Filler: x\r\n" * 1000)


def test_an_answer_comes_back_whatever_its_status(tmp_path: Path) -> None:
    """Status and body are the caller's to judge; the request is JSON with our name on it."""
    with ScriptedHttps(tmp_path, answer("403 Forbidden", b'{"status":403,"message":"no\\u0007"}')).running() as server:
        reply = call(server)
    assert (reply.status, reply.said) == (403, "no")
    (request,) = server.requests
    assert request.startswith(b"POST /sign HTTP/1.1\r\n")
    assert b"User-Agent: certplane/" in request
    assert request.endswith(b'{"ott": "secret-token"}')


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    """A token must not travel on to wherever an answer points."""
    elsewhere = "Location: https://127.0.0.1:1/sign"
    with ScriptedHttps(tmp_path, answer("307 Temporary Redirect", b"", elsewhere)).running() as server:
        assert call(server).status == 307
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b'"text"', b"", b'{"message": 7}', b"[" * 100_000],
    ids=["html", "list", "text", "empty", "number", "nested"],
)
def test_a_body_of_another_kind_says_nothing(body: bytes) -> None:
    """`said` is empty rather than wrong."""
    assert Reply(500, body).said == ""


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(hang_up, id="hangs up"),
        pytest.param(half_an_answer, id="breaks off"),
        pytest.param(garbage, id="speaks another protocol"),
        pytest.param(too_much, id="says too much"),
        pytest.param(headers_without_end, id="sends headers without end"),
    ],
)
def test_a_lost_answer_is_not_called_unsent(tmp_path: Path, script: Script) -> None:
    """After the request has left, nothing says that it may be repeated; the token isn't in the text."""
    with ScriptedHttps(tmp_path, script).running() as server, pytest.raises(EnrollmentError) as lost:
        call(server)
    assert not isinstance(lost.value, UnreachableError)
    assert "secret-token" not in str(lost.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("drip", [b"", b"X-Filler: x\r\n"], ids=["silence", "a drop at a time"])
def test_the_time_for_an_answer_is_bounded_as_a_whole(tmp_path: Path, drip: bytes) -> None:
    """Neither silence nor a header now and then holds the call beyond its time."""
    released = threading.Event()

    def slow(tls: ssl.SSLSocket, request: bytes) -> None:
        tls.sendall(b"HTTP/1.1 200 OK\r\n")
        while not released.wait(0.05):
            tls.sendall(drip)

    with ScriptedHttps(tmp_path, slow).running() as server:
        try:
            with pytest.raises(EnrollmentError, match="in time") as lost:
                call(server, timeout=timedelta(seconds=0.4))
        finally:
            released.set()
    assert not isinstance(lost.value, UnreachableError)


def test_nothing_is_sent_to_a_server_that_is_not_trusted(tmp_path: Path) -> None:
    """Another CA's server gets no request, and the error says what to compare."""
    with (
        ScriptedHttps(tmp_path, hang_up).running() as server,
        pytest.raises(UnreachableError, match="not trusted") as refused,
    ):
        call(server, context=ssl.create_default_context())
    assert server.requests == []
    assert "fingerprint" in refused.value.remedy


@pytest.mark.parametrize(
    ("url", "words"),
    [
        pytest.param("https://127.0.0.1:{closed}", "can't be reached", id="nobody listens"),
        pytest.param("https://no-such-host.invalid", "can't be found", id="no such name"),
        pytest.param("https://a..example", "can't be found", id="no host name"),
        pytest.param("https://localhost:{open}", "not trusted: Hostname mismatch", id="certificate for another name"),
    ],
)
def test_what_keeps_a_connection_from_being_made_is_named(tmp_path: Path, url: str, words: str) -> None:
    """Each with its own words and a remedy, and all as nothing sent."""
    server = ScriptedHttps(tmp_path, hang_up)
    with server.running():
        endpoint = Endpoint.from_url(url.format(closed=1, open=server.port))
        with pytest.raises(UnreachableError, match=words) as failed:
            exchange(endpoint, "GET", "/health", context=server.client_context(), timeout=2 * SECOND)
    assert failed.value.remedy


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://ca.example", "https://ca.example"),
        ("https://ca.example:9000/", "https://ca.example:9000"),
        ("https://[::1]:9000/ca/", "https://[::1]:9000/ca"),
    ],
)
def test_an_endpoint_is_written_as_it_was_given(url: str, origin: str) -> None:
    """Without the default port and final slashes."""
    assert Endpoint.from_url(url).origin == origin


@pytest.mark.parametrize("url", ["http://ca.example", "ca.example:9000", "https://"])
def test_only_https_is_an_endpoint(url: str) -> None:
    """A CA without TLS can't be identified."""
    with pytest.raises(ValueError, match="not an https URL"):
        Endpoint.from_url(url)
