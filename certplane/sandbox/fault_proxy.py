"""A TLS proxy that does to the exchanges of a real server what a test scripts: it is slow, away, wrong or silent.

It stands in front of Pebble, step-ca or the DNS API. The client talks TLS to it and the server gets every request byte
for byte, `Host` included: ACME servers make the URLs that they hand out from `Host` and compare the `url` of each JWS
with it, so that directory, orders and signatures all name the proxy, and nothing has to be rewritten on the way.

A rule says which requests it is for (kind of endpoint, method, how many to pass over, how many times, how likely) and
what becomes of them: an action, of which `faults` has those that CAs are known for. The first rule that matches acts;
when it forwards the request, the rules after it are asked in turn, and the last to be asked is the server.

    with FaultProxy(folder, pebble.directory_url, roots_file=pebble.https_roots_file) as proxy:
        proxy.add(faults.problem("rateLimited", status=429, retry_after="30"), NEW_ORDER, times=2)
        ...
        assert proxy.count(FINALIZE) == 1

Every request is kept in `exchanges`, with what the server said and what the client was told. Real sockets, blocking,
a thread for each connection: it works whatever the client's event loop does.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import random
import select
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import urlsplit, urlunsplit

from certplane.sandbox.acme_endpoints import NEW_NONCE, AcmeEndpoints, Endpoints
from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.exchange import Exchange, Reply
from certplane.sandbox.http_server import LoopbackHandler, LoopbackServer
from certplane.sandbox.https_client import trusting

_UPSTREAM_SECONDS = 30.0
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length"})
_STREAMED = 64 * 1024


class Call:
    """A request in the hands of an action."""

    def __init__(
        self, exchange: Exchange, forward: Callable[[], Reply], proxy: FaultProxy, stopping: threading.Event
    ) -> None:
        self.exchange = exchange
        self.forward = forward
        """Give it to the next rule, or the server, and return the answer."""
        self._proxy, self._stopping = proxy, stopping

    def wait(self, span: timedelta) -> None:
        """Let time pass; the proxy's end cuts it short."""
        self._stopping.wait(span.total_seconds())

    def nonce(self) -> tuple[tuple[str, str], ...]:
        """A fresh nonce of the CA's as a header (RFC 8555 6.5); nothing before the directory was read."""
        return self._proxy.nonce(self.exchange.headers.get("host", ""))


Action = Callable[[Call], Reply | None]
"""Decides what the client is told. None hangs up on it."""


@dataclass(slots=True)
class Rule:
    """When an action acts; `uses` counts how often it did."""

    action: Action
    kinds: frozenset[str]
    method: str | None
    skip: int
    times: int | None
    probability: float
    when: Callable[[Exchange], bool] | None
    uses: int = 0

    def takes(self, exchange: Exchange, rng: random.Random) -> bool:
        """Whether it acts on this one. Counts."""
        if self.kinds and exchange.kind not in self.kinds:
            return False
        if self.method not in {None, exchange.method} or (self.when is not None and not self.when(exchange)):
            return False
        if self.times is not None and self.uses >= self.times:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.probability < 1 and rng.random() >= self.probability:
            return False
        self.uses += 1
        return True


class FaultProxy:
    """The proxy. Use it as a context manager; without rules it changes nothing.

    Attributes:
        exchanges: every request so far, oldest first.
        roots_file: PEM file with the root that its clients must trust.
        endpoints: names the kinds of requests.
    """

    def __init__(
        self,
        folder: Path,
        upstream: str,
        *,
        roots_file: Path | None = None,
        endpoints: Endpoints | None = None,
        seed: int = 0,
    ) -> None:
        """Bind a free port.

        Args:
            folder: for its certificate; made if it isn't there.
            upstream: a URL of the server, of an ACME server that of its directory.
            roots_file: PEM file that the server's HTTPS certificate is checked with; needed for https.
            endpoints: how requests are told apart; default: as an ACME server's.
            seed: of the chance of rules with a probability.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._upstream = urlsplit(upstream)
        self._context = trusting(roots_file) if roots_file is not None else None
        self.endpoints: Endpoints = endpoints or AcmeEndpoints(self._upstream.path)
        self.exchanges: list[Exchange] = []
        self._rules: list[Rule] = []
        self._rng = random.Random(seed)  # noqa: S311 - which request fails is no secret
        self._lock = threading.RLock()  # a rule's condition may ask what was seen
        self._stopping = threading.Event()
        root = CertificateAuthority.root("Fault Proxy Root")
        self.roots_file = folder / "fault-proxy-root.crt"
        self.roots_file.write_bytes(root.pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(*root.issue("fault proxy", ["127.0.0.1", "localhost"]).write(folder, "fault-proxy"))
        self._server = _Server(self, context)

    @property
    def url(self) -> str:
        """The URL that stands for `upstream`: of an ACME server its directory."""
        return self.at(urlunsplit(self._upstream))

    def at(self, url: str) -> str:
        """A URL of the server as its clients reach it through the proxy."""
        return urlunsplit(urlsplit(url)._replace(scheme="https", netloc=f"127.0.0.1:{self._server.server_port}"))

    def __enter__(self) -> Self:
        """Start answering."""
        self._server.run()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; whoever waits in an action is let go."""
        self._stopping.set()
        self._server.stop()

    def add(
        self,
        action: Action,
        *kinds: str,
        method: str | None = None,
        skip: int = 0,
        times: int | None = 1,
        probability: float = 1.0,
        when: Callable[[Exchange], bool] | None = None,
    ) -> Rule:
        """Add a rule after those that there are.

        Args:
            action: what becomes of a request.
            kinds: which endpoints; all if none is named.
            method: of HTTP; any if None.
            skip: matching requests that pass first.
            times: how often it acts; None for ever.
            probability: of acting on a request that matches.
            when: a further condition.
        """
        rule = Rule(action, frozenset(kinds), method, skip, times, probability, when)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget the rules: from now on nothing is changed."""
        with self._lock:
            self._rules.clear()

    def seen(self, *kinds: str) -> list[Exchange]:
        """The exchanges of these kinds so far, oldest first; all if none is named."""
        with self._lock:
            return [exchange for exchange in self.exchanges if not kinds or exchange.kind in kinds]

    def count(self, *kinds: str) -> int:
        """How many requests of these kinds have come."""
        return len(self.seen(*kinds))

    def served(self, *kinds: str) -> list[Exchange]:
        """Those that the server got and answered with success, whatever the client was told."""
        return [e for e in self.seen(*kinds) if e.served is not None and 200 <= e.served.status < 300]

    def nonce(self, host: str) -> tuple[tuple[str, str], ...]:
        """See `Call.nonce`; `host` as in the client's request."""
        path = self.endpoints.path(NEW_NONCE) if isinstance(self.endpoints, AcmeEndpoints) else ""
        if not path:
            return ()
        with contextlib.closing(self.connect()) as connection:
            reply = _forward(connection, "HEAD", path, {"Host": host, "User-Agent": "certplane-sandbox"}, b"")
        return tuple(("Replay-Nonce", value) for value in reply.headers_of("Replay-Nonce"))

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the server, not opened yet."""
        host, port = cast("str", self._upstream.hostname), self._upstream.port
        if self._upstream.scheme == "https":
            return http.client.HTTPSConnection(host, port, context=self._context, timeout=_UPSTREAM_SECONDS)
        return http.client.HTTPConnection(host, port, timeout=_UPSTREAM_SECONDS)

    def handle(self, exchange: Exchange, serve: Callable[[], Reply]) -> Reply | None:
        """Have the rules decide; `serve` asks the server. Called on a connection's thread."""
        with self._lock:
            self.exchanges.append(exchange)
            rules = list(self._rules)

        def ask_server() -> Reply:
            reply = serve()
            exchange.served = reply
            self.endpoints.learn(exchange.kind, reply)
            return reply

        return self._from_rule(exchange, rules, ask_server)

    def _from_rule(self, exchange: Exchange, rules: Sequence[Rule], ask_server: Callable[[], Reply]) -> Reply | None:
        for index, rule in enumerate(rules):
            with self._lock:
                acts = rule.takes(exchange, self._rng)
            if acts:
                following = partial(self._from_next, exchange, rules[index + 1 :], ask_server)
                return rule.action(Call(exchange, following, self, self._stopping))
        return ask_server()

    def _from_next(self, exchange: Exchange, rules: Sequence[Rule], ask_server: Callable[[], Reply]) -> Reply:
        reply = self._from_rule(exchange, rules, ask_server)
        if reply is None:
            raise _HungUpError
        return reply


class _HungUpError(Exception):
    """A later rule hung up; an earlier one can't answer any more."""


class _Server(LoopbackServer):
    def __init__(self, proxy: FaultProxy, context: ssl.SSLContext) -> None:
        super().__init__("the fault proxy", 0, _Handler, context)
        self.proxy = proxy


class _Handler(LoopbackHandler):
    """One client's connection, with one of its own to the server."""

    def setup(self) -> None:
        self._upstream: http.client.HTTPConnection | None = None
        super().setup()

    def finish(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
        super().finish()

    def do_HEAD(self) -> None:  # noqa: N802 - the base class calls it by this name
        self.reply("HEAD")

    def do_PUT(self) -> None:  # noqa: N802 - as above
        self.reply("PUT")

    def do_PATCH(self) -> None:  # noqa: N802 - as above
        self.reply("PATCH")

    def reply(self, method: str) -> None:
        proxy = cast("_Server", self.server).proxy
        body = self.body()
        protected, payload = _read_body(body)
        exchange = Exchange(
            kind=proxy.endpoints.kind(method, urlsplit(self.path).path),
            method=method,
            path=self.path,
            headers={name.lower(): value for name, value in self.headers.items()},
            protected=protected,
            payload=payload,
            at=time.monotonic(),
        )
        try:
            told = proxy.handle(exchange, lambda: self._serve(proxy, method, body))
        except (_HungUpError, OSError, http.client.HTTPException):
            told = None  # the server is away: so is whoever stands in front of it
        if told is None:
            self.close_connection = True
            return
        exchange.told = told
        try:
            self._tell(method, told)
        except OSError:  # the client has gone
            self.close_connection = True

    def _serve(self, proxy: FaultProxy, method: str, body: bytes) -> Reply:
        if self._upstream is not None and _has_ended(self._upstream):
            self._upstream.close()
            self._upstream = None
        if self._upstream is None:
            self._upstream = proxy.connect()
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        try:
            return _forward(self._upstream, method, self.path, headers, body)
        except (OSError, http.client.HTTPException):
            self._upstream.close()
            self._upstream = None
            raise

    def _tell(self, method: str, reply: Reply) -> None:
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body) + reply.padding))
        self.end_headers()
        if method == "HEAD":
            return
        self.wfile.write(reply.body)
        left = reply.padding
        while left > 0:
            self.wfile.write(b" " * min(left, _STREAMED))
            left -= _STREAMED


def _forward(
    connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str], body: bytes
) -> Reply:
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    if body or method in {"POST", "PUT", "PATCH"}:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    answer = connection.getresponse()
    content = answer.read()
    kept = tuple((name, value) for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP)
    return Reply(answer.status, kept, content)


def _has_ended(connection: http.client.HTTPConnection) -> bool:
    """Whether the server has closed an idle connection: then nothing may be sent on it, not even tried."""
    if connection.sock is None:
        return False  # it opens itself
    readable, _, _ = select.select([connection.sock], [], [], 0)
    return bool(readable)


def _read_body(body: bytes) -> tuple[dict[str, Any], Any]:
    """The protected header and the payload of a JWS; of other JSON, nothing and the JSON."""
    try:
        content = json.loads(body) if body else None
        if not isinstance(content, dict) or "protected" not in content:
            return {}, content
        payload = _decoded(content["payload"])
        return json.loads(_decoded(content["protected"])), json.loads(payload) if payload else None
    except (ValueError, KeyError, TypeError):
        return {}, None


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
