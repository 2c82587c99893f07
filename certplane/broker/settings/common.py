"""What brokers of one fleet must say alike in their broker.yml, as one hash that they compare.

What a broker has for itself is left out: where it listens, its files, the source of its secrets, its way to the
database, its log. So are keys with their default value: a key that a newer release brings doesn't make files differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final

from certplane.broker.settings.file import BrokerSettings

OWN: Final = frozenset(
    {
        "source",
        "server.address",
        "server.reuse_port",
        "server.read_timeout",
        "server.read_header_timeout",
        "server.write_timeout",
        "server.idle_timeout",
        "server.tls.step_ca",
        "policy",
        "secrets",
        "store.driver",
        "store.url",
        "store.direct_url",
        "store.password_secret",
        # Compared by themselves.
        "audit.enabled",
        "audit.failure_mode",
        "metrics",
        "logging",
    }
)
"""Keys that differ, with all below them; and every key whose value is a path, and `account_key`."""


def common_hash(settings: BrokerSettings) -> str:
    """SHA-256, in hexadecimal."""
    lines = sorted(f"{key}={value}" for key, value in _values("", settings))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _values(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            path = f"{key}.{field.name}".lstrip(".")
            if path not in OWN and field.name != "account_key" and getattr(value, field.name) != _default(field):
                yield from _values(path, getattr(value, field.name))
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _values(f"{key}.{name}", each)
    elif isinstance(value, tuple):
        for index, each in enumerate(value):
            yield from _values(f"{key}[{index}]", each)
    elif not isinstance(value, Path):
        yield key, repr(value.value if isinstance(value, Enum) else str(value))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
