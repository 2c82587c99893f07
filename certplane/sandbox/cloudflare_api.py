"""Cloudflare's API v4, as far as a dns-01 client needs it, over the zones of the sandbox's DNS server.

Made for the official `cloudflare` package: a record that is created here is written into the DNS server by an RFC
2136 update before the answer is sent, so that a CA sees it at once, or as much later as a test says (`spread_time`).
Served below /client/v4: GET /user/tokens/verify, GET /zones, GET, POST and DELETE /zones/{id}/dns_records[/{id}], POST
/zones/{id}/dns_records/batch. Envelopes, status codes and error codes are Cloudflare's, as its documentation and
certbot's, lego's and the package's sources have them.

Tests count calls (`calls`) and script faults (`fail_next`, `fail_often`).
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import secrets
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import parse_qs, urlsplit

from certplane.runtime.clock import Clock, SystemClock
from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.cloudflare_records import ApiError, DnsRecord, RecordBook
from certplane.sandbox.dns_endpoint import DnsEndpoint
from certplane.sandbox.http_server import LoopbackHandler, LoopbackServer
from certplane.sandbox.loopback import LOOPBACK

_BASE = "/client/v4"
_ZONE_PAGE, _RECORD_PAGE = 20, 100
_MOST_PER_PAGE = {_ZONE_PAGE: 50, _RECORD_PAGE: 5_000_000}


@dataclass(frozen=True, slots=True)
class TokenScope:
    """What an API token may do.

    Attributes:
        zones: the zones it sees; None for all.
        edit: whether it may change records (DNS:Edit), or only read.
    """

    zones: frozenset[str] | None = None
    edit: bool = True

    def sees(self, zone: str) -> bool:
        """Whether the zone exists for this token."""
        return self.zones is None or zone in self.zones


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was answered, or cut off (status 0)."""

    method: str
    path: str
    status: int


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to a request instead of, or after, serving it.

    Attributes:
        status: answer with this status; 0 closes the connection without an answer.
        code: Cloudflare's error code in the body.
        message: and its text.
        headers: added to the answer (`Retry-After`).
        after_commit: serve the request first, then answer like this: the client can't know that it took effect.
        delay: wait before anything else.
        body: sent instead of an error envelope, as text/html.
    """

    status: int = 500
    code: int = 10_001
    message: str = "Internal error"
    headers: tuple[tuple[str, str], ...] = ()
    after_commit: bool = False
    delay: timedelta | None = None
    body: bytes | None = None


RATE_LIMITED = Fault(429, 10_429, "Rate limited. Please wait and throttle your requests", (("retry-after", "1"),))
"""A full bucket, to be tried again in a second."""


@dataclass(slots=True)
class _ScriptedFault:
    method: str
    path: re.Pattern[str]
    fault: Fault
    times: int | None
    probability: float = 1.0


class CloudflareApi:
    """The API on a loopback port. Use it as an async context manager.

    Attributes:
        token: a token for everything.
        tokens: further tokens and what they may do; a test adds its own.
        calls: what was answered, oldest first.
    """

    def __init__(self, folder: Path, dns: DnsEndpoint, *, https: bool = True, clock: Clock | None = None) -> None:
        """Nothing runs yet.

        Args:
            folder: the HTTPS certificate and its root.
            dns: where records are written, and whose zones the account has.
            https: false for plain HTTP.
            clock: dates of the records.
        """
        self.token = secrets.token_urlsafe(30)
        self.tokens: dict[str, TokenScope] = {}
        self.calls: list[Call] = []
        self._folder = folder
        self._https = https
        self._records = RecordBook(dns, clock or SystemClock())
        self._faults: list[_ScriptedFault] = []
        self._rng = random.Random(0)  # noqa: S311 - which call fails is no secret
        self._lock = threading.Lock()
        self._server: _Server | None = None

    @property
    def base_url(self) -> str:
        """For `Cloudflare(base_url=...)`."""
        if self._server is None:
            raise RuntimeError("the Cloudflare API was not started")
        return f"{'https' if self._https else 'http'}://{LOOPBACK}:{self._server.server_port}{_BASE}"

    @property
    def roots_file(self) -> Path:
        """PEM file with the root of its HTTPS certificate."""
        return self._folder / "cloudflare-root.crt"

    async def __aenter__(self) -> Self:
        """Start it; it answers when this returns."""
        self._folder.mkdir(parents=True, exist_ok=True)
        context = None
        if self._https:
            root = CertificateAuthority.root("Cloudflare API root")
            self.roots_file.write_bytes(root.pem)
            certificate, key = root.issue("Cloudflare API", [LOOPBACK, "localhost"]).write(self._folder, "cloudflare")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
        self._server = _Server(self, context)
        self._server.run()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it; the records stay in the DNS server."""
        if self._server is not None:
            self._server.stop()
            await self.spread(hurry=True)

    @property
    def spread_time(self) -> timedelta:
        """How long a change takes from the API's answer until the DNS server has it; may be set at any time."""
        return self._records.spread_time

    @spread_time.setter
    def spread_time(self, span: timedelta) -> None:
        self._records.spread_time = span

    async def spread(self, *, hurry: bool = False) -> None:
        """Return when the DNS server has every change that was made; with `hurry`, have it get them now.

        Raises:
            RuntimeError: it has refused one.
        """
        await asyncio.to_thread(self._records.spread.finish, hurry=hurry)

    def fail_next(self, method: str, path: str, fault: Fault, *, times: int = 1) -> None:
        """Do `fault` to the next `times` requests of this method and path.

        `path` is a regular expression for the whole path below /client/v4.
        """
        with self._lock:
            self._faults.append(_ScriptedFault(method, re.compile(path), fault, times))

    def fail_often(self, fault: Fault, probability: float) -> None:
        """Do `fault` to any request with this probability, from now on."""
        with self._lock:
            self._faults.append(_ScriptedFault("", re.compile(""), fault, None, probability))

    def count(self, method: str, path: str) -> int:
        """How many requests matched a method and a path (a regular expression), whatever came of them."""
        return sum(call.method == method and re.fullmatch(path, call.path) is not None for call in list(self.calls))

    def zone_id(self, zone: str) -> str:
        """The id of a zone."""
        return self._records.zone_ids[zone]

    def records(self, zone: str) -> list[DnsRecord]:
        """The records that were created in a zone and not deleted."""
        return self._records.of_zone(self.zone_id(zone))

    def _take_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for scripted in self._faults:
                if scripted.times is None:
                    if self._rng.random() < scripted.probability:
                        return scripted.fault
                elif scripted.times > 0 and scripted.method == method and scripted.path.fullmatch(path):
                    scripted.times -= 1
                    return scripted.fault
        return None

    def _scope(self, authorization: str) -> TokenScope:
        scheme, _, token = authorization.partition(" ")
        if scheme != "Bearer" or not token:
            raise ApiError(400, 6003, "Invalid request headers")
        if token == self.token:
            return TokenScope()
        if token not in self.tokens:
            raise ApiError(403, 9109, "Invalid access token")
        return self.tokens[token]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request, authenticated."""

    records: RecordBook
    scope: TokenScope
    query: dict[str, str]
    body: Any

    def zone(self, zone_id: str, *, edit: bool = False) -> str:
        """Check that the token sees the zone, and may edit it if asked."""
        zone = self.records.zone_name(zone_id)
        if not self.scope.sees(zone):
            raise ApiError(403, 10_000, "Authentication error")
        if edit and not self.scope.edit:
            raise ApiError(403, 10_000, "Authentication error")
        return zone

    def matches(self, name: str, value: str) -> bool:
        """Whether a filter (`name=x` or `name.exact=x`) lets a value through."""
        wanted = self.query.get(f"{name}.exact", self.query.get(name))
        return wanted is None or value.lower() == wanted.lower()


def _verify(_asked: _Asked, _ids: tuple[str, ...]) -> Any:
    return {"id": "sandbox", "status": "active"}


def _zones(asked: _Asked, _ids: tuple[str, ...]) -> Any:
    found = [zone for zone in asked.records.zone_ids if asked.scope.sees(zone) and asked.matches("name", zone)]
    may = [*(["#dns_records:edit"] if asked.scope.edit else []), "#dns_records:read", "#zone:read"]
    zones = [asked.records.zone_as_json(zone) | {"permissions": may} for zone in found]
    return _Page([zone for zone in zones if asked.matches("status", zone["status"])], _ZONE_PAGE)


def _list_records(asked: _Asked, ids: tuple[str, ...]) -> Any:
    asked.zone(ids[0])
    content = asked.query.get("content.exact", asked.query.get("content"))
    comment = asked.query.get("comment.exact", asked.query.get("comment"))
    found = [
        record
        for record in asked.records.of_zone(ids[0])
        if asked.matches("type", record.type)
        and asked.matches("name", record.name)
        and (content is None or record.has_content(content))
        and (comment is None or record.comment == comment)
        and (record.comment or "").startswith(asked.query.get("comment.startswith", ""))
    ]
    return _Page([record.as_json() for record in found], _RECORD_PAGE)


def _create_record(asked: _Asked, ids: tuple[str, ...]) -> Any:
    asked.zone(ids[0], edit=True)
    return asyncio.run(asked.records.create(ids[0], _members(asked.body))).as_json()


def _get_record(asked: _Asked, ids: tuple[str, ...]) -> Any:
    asked.zone(ids[0])
    return asked.records.get(*ids).as_json()


def _delete_record(asked: _Asked, ids: tuple[str, ...]) -> Any:
    asked.zone(ids[0], edit=True)
    return {"id": asyncio.run(asked.records.delete(*ids)).id}


def _batch(asked: _Asked, ids: tuple[str, ...]) -> Any:
    asked.zone(ids[0], edit=True)
    body = _members(asked.body)
    deleted, posted = asyncio.run(
        asked.records.batch(ids[0], [str(entry["id"]) for entry in body.get("deletes") or ()], body.get("posts") or ())
    )
    return {
        "deletes": [record.as_json() for record in deleted],
        "patches": None,
        "posts": [record.as_json() for record in posted],
        "puts": None,
    }


_ZONE = r"/zones/([0-9a-f]{32})/dns_records"
_ROUTES: tuple[tuple[str, str, Callable[[_Asked, tuple[str, ...]], Any]], ...] = (
    ("GET", r"/user/tokens/verify", _verify),
    ("GET", r"/zones", _zones),
    ("GET", _ZONE, _list_records),
    ("POST", _ZONE, _create_record),
    ("POST", _ZONE + r"/batch", _batch),
    ("GET", _ZONE + r"/([0-9a-f]{32})", _get_record),
    ("DELETE", _ZONE + r"/([0-9a-f]{32})", _delete_record),
)


@dataclass(frozen=True, slots=True)
class _Page:
    """A list that is answered a page at a time."""

    entries: list[dict[str, Any]]
    default_size: int

    def envelope(self, query: dict[str, str]) -> dict[str, Any]:
        size = int(query.get("per_page") or self.default_size)
        number = int(query.get("page") or 1)
        if number < 1 or not 1 <= size <= _MOST_PER_PAGE[self.default_size]:
            raise ApiError(400, 1004, "Invalid page or per_page")
        shown = self.entries[(number - 1) * size : number * size]
        info = {
            "page": number,
            "per_page": size,
            "count": len(shown),
            "total_count": len(self.entries),
            "total_pages": -(-len(self.entries) // size),
        }
        return {"result": shown, "result_info": info, **_SUCCESS}


_SUCCESS: dict[str, Any] = {"success": True, "errors": [], "messages": []}


class _Server(LoopbackServer):
    def __init__(self, api: CloudflareApi, context: ssl.SSLContext | None) -> None:
        super().__init__("the sandbox's Cloudflare API", 0, _Handler, context)
        self.api = api


class _Handler(LoopbackHandler):
    def reply(self, method: str) -> None:
        """See `LoopbackHandler.reply`."""
        api = cast("_Server", self.server).api
        url, body = urlsplit(self.path), self.body()
        path = url.path.removeprefix(_BASE)
        fault = api._take_fault(method, path)  # noqa: SLF001 (one module)
        if fault is not None and fault.delay is not None:
            threading.Event().wait(fault.delay.total_seconds())
        status, content = 0, b""
        headers: tuple[tuple[str, str], ...] = ()
        if fault is None or fault.after_commit:
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            status, content = self._serve(api, method, path, query, body)
        content_type = "application/json"
        if fault is not None:
            status, headers = fault.status, fault.headers
            content = fault.body if fault.body is not None else _failure(fault.code, fault.message)
            content_type = "text/html" if fault.body is not None else content_type
        api.calls.append(Call(method, path, status))
        if status == 0:
            self.close_connection = True
            return
        self.answer(status, content, content_type, headers)

    def _serve(
        self, api: CloudflareApi, method: str, path: str, query: dict[str, str], body: bytes
    ) -> tuple[int, bytes]:
        try:
            scope = api._scope(self.headers.get("Authorization", ""))  # noqa: SLF001 (one module)
            asked = _Asked(api._records, scope, query, _parsed(body))  # noqa: SLF001
            serve, ids = _route(method, path)
            result = serve(asked, ids)
            envelope = result.envelope(query) if isinstance(result, _Page) else {"result": result, **_SUCCESS}
        except ApiError as error:
            return error.status, _failure(error.code, error.message)
        return 200, json.dumps(envelope).encode()


def _route(method: str, path: str) -> tuple[Callable[[_Asked, tuple[str, ...]], Any], tuple[str, ...]]:
    for wanted, pattern, serve in _ROUTES:
        match = re.fullmatch(pattern, path)
        if match and wanted == method:
            return serve, match.groups()
    raise ApiError(404, 7003, f"Could not route to {path}, perhaps your object identifier is invalid?")


def _failure(code: int, message: str) -> bytes:
    errors = [{"code": code, "message": message}]
    return json.dumps({"result": None, "success": False, "errors": errors, "messages": []}).encode()


def _parsed(body: bytes) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError as error:
        raise ApiError(400, 9207, "Request body is invalid.") from error


def _members(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ApiError(400, 9207, "Request body is invalid.")
    return body
