"""The formats of results, as people write them with `-o`."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    """`table` fits the terminal, `wide` has all; `json`, `yaml` and `name` are for programs."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"
