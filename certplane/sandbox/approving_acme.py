"""An ACME CA that asks for no proof: it knows beforehand which names an account may have certificates for.

So do the endpoints that CAs run for customers with a contract: an account is bound to the customer (RFC 8555 7.3.4),
the names were approved elsewhere, an order has no `authorizations`, and a certificate may take many minutes. No server
that can be had behaves so, hence this one. It checks what such an endpoint checks: nonces, URLs and signatures of
requests, the binding, and the names.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import ssl
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from acme.jws import JWS
from cryptography import x509
from josepy.errors import Error as JoseError
from josepy.jwk import JWK

from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.http_server import LoopbackHandler, LoopbackServer
from certplane.sandbox.loopback import LOOPBACK

_URN = "urn:ietf:params:acme:error:"
_JSON, _PROBLEM, _CHAIN = "application/json", "application/problem+json", "application/pem-certificate-chain"
_SERVED = ("newNonce", "newAccount", "newOrder", "revokeCert")


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    body: bytes
    kind: str = _JSON
    headers: tuple[tuple[str, str], ...] = ()


class _RefusedError(Exception):
    """A problem document in place of the answer (RFC 8555 6.7)."""

    def __init__(self, kind: str, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        body = {"type": f"{_URN}{kind}", "detail": detail, "status": status}
        self.reply = _Reply(status, json.dumps(body).encode(), _PROBLEM)


@dataclass(slots=True)
class ApprovedOrder:
    """An order; `looks` counts how often it was shown as unfinished since its status changed."""

    names: tuple[str, ...]
    account: str
    status: str = "ready"
    looks: int = 0
    chain: bytes = b""


@dataclass(slots=True)
class _State:
    nonces: set[str] = field(default_factory=set)
    accounts: dict[str, JWK] = field(default_factory=dict)
    bound: dict[str, str] = field(default_factory=dict)
    """Key ids of external accounts by account."""
    orders: dict[str, ApprovedOrder] = field(default_factory=dict)
    revoked: list[int] = field(default_factory=list)


class ApprovingAcme:
    """The CA. Use it as a context manager.

    Attributes:
        approved: the names that its accounts may have certificates for; may be changed while it runs. An order with
            another one stays pending, with an authorization that nobody can meet.
        looks_until_ready: how often an order is shown as pending before its names are found to be approved.
        looks_until_valid: how often a finalised order is shown as processing.
        retry_after: seconds that it asks to be left alone for with each unfinished order.
    """

    def __init__(
        self,
        folder: Path,
        approved: Collection[str],
        *,
        external_accounts: Mapping[str, str] | None = None,
        looks_until_ready: int = 0,
        looks_until_valid: int = 0,
        retry_after: int | None = None,
    ) -> None:
        """Bind a port.

        Args:
            folder: where its HTTPS certificate goes.
            approved: see above.
            external_accounts: key id -> MAC key, base64url; when not empty, accounts must be bound to one.
            looks_until_ready: see above.
            looks_until_valid: see above.
            retry_after: see above.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.approved = set(approved)
        self.looks_until_ready, self.looks_until_valid = looks_until_ready, looks_until_valid
        self.retry_after = retry_after
        self._external = dict(external_accounts or {})
        self._state, self._lock = _State(), threading.Lock()
        self._issuing = CertificateAuthority.root("Approving Root").intermediate("Approving Issuing CA")
        https = CertificateAuthority.root("Approving CA's HTTPS root")
        self.https_roots_file = folder / "https-root.crt"
        self.https_roots_file.write_bytes(https.pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*https.issue("Approving CA", [LOOPBACK]).write(folder, "https"))
        self._server = _Server(self, context)
        self._url = f"https://{LOOPBACK}:{self._server.server_port}"

    @property
    def directory_url(self) -> str:
        """The ACME directory."""
        return f"{self._url}/directory"

    @property
    def orders(self) -> list[ApprovedOrder]:
        """All orders, oldest first."""
        return list(self._state.orders.values())

    @property
    def bound_accounts(self) -> list[str]:
        """Key ids of the external accounts that accounts are bound to."""
        return list(self._state.bound.values())

    @property
    def revoked(self) -> list[int]:
        """Serial numbers."""
        return list(self._state.revoked)

    def __enter__(self) -> Self:
        """Start answering."""
        self._server.run()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._server.stop()

    # What follows runs on the server's threads, one request at a time.

    def reply(self, handler: _Handler, method: str) -> None:
        """Answer one request."""
        body = handler.body()
        with self._lock:
            try:
                answer = self._serve(method, handler.path, body)
            except _RefusedError as error:
                answer = error.reply
            nonce = secrets.token_urlsafe(16)
            self._state.nonces.add(nonce)
        handler.answer(answer.status, answer.body, answer.kind, (*answer.headers, ("Replay-Nonce", nonce)))

    def _serve(self, method: str, path: str, body: bytes) -> _Reply:
        if path == "/directory":
            urls: dict[str, object] = {name: f"{self._url}/{name}" for name in _SERVED}
            meta = {"externalAccountRequired": bool(self._external), "caaIdentities": ["approving.test"]}
            return _reply(urls | {"meta": meta})
        if path == "/newNonce":
            return _Reply(200, b"")
        if method != "POST":
            raise _RefusedError("malformed", "POST is wanted", 405)
        account, payload = self._authenticated(path, body)
        match path.strip("/").split("/"):
            case ["newAccount"]:
                return self._account(account, payload)
            case ["newOrder"]:
                return self._new_order(account, payload)
            case ["revokeCert"]:
                certificate = x509.load_der_x509_certificate(_decode(payload["certificate"]))
                self._state.revoked.append(certificate.serial_number)
                return _Reply(200, b"")
            case [kind, number] if (order := self._state.orders.get(number)) and order.account == account:
                return self._of_order(kind, number, order, payload)
            case _:
                raise _RefusedError("malformed", "there is no such thing", 404)

    def _authenticated(self, path: str, body: bytes) -> tuple[str, Any]:
        """The account that has signed, or for newAccount the key in its place, and what it says (RFC 8555 6.2)."""
        try:
            signed = JWS.from_json(json.loads(body))
            header = signed.signature.combined
            key = self._state.accounts.get(header.kid or "") if header.jwk is None else header.jwk
            if key is None:
                raise _RefusedError("accountDoesNotExist", "the account isn't known")
            if not signed.verify(key):
                raise _RefusedError("malformed", "the signature is bad", 403)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise _RefusedError("malformed", f"no signed request ({type(error).__name__})") from error
        nonce = base64.urlsafe_b64encode(header.nonce or b"").decode().rstrip("=")
        if nonce not in self._state.nonces:
            raise _RefusedError("badNonce", "the nonce isn't one of the server's")
        self._state.nonces.discard(nonce)
        if header.url != self._url + path:
            raise _RefusedError("unauthorized", "the request is signed for another URL", 403)
        payload = json.loads(signed.payload) if signed.payload else None
        if header.jwk is not None:
            if path != "/newAccount":
                raise _RefusedError("malformed", "an account is wanted")
            return json.dumps(header.jwk.public_key().to_partial_json(), sort_keys=True), payload
        return str(header.kid), payload

    def _account(self, key: str, payload: dict[str, Any]) -> _Reply:
        url = f"{self._url}/account/{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        if known := url in self._state.accounts:
            pass
        elif payload.get("onlyReturnExisting"):
            raise _RefusedError("accountDoesNotExist", "there is no account with this key")
        else:
            self._bind(url, key, payload.get("externalAccountBinding"))
            self._state.accounts[url] = cast("JWK", JWK.from_json(json.loads(key)))
        body = {"status": "valid", "contact": payload.get("contact", [])}
        return _reply(body, 200 if known else 201, Location=url)

    def _bind(self, account: str, key: str, binding: dict[str, str] | None) -> None:
        """Check the binding: a MAC over the account's key, by the customer's (RFC 8555 7.3.4)."""
        if not self._external:
            return
        if binding is None:
            raise _RefusedError("externalAccountRequired", "accounts are bound to customers here", 403)
        header = json.loads(_decode(binding["protected"]))
        mac_key = self._external.get(header["kid"])
        signed = f"{binding['protected']}.{binding['payload']}".encode()
        good = mac_key is not None and hmac.compare_digest(
            hmac.new(_decode(mac_key), signed, hashlib.sha256).digest(), _decode(binding["signature"])
        )
        if not good or header["alg"] != "HS256" or header["url"] != f"{self._url}/newAccount":
            raise _RefusedError("unauthorized", "the external account binding is bad", 403)
        if json.dumps(json.loads(_decode(binding["payload"])), sort_keys=True) != key:
            raise _RefusedError("unauthorized", "the external account binding is for another key", 403)
        self._state.bound[account] = header["kid"]

    def _new_order(self, account: str, payload: dict[str, Any]) -> _Reply:
        names = tuple(entry["value"] for entry in payload["identifiers"])
        number = str(len(self._state.orders) + 1)
        waits = self.looks_until_ready > 0 or not self._may_have(names)
        order = ApprovedOrder(names, account, "pending" if waits else "ready")
        self._state.orders[number] = order
        return self._shown(number, order, 201)

    def _may_have(self, names: Collection[str]) -> bool:
        return self.approved.issuperset(names)

    def _of_order(self, kind: str, number: str, order: ApprovedOrder, payload: Any) -> _Reply:
        if kind == "order":
            self._advance(order)
            return self._shown(number, order)
        if kind == "authorization":  # of the names that nobody has approved
            lacking = sorted(set(order.names) - self.approved) or order.names
            identifier = {"type": "dns", "value": lacking[0].removeprefix("*.")}
            return _reply({"status": "pending", "identifier": identifier, "challenges": []})
        if kind == "finalize":
            if order.status != "ready":
                raise _RefusedError("orderNotReady", f"the order is {order.status}", 403)
            csr = x509.load_der_x509_csr(_decode(payload["csr"]))
            leaf = _PublicKeyOnly(csr.public_key())
            order.chain = self._issuing.issue("", order.names, key=cast("Any", leaf)).chain_pem
            order.status, order.looks = "processing", 0
            if not self.looks_until_valid:
                order.status = "valid"
            return self._shown(number, order)
        if kind == "certificate" and order.status == "valid":
            return _Reply(200, order.chain, _CHAIN)
        raise _RefusedError("malformed", "there is no such thing", 404)

    def _advance(self, order: ApprovedOrder) -> None:
        order.looks += 1
        if order.status == "pending" and order.looks >= self.looks_until_ready and self._may_have(order.names):
            order.status, order.looks = "ready", 0
        elif order.status == "processing" and order.looks >= self.looks_until_valid:
            order.status, order.looks = "valid", 0

    def _shown(self, number: str, order: ApprovedOrder, status: int = 200) -> _Reply:
        """As such CAs show one: `authorizations` only where a name isn't approved."""
        shown: dict[str, object] = {
            "status": order.status,
            "identifiers": [{"type": "dns", "value": name} for name in order.names],
            "finalize": f"{self._url}/finalize/{number}",
        }
        if order.status == "pending" and not self._may_have(order.names):
            shown["authorizations"] = [f"{self._url}/authorization/{number}"]
        if order.status == "valid":
            shown["certificate"] = f"{self._url}/certificate/{number}"
        unfinished = order.status in {"pending", "processing"} and self.retry_after is not None
        headers = {"Retry-After": str(self.retry_after)} if unfinished else {}
        return _reply(shown, status, Location=f"{self._url}/order/{number}", **headers)


class _PublicKeyOnly:
    """A key of which only the public half is here: what `CertificateAuthority.issue` asks of it."""

    def __init__(self, public_key: object) -> None:
        self._public_key = public_key

    def public_key(self) -> object:
        return self._public_key


class _Server(LoopbackServer):
    def __init__(self, ca: ApprovingAcme, context: ssl.SSLContext) -> None:
        super().__init__("the approving ACME CA", 0, _Handler, context)
        self.ca = ca


class _Handler(LoopbackHandler):
    def reply(self, method: str) -> None:
        cast("_Server", self.server).ca.reply(self, method)

    def do_HEAD(self) -> None:  # noqa: N802 - the base class calls it by this name
        self.reply("HEAD")


def _reply(body: Mapping[str, object], status: int = 200, **headers: str) -> _Reply:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return _Reply(status, json.dumps(body).encode(), _JSON, named)


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
