"""PowerDNS's HTTP API on loopback, as much of it as lexicon's provider uses, before a real DNS server.

It takes a request only if it has the published shape (https://doc.powerdns.com/authoritative/http-api/): the key in its
header, absolute names with their final dot, quoted TXT contents, and whole sets of records to replace.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Self, cast

from certplane.sandbox.dns_endpoint import DnsEndpoint
from certplane.sandbox.http_server import LoopbackHandler, LoopbackServer

Answer = tuple[int, bytes]


@dataclass
class PowerDnsServer:
    """Plain HTTP on loopback; use it as a context manager.

    Attributes:
        dns: where records are.
        zone: the one that is here, without its final dot.
        names: the names that a listing of the zone has.
        key: the API's.
        script: the next answers, whatever is asked; a status of 0 never answers.
        requests: method and path of each.
    """

    dns: DnsEndpoint | None = None
    zone: str = "certplane.test"
    names: tuple[str, ...] = ()
    key: str = "correct/horse+battery"
    script: deque[Answer] = field(default_factory=deque)
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._server = _Server(self)
        self._server.run()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def serve(self, method: str, path: str, key: str | None, content: bytes) -> Answer:
        self.requests.append(f"{method} {path}")
        if self.script:
            status, body = self.script.popleft()
            if status == 0:
                time.sleep(5)
            return status or 500, body
        return self._answer(method, path, key, content)

    def _answer(self, method: str, path: str, key: str | None, content: bytes) -> Answer:
        if key != self.key:
            return 401, b"Unauthorized"
        if path != f"/api/v1/servers/localhost/zones/{self.zone}.":
            return 404, b'{"error": "Could not find domain"}'
        if method == "GET":
            return 200, json.dumps(asyncio.run(self._listing())).encode()
        rrsets = json.loads(content)["rrsets"]
        if method != "PATCH" or not all(map(self._is_set, rrsets)):
            return 422, b'{"error": "a set of records that is none"}'
        for rrset in rrsets:
            values = {record["content"][1:-1] for record in rrset["records"]}
            asyncio.run(self._replace(rrset["name"].rstrip("."), values))
        return 204, b""

    def _is_set(self, rrset: dict[str, Any]) -> bool:
        contents = [record["content"] for record in rrset["records"]]
        quoted = all(len(text) > 2 and text[0] == text[-1] == '"' for text in contents)
        named = rrset["name"].endswith(f".{self.zone}.")
        return quoted and named and (rrset["changetype"], rrset["type"]) == ("REPLACE", "TXT")

    async def _listing(self) -> dict[str, Any]:
        assert self.dns is not None
        rrsets = []
        for name in self.names:
            records = [{"content": f'"{value}"', "disabled": False} for value in sorted(await self.dns.txt(name))]
            if records:
                rrsets.append({"name": f"{name}.", "type": "TXT", "ttl": 60, "records": records, "comments": []})
        return {"id": f"{self.zone}.", "name": f"{self.zone}.", "kind": "Native", "rrsets": rrsets}

    async def _replace(self, name: str, values: set[str]) -> None:
        assert self.dns is not None
        standing = await self.dns.txt(name)
        for value in standing - values:
            await self.dns.remove(name, "TXT", value)
        for value in values - standing:
            await self.dns.add(name, "TXT", value)


class _Server(LoopbackServer):
    def __init__(self, api: PowerDnsServer) -> None:
        super().__init__("the PowerDNS API", 0, _Handler)
        self.api = api


class _Handler(LoopbackHandler):
    def do_PATCH(self) -> None:  # noqa: N802 - the base class calls do_<METHOD>
        self.reply("PATCH")

    def reply(self, method: str) -> None:
        api = cast("_Server", self.server).api
        status, content = api.serve(method, self.path, self.headers.get("X-API-Key"), self.body())
        self.answer(status, content, "application/json")
