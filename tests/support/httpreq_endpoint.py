"""An endpoint of the httpreq protocol on loopback that writes into a DNS server, as an operator's own would."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Self, cast

from certplane.sandbox.dns_endpoint import DnsEndpoint
from certplane.sandbox.http_server import LoopbackHandler, LoopbackServer


@dataclass
class HttpreqServer:
    """Plain HTTP on loopback; use it as a context manager.

    Attributes:
        dns: where records are written; None to write nothing.
        credentials: user and password that it wants; None for no authentication.
        calls: path and body of each request.
        script: (status, headers, body) of the next answers, instead of 200.
    """

    dns: DnsEndpoint | None = None
    credentials: tuple[str, str] | None = None
    calls: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    script: deque[tuple[int, tuple[tuple[str, str], ...], bytes]] = field(default_factory=deque)

    def __enter__(self) -> Self:
        self._server = _Server(self)
        self._server.run()
        self.url = f"http://127.0.0.1:{self._server.server_port}/dns"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def serve(
        self, path: str, authorization: str, body: dict[str, str]
    ) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
        self.calls.append((path, body))
        if self.credentials is not None:
            wanted = base64.b64encode(":".join(self.credentials).encode()).decode()
            if authorization != f"Basic {wanted}":
                return 401, (), b""
        if self.script:
            return self.script.popleft()
        if self.dns is not None:
            asyncio.run(self._write(path, *_record(body)))
        return 200, (), b""

    async def _write(self, path: str, name: str, value: str) -> None:
        assert self.dns is not None
        if path.endswith("/present"):
            await self.dns.add(name, "TXT", value)
        else:
            await self.dns.remove(name, "TXT", value)


def _record(body: dict[str, str]) -> tuple[str, str]:
    """Name and value; in the raw mode they are made here (RFC 8555 8.4)."""
    if "fqdn" in body:
        return body["fqdn"], body["value"]
    digest = hashlib.sha256(body["keyAuth"].encode()).digest()
    return f"_acme-challenge.{body['domain']}", base64.urlsafe_b64encode(digest).decode().rstrip("=")


class _Server(LoopbackServer):
    def __init__(self, endpoint: HttpreqServer) -> None:
        super().__init__("the httpreq endpoint", 0, _Handler)
        self.endpoint = endpoint


class _Handler(LoopbackHandler):
    disable_nagle_algorithm = True

    def reply(self, method: str) -> None:
        body: Any = json.loads(self.body())
        endpoint = cast("_Server", self.server).endpoint
        status, headers, content = endpoint.serve(self.path, self.headers.get("Authorization", ""), body)
        self.answer(status, content, "text/plain", headers)
