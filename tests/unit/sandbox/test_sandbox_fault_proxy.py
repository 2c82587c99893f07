"""The fault proxy in front of a server of the test's own: real sockets and TLS; without rules it changes nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import requests

from certplane.sandbox import faults
from certplane.sandbox.acme_endpoints import (
    AUTHORIZATION,
    CERTIFICATE,
    CHALLENGE,
    DIRECTORY,
    FINALIZE,
    NEW_NONCE,
    NEW_ORDER,
    ORDER,
    OTHER,
    PathEndpoints,
)
from certplane.sandbox.fault_proxy import Action, FaultProxy
from certplane.sandbox.http_server import LoopbackHandler, LoopbackServer

ORDER_OBJECT = {"status": "pending", "authorizations": ["/z/1"], "finalize": "/f/1", "certificate": "/c/1"}


class Upstream(LoopbackServer):
    """Speaks a little ACME under odd paths, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__("upstream", 0, _Handler)
        self.asked: list[tuple[str, str, str, bytes]] = []
        self.nonces = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def paths(self) -> list[str]:
        return [path for _, path, _, _ in self.asked]


class _Handler(LoopbackHandler):
    def do_HEAD(self) -> None:  # noqa: N802 - the base class calls it by this name
        self.reply("HEAD")

    def do_PATCH(self) -> None:  # noqa: N802 - as above
        self.reply("PATCH")

    def reply(self, method: str) -> None:
        upstream = cast("Upstream", self.server)
        host, body = self.headers["Host"], self.body()
        upstream.asked.append((method, self.path, host, body))
        upstream.nonces += 1
        base = f"https://{host}"
        status, content, headers = self._page(base)
        headers = [*headers, ("Replay-Nonce", f"nonce-{upstream.nonces}")]
        self.answer(status, b"" if method == "HEAD" else json.dumps(content).encode(), "application/json", headers)

    def _page(self, base: str) -> tuple[int, Any, list[tuple[str, str]]]:
        order = {name: [base + v for v in value] if isinstance(value, list) else value for name, value in _order(base)}
        match self.path:
            case "/start":
                return 200, {"newNonce": f"{base}/n", "newOrder": f"{base}/o", "meta": {}}, []
            case "/o":
                return 201, order, [("Location", f"{base}/o/1")]
            case "/o/1":
                return 200, order, []
            case "/z/1":
                return 200, {"challenges": [{"url": f"{base}/h/1"}]}, []
            case "/c/1":
                return 200, "chain", [("Link", f'<{base}/c/1/1>;rel="alternate"'), ("Link", f'<{base}/>;rel="index"')]
            case _:
                return 200, {"path": self.path}, []


def _order(base: str) -> list[tuple[str, Any]]:
    return [(k, base + v if isinstance(v, str) and v.startswith("/") else v) for k, v in ORDER_OBJECT.items()]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    server.run()
    yield server
    server.stop()


@pytest.fixture
def proxy(upstream: Upstream, tmp_path: Path) -> Iterator[FaultProxy]:
    with FaultProxy(tmp_path / "proxy", f"{upstream.url}/start", seed=7) as proxy:
        yield proxy


@contextmanager
def client_of(proxy: FaultProxy) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.verify = str(proxy.roots_file)
        session.trust_env = False
        yield session


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[requests.Session]:
    with client_of(proxy) as session:
        yield session


def jws(payload: object = None, **protected: object) -> bytes:
    def encoded(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    content = "" if payload is None else encoded(payload)
    return json.dumps({"protected": encoded(protected), "payload": content, "signature": "x"}).encode()


def walk(proxy: FaultProxy, client: requests.Session) -> list[str]:
    """Read what the CA hands out, as an ACME client comes across it."""
    client.get(proxy.url)
    for path in ("/n", "/o", "/o/1", "/z/1", "/h/1", "/f/1", "/c/1", "/c/1/1", "/elsewhere"):
        client.post(proxy.at(f"http://x{path}"), data=jws())
    return [exchange.kind for exchange in proxy.exchanges]


def test_passes_everything_on_with_the_clients_host(
    proxy: FaultProxy, client: requests.Session, upstream: Upstream
) -> None:
    """Method, path, query, body and Host arrive as sent, so that a server's URLs and signatures name the proxy."""
    host = proxy.url.split("/")[2]
    answer = client.patch(proxy.at("http://x/some/thing?a=b"), data=b"body", headers={"X-More": "1"})
    assert (answer.status_code, answer.json()) == (200, {"path": "/some/thing?a=b"})
    assert client.head(proxy.at("http://x/n")).headers["Replay-Nonce"] == "nonce-2"
    assert upstream.asked == [("PATCH", "/some/thing?a=b", host, b"body"), ("HEAD", "/n", host, b"")]
    assert client.get(proxy.url).json()["newOrder"] == f"https://{host}/o"


def test_learns_the_kinds_of_endpoints_from_the_ca(proxy: FaultProxy, client: requests.Session) -> None:
    """Nothing is known of a CA's paths but the directory's; every other kind comes out of its answers."""
    expected = [DIRECTORY, NEW_NONCE, NEW_ORDER, ORDER, AUTHORIZATION, CHALLENGE, FINALIZE, CERTIFICATE, CERTIFICATE]
    assert walk(proxy, client) == [*expected, OTHER]


def test_fixed_paths(upstream: Upstream, tmp_path: Path) -> None:
    """A DNS API's endpoints are told apart by patterns."""
    endpoints = PathEndpoints({"write": r"POST /zones/[^/]+/records", "read": r"GET /zones/.*"})
    with FaultProxy(tmp_path, upstream.url, endpoints=endpoints) as proxy, client_of(proxy) as client:
        proxy.add(faults.answer(503), "write")
        assert client.post(proxy.at("http://x/zones/a/records")).status_code == 503
        assert client.get(proxy.at("http://x/zones/a/records")).status_code == 200
        assert (proxy.count("write"), proxy.count("read"), proxy.count()) == (1, 1, 2)


def test_signed_requests_are_read(proxy: FaultProxy, client: requests.Session) -> None:
    """Payload and protected header of a JWS are there for rules and tests; so are both answers."""
    client.get(proxy.url)
    proxy.add(faults.with_status("invalid"), NEW_ORDER)
    client.post(proxy.at("http://x/o"), data=jws({"identifiers": []}, kid="me"))
    (exchange,) = proxy.seen(NEW_ORDER)
    assert (exchange.payload, exchange.protected) == ({"identifiers": []}, {"kid": "me"})
    assert exchange.served is not None
    assert exchange.told is not None
    assert (exchange.served.json()["status"], exchange.told.json()["status"]) == ("pending", "invalid")
    assert proxy.served(NEW_ORDER) == [exchange]


@pytest.mark.parametrize(
    ("rule", "statuses"),
    [
        pytest.param({}, [503, 201, 201, 201], id="once"),
        pytest.param({"times": 2}, [503, 503, 201, 201], id="twice"),
        pytest.param({"times": None}, [503] * 4, id="for ever"),
        pytest.param({"skip": 2}, [201, 201, 503, 201], id="after two"),
        pytest.param({"method": "GET", "times": None}, [201] * 4, id="another method"),
        pytest.param({"when": lambda exchange: exchange.payload == {"n": 2}}, [201, 201, 503, 201], id="condition"),
    ],
)
def test_when_a_rule_acts(
    proxy: FaultProxy, client: requests.Session, rule: dict[str, Any], statuses: list[int]
) -> None:
    """A rule acts as often as it says, on what it is for."""
    client.get(proxy.url)
    proxy.add(faults.answer(503), NEW_ORDER, **rule)
    assert client.get(proxy.url).status_code == 200
    urls = [proxy.at("http://x/o")] * 4
    assert [client.post(url, data=jws({"n": n})).status_code for n, url in enumerate(urls)] == statuses
    proxy.clear()
    assert client.post(urls[0]).status_code == 201


def test_chance_is_seeded(upstream: Upstream, tmp_path: Path) -> None:
    """The same seed makes the same faults; about as many as were asked for."""

    def fates(folder: Path) -> list[int]:
        with FaultProxy(folder, f"{upstream.url}/start", seed=3) as proxy, client_of(proxy) as client:
            proxy.add(faults.html(), times=None, probability=0.2)
            return [client.get(proxy.url).status_code for _ in range(50)]

    first = fates(tmp_path / "one")
    assert first == fates(tmp_path / "two")
    assert 3 <= first.count(502) <= 20


def test_rules_follow_each_other(proxy: FaultProxy, client: requests.Session, upstream: Upstream) -> None:
    """A rule that forwards hands on to the next that matches, whose answer it may change."""
    proxy.add(faults.altered(lambda body: {**body, "seen": True}), DIRECTORY, times=None)
    proxy.add(faults.answer(200, b'{"made": "up"}'), DIRECTORY)
    assert client.get(proxy.url).json() == {"made": "up", "seen": True}
    assert upstream.asked == []
    assert set(client.get(proxy.url).json()) == {"newNonce", "newOrder", "meta", "seen"}


@pytest.mark.parametrize(
    ("action", "reached"),
    [
        pytest.param(faults.cut(), [], id="cut before"),
        pytest.param(faults.swallowed(), ["/x"], id="answer swallowed"),
        pytest.param(faults.swallowed(timedelta(milliseconds=20)), ["/x"], id="held, then swallowed"),
    ],
)
def test_hanging_up(
    proxy: FaultProxy, client: requests.Session, upstream: Upstream, action: Action, reached: list[str]
) -> None:
    """The client gets no answer at all; whether the server did the work is the difference."""
    proxy.add(action)
    with pytest.raises(requests.ConnectionError):
        client.get(proxy.at("http://x/x"))
    assert upstream.paths() == reached
    assert proxy.exchanges[0].told is None
    assert client.get(proxy.at("http://x/y")).status_code == 200


def test_problem_documents_are_the_cas_own(proxy: FaultProxy, client: requests.Session) -> None:
    """A problem has type, status and Retry-After, and a nonce that the CA really gave."""
    client.get(proxy.url)
    proxy.add(faults.problem("rateLimited", "slow down", status=429, retry_after=timedelta(minutes=2)))
    proxy.add(faults.bad_nonce())
    proxy.add(faults.problem("malformed", retry_after=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)))
    limited, nonce, dated = (client.post(proxy.at("http://x/o")) for _ in range(3))
    assert (limited.status_code, limited.headers["Retry-After"]) == (429, "120")
    assert limited.json()["type"] == "urn:ietf:params:acme:error:rateLimited"
    assert limited.headers["Content-Type"] == "application/problem+json"
    assert limited.headers["Replay-Nonce"].startswith("nonce-")
    assert nonce.json()["type"] == "urn:ietf:params:acme:error:badNonce"
    assert dated.headers["Retry-After"] == "Wed, 02 Jan 2030 03:04:05 GMT"


def test_other_answers(proxy: FaultProxy, client: requests.Session) -> None:
    """Pages of HTML, redirects, other bodies and bodies beyond all measure."""
    proxy.add(faults.html(500))
    proxy.add(faults.redirect("https://elsewhere.test/", 302))
    url = proxy.at("http://x/o/1")
    page, away = (client.post(url, allow_redirects=False) for _ in range(2))
    proxy.add(faults.replaced_body(b"not a chain"))
    other = client.post(url)
    proxy.add(faults.oversized(3_000_000))
    large = client.post(url)
    assert (page.status_code, page.headers["Content-Type"]) == (500, "text/html; charset=utf-8")
    assert (away.status_code, away.headers["Location"]) == (302, "https://elsewhere.test/")
    assert "Replay-Nonce" not in page.headers
    assert other.content == b"not a chain"
    assert (len(large.content), large.json()["status"]) == (3_000_000, "pending")


def test_pending_orders_are_handed_back(proxy: FaultProxy, client: requests.Session, upstream: Upstream) -> None:
    """Boulder's habit: the same names of the same account get the pending order again, until it is seen to be over."""
    client.get(proxy.url)
    reuse = faults.PendingOrderReuse()
    proxy.add(reuse, NEW_ORDER, ORDER, times=None)

    def order(*names: str, kid: str = "me") -> requests.Response:
        wanted = {"identifiers": [{"type": "dns", "value": name} for name in names]}
        return client.post(proxy.at("http://x/o"), data=jws(wanted, kid=kid))

    made, again = order("a.test", "b.test"), order("b.test", "a.test")
    assert (again.status_code, again.headers["Location"]) == (201, made.headers["Location"])
    assert again.headers["Replay-Nonce"] != made.headers["Replay-Nonce"]
    assert (reuse.reused, upstream.paths().count("/o")) == (1, 1)
    order("a.test")
    order("a.test", "b.test", kid="another")
    assert upstream.paths().count("/o") == 3
    proxy.add(faults.with_status("valid"), ORDER)
    client.post(made.headers["Location"], data=jws(kid="me"))
    order("a.test", "b.test")
    assert (reuse.reused, upstream.paths().count("/o")) == (1, 4)


def test_a_server_that_is_away(upstream: Upstream, tmp_path: Path) -> None:
    """Without its server the proxy hangs up, as whatever stands in front of a dead one."""
    with FaultProxy(tmp_path, "http://127.0.0.1:9/dir") as proxy, client_of(proxy) as client:
        with pytest.raises(requests.ConnectionError):
            client.get(proxy.url)
        assert proxy.exchanges[0].served is None
    assert upstream.asked == []


def test_the_end_lets_waiters_go(upstream: Upstream, tmp_path: Path) -> None:
    """A rule that waits for an hour doesn't keep the proxy from ending, nor its client from seeing the end."""
    with FaultProxy(tmp_path, upstream.url) as proxy, client_of(proxy) as client:
        proxy.add(faults.swallowed(timedelta(hours=1)))
        with pytest.raises(requests.ReadTimeout):
            client.get(proxy.at("http://x/y"), timeout=0.3)
    assert upstream.paths() == ["/y"]
