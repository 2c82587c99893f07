"""What of broker.yml may change while the broker runs, and what of a changed file waits for a restart.

Pure but for `take_logging`. Most settings made something at the start that others hold (pools, clients, the port), so
only those are taken at a reload whose effect is whole at once; the others are named, since silence reads as consent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final

from certplane.broker.settings import BrokerSettings, LoggingSettings, RateLimitSettings
from certplane.runtime.logging import setup

TAKEN: Final = frozenset(
    f"{section}.{field.name}"
    for section, settings in (("logging", LoggingSettings), ("rate_limits", RateLimitSettings))
    for field in dataclasses.fields(settings)
)
"""Keys that a reload puts in force."""


def changed_keys(before: BrokerSettings, after: BrokerSettings) -> list[str]:
    """The keys whose values differ, as paths from the top, sorted; comments and order are no difference."""
    keys: set[str] = set()
    for field in dataclasses.fields(before):
        if field.name != "source":
            keys.update(_differences(field.name, getattr(before, field.name), getattr(after, field.name)))
    return sorted(keys)


def waiting_keys(before: BrokerSettings, after: BrokerSettings) -> list[str]:
    """Those of `changed_keys` that a restart takes, and nothing else."""
    return [key for key in changed_keys(before, after) if key not in TAKEN]


def take_logging(settings: BrokerSettings) -> None:
    """Log as `settings` say from now on."""
    setup(settings.logging.level, settings.logging.format, settings.logging.destination)


def _differences(key: str, before: Any, after: Any) -> Iterator[str]:
    if before == after:
        return
    if dataclasses.is_dataclass(before) and type(before) is type(after):
        for field in dataclasses.fields(before):
            yield from _differences(f"{key}.{field.name}", getattr(before, field.name), getattr(after, field.name))
    elif isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in before.keys() | after.keys():
            if name in before and name in after:
                yield from _differences(f"{key}.{name}", before[name], after[name])
            else:
                yield f"{key}.{name}"
    else:
        yield key
