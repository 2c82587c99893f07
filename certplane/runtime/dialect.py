"""The one dialect of JSON that the three programs write: Protocol Buffers' JSON mapping, for what is no message.

Names are in lowerCamelCase, times are RFC 3339 in UTC, spans are seconds with an `s`. A member that says nothing (None,
an empty text, list or object) is left out, as the mapping leaves out what isn't set; false and 0 say something. Names
of fields that messages have too are those of the messages, so that a script reads all programs alike. What has a public
format of its own, such as a record of the audit log, is written as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

_NOTHING: Final[tuple[Any, ...]] = (None, "", (), [], {})


def member_name(name: str) -> str:
    """`not_after_time` as `notAfterTime`."""
    first, *others = name.split("_")
    return first + "".join(other[:1].upper() + other[1:] for other in others)


def members_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by their names in Python as members, those in them included."""
    found = {member_name(name): value_of(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value not in _NOTHING or isinstance(value, bool | int)}


def value_of(value: Any) -> Any:
    """One value as JSON has it."""
    match value:
        case Mapping():
            return members_of(value)
        case list() | tuple():
            return [value_of(each) for each in value]
        case None | str() | bool() | int() | float():
            return value
        case datetime():
            return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        case _:
            return f"{value.total_seconds():g}s" if isinstance(value, timedelta) else str(value)


def json_line(values: Mapping[str, Any]) -> str:
    """One object, a line."""
    return json.dumps(members_of(values), ensure_ascii=False)
