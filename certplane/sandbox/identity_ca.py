"""The sandbox's own identity CA: step-ca's HTTPS interface, as far as an agent uses it, where there is no step-ca.

An agent runs the same code against either. Served, with and without the prefix /1.0: GET /health, /version,
/root/{sha}, /roots, /roots.pem, /intermediates, /provisioners; POST /sign, /renew, /rekey, /revoke.
`identity_authority` decides; here are the HTTP and the TLS: a client certificate is asked for, not demanded, and one
that doesn't verify breaks the handshake.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from typing_extensions import override

from certplane.runtime.clock import Clock, SystemClock
from certplane.sandbox.http_server import LoopbackHandler, LoopbackServer
from certplane.sandbox.identity_authority import IdentityAuthority
from certplane.sandbox.identity_pki import IdentityCaClient, IdentityPki, IdentityRules
from certplane.sandbox.identity_requests import RefusedError, bad_request
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.ports import X5C_PROVISIONER

_NAMES = (LOOPBACK, "localhost")
_TLS_OPTIONS = {
    "cipherSuites": ["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"],
    "minVersion": 1.2,
    "maxVersion": 1.3,
    "renegotiation": False,
}


class SandboxIdentityCa(IdentityCaClient):
    """An `IdentityCa` played by the sandbox itself.

    Attributes:
        requests: method and path of each request that was answered, oldest first.
    """

    def __init__(
        self,
        folder: Path,
        rules: IdentityRules | None = None,
        *,
        pki: IdentityPki | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            folder: the root, and the server's own key.
            rules: how long identities live and what may be renewed.
            pki: keys; new ones by default.
            clock: what the CA takes the time from.
        """
        super().__init__(pki or IdentityPki(), rules or IdentityRules(), folder, clock)
        self.requests: list[str] = []
        self._authority = IdentityAuthority(self._pki, self._rules, clock or SystemClock(), _NAMES)
        self._server: _Server | None = None

    async def __aenter__(self) -> Self:
        """Start it; it answers when this returns."""
        self._server = self._serve(0)
        self._url = f"https://{LOOPBACK}:{self._server.server_port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    @override
    async def restart(self) -> None:
        if self._server is None:
            raise RuntimeError("the identity CA was not started")
        port = self._server.server_port
        self._server.stop()
        self._authority.restarted()
        self._server = self._serve(port)

    def _serve(self, port: int) -> _Server:
        credential = self._pki.intermediate.issue("Certplane Sandbox CA", _NAMES)
        certificate, key = credential.write(self._folder, "server")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key)
        context.verify_mode = ssl.CERT_OPTIONAL
        # The intermediate too, for clients that send their leaf alone, as step-ca does.
        context.load_verify_locations(cadata=(self._pki.root.pem + self._pki.intermediate.pem).decode())
        server = _Server(port, context, self._authority, self._pki, self.requests)
        server.run()
        return server


class _Server(LoopbackServer):
    def __init__(
        self, port: int, context: ssl.SSLContext, authority: IdentityAuthority, pki: IdentityPki, requests: list[str]
    ) -> None:
        super().__init__("the sandbox's identity CA", port, _Handler, context)
        self.authority = authority
        self.pki = pki
        self.requests = requests


class _Handler(LoopbackHandler):
    def reply(self, method: str) -> None:
        """See `LoopbackHandler.reply`."""
        server = cast("_Server", self.server)
        path = re.sub(r"^/1\.0(?=/)", "", self.path.partition("?")[0])
        server.requests.append(f"{method} {path}")
        body = self.body()
        route = next((route for pattern, route in _ROUTES if re.fullmatch(pattern, path)), None)
        if route is None:
            self.answer(404, b"404 page not found\n", "text/plain; charset=utf-8")
            return
        if method not in route:
            self.answer(405, b"", None, [("Allow", ", ".join(route))])
            return
        der = self.peer_certificate()
        peer = x509.load_der_x509_certificate(der) if der else None
        scheme, _, bearer = self.headers.get("Authorization", "").partition(" ")
        asked = _Asked(server.authority, server.pki, path, body, peer, bearer if scheme == "Bearer" else None)
        try:
            status, content = route[method](asked)
        except RefusedError as refusal:
            status, content = refusal.status, {"status": refusal.status, "message": refusal.message}
        if isinstance(content, bytes):
            self.answer(status, content, "application/x-pem-file")
        else:
            self.answer(status, json.dumps(content, separators=(",", ":")).encode() + b"\n", "application/json")


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request: who answers it, and what came."""

    authority: IdentityAuthority
    pki: IdentityPki
    path: str
    body: bytes
    peer: x509.Certificate | None
    bearer: str | None


_Reply = tuple[int, dict[str, Any] | bytes]


def _health(_: _Asked) -> _Reply:
    return 200, {"status": "ok"}


def _version(_: _Asked) -> _Reply:
    return 200, {"version": "sandbox"}


def _root(asked: _Asked) -> _Reply:
    wanted = asked.path.removeprefix("/root/").replace("-", "").lower()
    if wanted != asked.pki.root.fingerprint:
        raise RefusedError(404, f'root certificate with fingerprint "{wanted}" was not found')
    return 200, {"ca": asked.pki.root.pem.decode()}


def _roots(asked: _Asked) -> _Reply:
    return 201, {"crts": [asked.pki.root.pem.decode()]}


def _roots_pem(asked: _Asked) -> _Reply:
    return 200, asked.pki.root.pem


def _intermediates(asked: _Asked) -> _Reply:
    return 201, {"crts": [asked.pki.intermediate.pem.decode()]}


def _provisioners(asked: _Asked) -> _Reply:
    jwk = [{"type": "JWK", "name": name, "key": key.public_jwk} for name, key in asked.pki.jwk_keys.items()]
    roots = base64.b64encode(asked.pki.x5c_authority.pem).decode()
    return 200, {"provisioners": [*jwk, {"type": "X5C", "name": X5C_PROVISIONER, "roots": roots}], "nextCursor": ""}


def _sign(asked: _Asked) -> _Reply:
    return 201, _signed(asked.authority.sign(asked.body))


def _renew(asked: _Asked) -> _Reply:
    leaf = asked.peer
    if leaf is None:
        if asked.bearer is None:
            raise bad_request("missing client certificate")
        leaf = asked.authority.leaf_of_renewal_token(asked.bearer)
    return 201, _signed(asked.authority.renew(leaf))


def _rekey(asked: _Asked) -> _Reply:
    if asked.peer is None:
        raise bad_request("missing client certificate")
    return 201, _signed(asked.authority.rekey(asked.peer, asked.body))


def _revoke(asked: _Asked) -> _Reply:
    asked.authority.revoke(asked.body, asked.peer)
    return 200, {"status": "ok"}


_ROUTES: tuple[tuple[str, dict[str, Callable[[_Asked], _Reply]]], ...] = (
    (r"/health", {"GET": _health}),
    (r"/version", {"GET": _version}),
    (r"/root/[^/]+", {"GET": _root}),
    (r"/roots", {"GET": _roots}),
    (r"/roots\.pem", {"GET": _roots_pem}),
    (r"/intermediates", {"GET": _intermediates}),
    (r"/provisioners", {"GET": _provisioners}),
    (r"/sign", {"POST": _sign}),
    (r"/renew", {"POST": _renew}),
    (r"/rekey", {"POST": _rekey}),
    (r"/revoke", {"POST": _revoke}),
)


def _signed(chain: list[x509.Certificate]) -> dict[str, Any]:
    pems = [certificate.public_bytes(Encoding.PEM).decode() for certificate in chain]
    return {"crt": pems[0], "ca": pems[1], "certChain": pems, "tlsOptions": _TLS_OPTIONS}
