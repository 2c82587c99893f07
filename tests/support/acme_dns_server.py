"""An acme-dns server on loopback that takes an update only if it has exactly the published shape.

It answers as joohoi's does (its `api.go`, `auth.go`, `db.go`): two values per name, of which an update replaces the
older one, and ages in whole seconds, so that among equals it is always the first place. `clock` says what a second is.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self, cast

from certplane.sandbox.dns_endpoint import DnsEndpoint
from certplane.sandbox.http_server import LoopbackHandler, LoopbackServer

Answer = tuple[int, tuple[tuple[str, str], ...], bytes]
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TXT = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass
class AcmeDnsServer:
    """Plain HTTP on loopback; use it as a context manager.

    Attributes:
        dns: where values are written too; None to write them nowhere.
        clock: the time in seconds, of which the whole ones count.
        values: the two values of each fulldomain with their ages.
        script: (status, headers, body) of the next answers, None for the true one; an update is made all the same for the statuses of `lost`.
        lost: statuses of scripted answers that hide an update which was made.
        updates: fulldomain and value of each update that was made.
    """

    dns: DnsEndpoint | None = None
    clock: Callable[[], float] = time.time
    values: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    script: deque[Answer | None] = field(default_factory=deque)
    lost: frozenset[int] = frozenset({599})
    updates: list[tuple[str, str]] = field(default_factory=list)
    accounts: dict[str, dict[str, str]] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._server = _Server(self)
        self._server.run()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, failed: object = None, *_: object) -> None:
        self._server.stop()
        assert failed or not self.mistakes, self.mistakes

    def register(self, fulldomain: str) -> dict[str, str]:
        """A new account, as the answer of /register has it."""
        account = {
            "username": str(uuid.uuid4()),
            "password": (uuid.uuid4().hex + uuid.uuid4().hex)[:40],
            "fulldomain": fulldomain,
            "subdomain": str(uuid.uuid4()),
        }
        self.accounts[account["username"]] = account
        self.values[fulldomain] = [(0, ""), (0, "")]
        return account

    def standing(self, fulldomain: str) -> set[str]:
        """The values that the server has."""
        return {value for _, value in self.values[fulldomain] if value}

    def serve(self, method: str, path: str, headers: dict[str, str], content: bytes) -> Answer:
        scripted = self.script.popleft() if self.script else None
        if scripted and scripted[0] not in self.lost:
            return scripted
        answer = self._answer(method, path, headers, content)
        return scripted or answer

    def _answer(self, method: str, path: str, headers: dict[str, str], content: bytes) -> Answer:
        if (method, path) != ("POST", "/update"):
            self.mistakes.append(f"{method} {path}")
            return 404, (), b"404 page not found\n"
        account = self.accounts.get(headers.get("x-api-user", ""))
        if account is None or headers.get("x-api-key") != account["password"]:
            return _error(401, "forbidden")
        body = json.loads(content)
        if headers.get("content-type") != "application/json" or body.keys() != {"subdomain", "txt"}:
            self.mistakes.append(f"a body of {sorted(body)}")
            return _error(400, "malformed_json_payload")
        if not _UUID.fullmatch(body["subdomain"]) or body["subdomain"] != account["subdomain"]:
            return _error(401, "forbidden")
        if not _TXT.fullmatch(body["txt"]):
            self.mistakes.append("a value that is no digest")
            return _error(400, "bad_txt")
        self._update(account["fulldomain"], body["txt"])
        return 200, (), json.dumps({"txt": body["txt"]}).encode()

    def _update(self, fulldomain: str, value: str) -> None:
        places = self.values[fulldomain]
        oldest = min(range(2), key=lambda place: places[place][0])
        replaced = places[oldest][1]
        places[oldest] = (int(self.clock()), value)
        self.updates.append((fulldomain, value))
        if self.dns is not None:
            asyncio.run(self._publish(fulldomain, replaced, value))

    async def _publish(self, name: str, replaced: str, value: str) -> None:
        assert self.dns is not None
        if replaced and replaced not in self.standing(name):
            await self.dns.remove(name, "TXT", replaced)
        await self.dns.add(name, "TXT", value)


def _error(status: int, error: str) -> Answer:
    return status, (), json.dumps({"error": error}).encode()


class _Server(LoopbackServer):
    def __init__(self, acme_dns: AcmeDnsServer) -> None:
        super().__init__("acme-dns", 0, _Handler)
        self.acme_dns = acme_dns


class _Handler(LoopbackHandler):
    def reply(self, method: str) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, extra, content = cast("_Server", self.server).acme_dns.serve(method, self.path, headers, self.body())
        self.answer(status, content, "application/json", extra)
