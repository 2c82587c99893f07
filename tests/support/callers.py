"""Callers as the edge hands them on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from certplane.broker.model import Caller, IdentityKind


def caller(**changes: Any) -> Caller:
    """A host in good standing, changed as a test likes."""
    facts: dict[str, Any] = {
        "name": "web1.example",
        "kind": IdentityKind.HOST,
        "label": "web1",
        "profiles": ("web",),
        "roles": (),
        "serial_number": "1f",
        "issuer": "CN=internal Intermediate CA",
        "provisioner": "JWK/hosts",
        "not_after": datetime(2026, 11, 24, 12, tzinfo=UTC),
    }
    return Caller(**{**facts, **changes})
