"""Which part of the ACME protocol a request is for, learnt from what the CA itself says.

RFC 8555 fixes no path but hands out URLs: the directory names the first ones, and each object the next. Reading them as
they pass makes the names below right for any CA, whatever its paths look like.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Protocol
from urllib.parse import urlsplit

from typing_extensions import override

from certplane.sandbox.exchange import Reply

DIRECTORY = "directory"
NEW_NONCE, NEW_ACCOUNT, NEW_ORDER = "newNonce", "newAccount", "newOrder"
REVOKE_CERT, KEY_CHANGE, RENEWAL_INFO = "revokeCert", "keyChange", "renewalInfo"
ACCOUNT, ORDER, AUTHORIZATION, CHALLENGE = "account", "order", "authorization", "challenge"
FINALIZE, CERTIFICATE = "finalize", "certificate"
OTHER = "other"

_OF_DIRECTORY = (NEW_NONCE, NEW_ACCOUNT, NEW_ORDER, REVOKE_CERT, KEY_CHANGE, RENEWAL_INFO)
_LINK = re.compile(r'<([^>]+)>\s*;[^,]*rel="?alternate')


class Endpoints(Protocol):
    """Names the kind of a request, and learns from answers. Called from several threads at once."""

    def kind(self, method: str, path: str) -> str:
        """What the request is for."""
        ...

    def learn(self, kind: str, reply: Reply) -> None:
        """Read an answer of the server to a request of this kind."""
        ...


class PathEndpoints(Endpoints):
    """`Endpoints` of a server with fixed paths, such as a DNS API: the first pattern that matches names the kind."""

    def __init__(self, patterns: Mapping[str, str]) -> None:
        """`patterns`: kind -> regular expression for the whole of `METHOD /path`."""
        self._patterns = {kind: re.compile(pattern) for kind, pattern in patterns.items()}

    @override
    def kind(self, method: str, path: str) -> str:
        request = f"{method} {path}"
        return next((kind for kind, pattern in self._patterns.items() if pattern.fullmatch(request)), OTHER)

    def learn(self, kind: str, reply: Reply) -> None:
        """Nothing: the paths are fixed."""


class AcmeEndpoints(Endpoints):
    """`Endpoints` of an ACME server."""

    def __init__(self, directory_path: str) -> None:
        """`directory_path`: where the directory is, all that is known before it was read."""
        self._kinds = {directory_path: DIRECTORY}
        self._renewal_info = ""
        self._lock = threading.Lock()

    @override
    def kind(self, method: str, path: str) -> str:
        with self._lock:
            if self._renewal_info and path.startswith(f"{self._renewal_info}/"):
                return RENEWAL_INFO
            return self._kinds.get(path, OTHER)

    def path(self, kind: str) -> str:
        """A path of this kind, empty if none was seen; that of the directory's own kinds is the only one."""
        with self._lock:
            return next((path for path, known in self._kinds.items() if known == kind), "")

    @override
    def learn(self, kind: str, reply: Reply) -> None:
        if not 200 <= reply.status < 300:
            return
        with self._lock:
            for found, url in _urls(kind, reply):
                path = urlsplit(url).path
                self._kinds.setdefault(path, found)
                if found == RENEWAL_INFO:
                    self._renewal_info = path.rstrip("/")


def _urls(kind: str, reply: Reply) -> Iterator[tuple[str, str]]:
    """The kinds and URLs that an answer names."""
    location = reply.header("Location")
    if location and kind in {NEW_ACCOUNT, NEW_ORDER}:
        yield (ACCOUNT if kind == NEW_ACCOUNT else ORDER), location
    if kind == CERTIFICATE:
        yield from ((CERTIFICATE, url) for url in _LINK.findall(", ".join(reply.headers_of("Link"))))
        return
    try:
        body = json.loads(reply.body)
    except ValueError:
        return
    if not isinstance(body, dict):
        return
    named: list[tuple[str, object]] = []
    if kind == DIRECTORY:
        named = [(name, body.get(name)) for name in _OF_DIRECTORY]
    elif kind in {NEW_ORDER, ORDER, FINALIZE}:
        named = [(AUTHORIZATION, url) for url in body.get("authorizations") or []]
        named += [(FINALIZE, body.get("finalize")), (CERTIFICATE, body.get("certificate"))]
    elif kind == AUTHORIZATION:
        named = [(CHALLENGE, entry.get("url")) for entry in body.get("challenges") or []]
    yield from ((found, url) for found, url in named if isinstance(url, str))
