"""A request that went through the fault proxy, and what was answered."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client is told. `padding` bytes follow the body, unkept in memory."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    padding: int = 0

    def header(self, name: str) -> str:
        """The first header of this name, empty if there is none."""
        return next(iter(self.headers_of(name)), "")

    def headers_of(self, name: str) -> list[str]:
        """All headers of this name."""
        return [value for known, value in self.headers if known.lower() == name.lower()]

    def with_header(self, name: str, value: str | None) -> Reply:
        """The same with the header set, or without it."""
        kept = tuple(entry for entry in self.headers if entry[0].lower() != name.lower())
        return replace(self, headers=kept if value is None else (*kept, (name, value)))

    def json(self) -> Any:
        """The body as JSON; None if it isn't."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def with_json(self, body: object) -> Reply:
        """The same with another body."""
        return replace(self, body=json.dumps(body).encode())


@dataclass(slots=True)
class Exchange:
    """One request and its answers.

    Attributes:
        kind: what it was for.
        method: of HTTP.
        path: with the query.
        headers: of the request, names in lower case.
        protected: the protected header of its JWS; empty if it had none.
        payload: its JSON, that of the JWS if it is one; None for an empty one (POST-as-GET).
        served: what the server answered, None if it never got the request.
        told: what the client got, None if nothing.
        at: when the request came, on the monotonic clock.
    """

    kind: str
    method: str
    path: str
    headers: dict[str, str]
    protected: dict[str, Any]
    payload: Any
    served: Reply | None = None
    told: Reply | None = None
    at: float = 0.0
