"""Texts as a configuration file has them: plain where that is sure to be the same, else in double quotes. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9/._@-]*", re.ASCII)
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""What YAML 1.1 reads as something else than a text."""


def scalar(text: str) -> str:
    """A text as YAML; JSON's strings are YAML's (1.2, section 1.2), with what isn't ASCII as it is."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return json.dumps(text, ensure_ascii=False)


def flow(texts: Iterable[str]) -> str:
    """A list on one line."""
    return f"[{', '.join(scalar(each) for each in texts)}]"
