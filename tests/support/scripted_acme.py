"""An ACME CA on loopback that does to its clients what a test scripts: lost answers, bad nonces, pages of HTML.

It keeps the protocol of RFC 8555 as far as a client can see it, nonces and signatures' headers included, but validates
nothing: a challenge that is answered is met. For everything else there is Pebble.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

from cryptography import x509

from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.http_server import LoopbackHandler, LoopbackServer

_URN = "urn:ietf:params:acme:error:"


@dataclass(frozen=True)
class Answer:
    """What is sent instead of the CA's own answer.

    `lost` hangs up without an answer; `after` does the work first. `raw` is sent as it is, headers and all.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    lost: bool = False
    after: bool = False
    raw: bytes = b""
    delay: float = 0.0


def problem(kind: str, detail: str = "it said so", status: int = 400, *, retry_after: str = "", **more: Any) -> Answer:
    """A problem document of the type `kind`."""
    body = json.dumps({"type": f"{_URN}{kind}", "detail": detail, "status": status, **more}).encode()
    headers = (("Retry-After", retry_after),) if retry_after else ()
    return Answer(status, body, "application/problem+json", headers)


@dataclass(frozen=True)
class Request:
    """A request that arrived: the payload is that of the JWS, None for POST-as-GET."""

    method: str
    path: str
    payload: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class _Order:
    number: int
    names: list[str]
    status: str = "pending"
    csr: bytes = b""
    answered: set[int] = field(default_factory=set)


class ScriptedAcme:
    """The CA. Use it as a context manager; `fail` scripts what goes wrong.

    Attributes:
        requests: what arrived, in order.
        slow_looks: how often a finalised order is still shown as processing.
        validation: status of an authorization whose challenge was answered; "processing" is of the challenge alone.
        retry_after: value of Retry-After on orders.
        alternates: how many further chains a certificate has.
        renewal_info: the directory names a renewalInfo URL; what is asked there has to be scripted.
        profiles: what the directory says of certificate profiles.
        extra_identifier: a name that new orders have beyond those that were asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.requests: list[Request] = []
        self.orders: dict[int, _Order] = {}
        self.slow_looks = 0
        self.validation = "valid"
        self.retry_after = ""
        self.alternates = 0
        self.extra_identifier = ""
        self.renewal_info = False
        self.profiles: dict[str, object] = {"classic": "As ever", "tlsserver": "Without the rest"}
        self.accounts: dict[str, int] = {}
        self.issuers = [CertificateAuthority.root(f"Scripted Root {number}") for number in range(3)]
        self._nonces: set[str] = set()
        self._script: list[tuple[re.Pattern[str], Answer]] = []
        self._lock = threading.Lock()
        self._leaves: dict[int, list[str]] = {}
        https = CertificateAuthority.root("Scripted ACME")
        self.roots_file = folder / "acme-root.crt"
        self.roots_file.write_bytes(https.pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*https.issue("127.0.0.1", ["127.0.0.1"]).write(folder, "acme"))
        self._server = _Server(self, context)
        self.url = f"https://127.0.0.1:{self._server.server_port}"
        self.directory_url = f"{self.url}/directory"

    def __enter__(self) -> Self:
        self._server.run()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def fail(self, pattern: str, *answers: Answer) -> None:
        """Give these answers to the next requests that match `METHOD /path` (a regular expression for the whole)."""
        self._script += [(re.compile(pattern), answer) for answer in answers]

    @property
    def asked(self) -> list[Request]:
        """What arrived, but for looks at the directory: a broker looks when it starts, whoever asks for what."""
        return [seen for seen in self.requests if (seen.method, seen.path) != ("GET", "/directory")]

    def count(self, pattern: str) -> int:
        """How many requests matched `METHOD /path`."""
        return sum(re.fullmatch(pattern, f"{seen.method} {seen.path}") is not None for seen in self.requests)

    @property
    def csrs(self) -> int:
        """CSRs that the CA took."""
        return sum(bool(order.csr) for order in self.orders.values())

    def chains(self, order: int) -> list[str]:
        """The default chain of an order's certificate, and its alternates, in PEM."""
        return self._leaves[order]

    # What follows runs on the server's threads, one request at a time.

    def reply(self, handler: _Handler, method: str) -> None:
        with self._lock:
            delay = self._reply(handler, method)
        if delay is not None:
            delay()

    def _reply(self, handler: _Handler, method: str) -> Callable[[], None] | None:
        path, body = handler.path, handler.body()
        header, payload = _jws(body)
        self.requests.append(Request(method, path, payload, {k.lower(): v for k, v in handler.headers.items()}))
        scripted = self._take(f"{method} {path}")
        own = (404, b"", ())
        if scripted is None or scripted.after:
            own = self._serve(method, path, header, payload)
        if scripted is None:
            status, content, headers = own
            kind = "application/problem+json" if status >= 400 else "application/json"
            kind = "application/pem-certificate-chain" if content.startswith(b"-----") else kind
            return lambda: handler.answer(status, content, kind, (*headers, self._nonce()))
        return lambda: self._send(handler, scripted)

    def _send(self, handler: _Handler, scripted: Answer) -> None:
        if scripted.delay:
            threading.Event().wait(scripted.delay)
        if scripted.lost:
            handler.close_connection = True
        elif scripted.raw:
            handler.close_connection = True
            handler.wfile.write(scripted.raw)
        else:
            # A page of HTML comes from something in front of the CA, which knows no nonces.
            nonce = () if scripted.content_type == "text/html" else (self._nonce(),)
            handler.answer(scripted.status, scripted.body, scripted.content_type, (*scripted.headers, *nonce))

    def _take(self, request: str) -> Answer | None:
        for index, (pattern, answer) in enumerate(self._script):
            if pattern.fullmatch(request):
                del self._script[index]
                return answer
        return None

    def _nonce(self) -> tuple[str, str]:
        nonce = secrets.token_urlsafe(12)
        self._nonces.add(nonce)
        return ("Replay-Nonce", nonce)

    def _serve(self, method: str, path: str, header: dict[str, Any], payload: Any) -> _Reply:
        if path == "/directory":
            names = ["newNonce", "newAccount", "newOrder", "revokeCert"]
            names += ["renewalInfo"] if self.renewal_info else []
            urls: dict[str, Any] = {name: f"{self.url}/{name}" for name in names}
            return 200, _dump({**urls, "meta": {"profiles": self.profiles}}), ()
        if path == "/newNonce":
            return 200, b"", ()
        if header.get("nonce") not in self._nonces or header.get("url") != self.url + path:
            return _refuse("badNonce", 400)
        self._nonces.discard(header["nonce"])
        if path == "/newAccount":
            return self._account(json.dumps(header["jwk"], sort_keys=True))
        if header.get("kid") not in {f"{self.url}/account/{number}" for number in self.accounts.values()}:
            return _refuse("accountDoesNotExist", 400)
        return self._serve_account(path, payload)

    def _serve_account(self, path: str, payload: Any) -> _Reply:
        if path == "/newOrder":
            return self._new_order(payload)
        if path == "/revokeCert":
            return 200, b"", ()
        kind, number, *rest = path.strip("/").split("/")
        order = self.orders.get(int(number))
        if order is None:
            return _refuse("malformed", 404)
        serve = {
            "order": self._show,
            "authz": self._authorization,
            "challenge": self._challenge,
            "finalize": self._finalize,
            "cert": self._certificate,
        }[kind]
        return serve(order, payload, *(int(part) for part in rest))

    def _account(self, key: str) -> _Reply:
        status = 200 if key in self.accounts else 201
        number = self.accounts.setdefault(key, len(self.accounts) + 1)
        return status, _dump({"status": "valid"}), (("Location", f"{self.url}/account/{number}"),)

    def _new_order(self, payload: dict[str, Any]) -> _Reply:
        names = [entry["value"] for entry in payload["identifiers"]]
        if self.extra_identifier:
            names.append(self.extra_identifier)
        order = _Order(len(self.orders) + 1, names)
        self.orders[order.number] = order
        _, body, _ = self._show(order, None)
        return 201, body, (("Location", f"{self.url}/order/{order.number}"),)

    def _show(self, order: _Order, _payload: Any) -> _Reply:
        if order.status == "processing":
            if not self.slow_looks:
                order.status = "valid"
            self.slow_looks = max(0, self.slow_looks - 1)
        shown = {
            "status": order.status,
            "identifiers": [{"type": "dns", "value": name} for name in order.names],
            "authorizations": [f"{self.url}/authz/{order.number}/{index}" for index in range(len(order.names))],
            "finalize": f"{self.url}/finalize/{order.number}",
        }
        if order.status == "valid":
            shown["certificate"] = f"{self.url}/cert/{order.number}"
        headers = (("Retry-After", self.retry_after),) if self.retry_after else ()
        return 200, _dump(shown), headers

    def _authorization(self, order: _Order, _payload: Any, index: int) -> _Reply:
        challenge = {
            "type": "dns-01",
            "url": f"{self.url}/challenge/{order.number}/{index}",
            "token": f"token-{order.number:04}-{index:04}-01234567",
            "status": "pending",
        }
        status = self.validation if index in order.answered else "pending"
        if status == "invalid":
            error = {"type": f"{_URN}unauthorized", "detail": "Incorrect TXT record\x1b[31m found", "status": 403}
            challenge |= {"status": "invalid", "error": error}
        elif status == "processing":  # RFC 8555 7.1.6: until it is validated the authorization is pending
            challenge["status"], status = "processing", "pending"
        shown = {
            "status": status,
            "identifier": {"type": "dns", "value": order.names[index].removeprefix("*.")},
            "challenges": [{"type": "http-01", "url": "x", "token": "y", "status": "pending"}, challenge],
        }
        return 200, _dump(shown), ()

    def _challenge(self, order: _Order, payload: Any, index: int) -> _Reply:
        if payload is None:
            return _refuse("malformed", 400)  # a POST-as-GET starts nothing
        if index in order.answered:
            return _refuse("malformed", 400)
        order.answered.add(index)
        if self.validation == "invalid":
            order.status = "invalid"
        elif len(order.answered) == len(order.names):
            order.status = "ready"
        return 200, _dump({"type": "dns-01", "status": "processing"}), ()

    def _finalize(self, order: _Order, payload: Any) -> _Reply:
        if order.status != "ready":
            return _refuse("orderNotReady", 403)
        order.csr = _decode(payload["csr"])
        order.status = "processing"
        csr = x509.load_der_x509_csr(order.csr)
        key = cast("Any", csr.public_key())
        self._leaves[order.number] = []
        for root in self.issuers[: self.alternates + 1]:
            intermediate = root.intermediate("Scripted Intermediate")
            leaf = _Leaf(key)
            issued = intermediate.issue("", order.names, key=cast("Any", leaf))
            self._leaves[order.number].append(issued.chain_pem.decode())
        return self._show_processing(order)

    def _show_processing(self, order: _Order) -> _Reply:
        shown = {
            "status": "processing",
            "authorizations": [],
            "finalize": f"{self.url}/finalize/{order.number}",
        }
        return 200, _dump(shown), ()

    def _certificate(self, order: _Order, _payload: Any, chain: int = 0) -> _Reply:
        links = tuple(
            ("Link", f'<{self.url}/cert/{order.number}/{number}>;rel="alternate"')
            for number in range(1, self.alternates + 1)
        )
        return 200, self._leaves[order.number][chain].encode(), links


class _Leaf:
    """A key of which only the public half is here: what `CertificateAuthority.issue` asks of it."""

    def __init__(self, public_key: Any) -> None:
        self._public_key = public_key

    def public_key(self) -> Any:
        return self._public_key


_Reply = tuple[int, bytes, tuple[tuple[str, str], ...]]


class _Server(LoopbackServer):
    def __init__(self, ca: ScriptedAcme, context: ssl.SSLContext) -> None:
        super().__init__("the scripted ACME CA", 0, _Handler, context)
        self.ca = ca


class _Handler(LoopbackHandler):
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait 40 ms for the peer's ACK

    def reply(self, method: str) -> None:
        cast("_Server", self.server).ca.reply(self, method)

    def do_HEAD(self) -> None:  # noqa: N802 - the base class calls it by this name
        self.reply("HEAD")


def _jws(body: bytes) -> tuple[dict[str, Any], Any]:
    if not body:
        return {}, None
    jws = json.loads(body)
    payload = _decode(jws["payload"])
    return json.loads(_decode(jws["protected"])), json.loads(payload) if payload else None


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def _refuse(kind: str, status: int) -> _Reply:
    return status, _dump({"type": f"{_URN}{kind}", "detail": kind, "status": status}), ()
