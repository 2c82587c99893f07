"""What an earlier release left on disk (tests/cases/data-*): laid out for programs and stores of today."""

import base64
import dataclasses
import sqlite3
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import yaml

DATA = Path(__file__).parents[1] / "cases" / "data-452d001"
_FOLDER = "@FOLDER@"
_SINCE_1970 = datetime.fromisoformat("1970-01-01T00:00:00Z")


def make_sqlite(path: Path) -> None:
    """The broker's database of SQLite at `path`, as it was left."""
    connection = sqlite3.connect(path)
    connection.executescript((DATA / "broker.sql").read_text())
    connection.close()
    path.chmod(0o600)


def make_postgresql(url: str) -> None:
    """The database of the broker on PostgreSQL in the empty one of `url`."""
    with psycopg.connect(url, autocommit=True) as server:
        server.execute((DATA / "broker.postgresql.sql").read_bytes())


def lay_out(host: str, folder: Path) -> Path:
    """A host's files below `folder`, where 452d001 had them below its own; returns the folder of the host."""
    files = yaml.safe_load((DATA / f"{host}.yml").read_text().replace("@FOLDER@", str(folder)))
    name: str = yaml.safe_load(files["agent.yml"]["text"])["identity"]["name"]
    root = folder / "hosts" / name
    root.mkdir(parents=True)
    for place, is_ in files.items():
        path = root / place
        if "link" in is_:
            path.symlink_to(is_["link"])
        elif "folder" in is_:
            path.mkdir(int(is_["folder"], 8))
        else:
            path.write_bytes(base64.b64decode(is_["base64"]) if "base64" in is_ else is_["text"].encode())
            path.chmod(int(is_["mode"], 8))
    return root


def plain(value: Any) -> Any:
    """A value as the data has it: fields by name, and times as microseconds."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    elif dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    match value:
        case Mapping():
            return {name: plain(each) for name, each in value.items()}
        case tuple() | list():
            return [plain(each) for each in value]
        case datetime():
            return plain(value - _SINCE_1970)
        case timedelta():
            return value // timedelta(microseconds=1)
        case _:
            return value


def missing(expected: Any, found: Any, where: str = "") -> list[str]:
    """Where `found` doesn't say what `expected` does; what it says beyond that, in members of its own, is no fault."""
    match expected, found:
        case Mapping(), Mapping():
            return [
                problem
                for name, each in expected.items()
                for problem in missing(each, found.get(name), f"{where}.{name}")
            ]
        case list(), list() if len(expected) == len(found):
            return [
                problem
                for number, (each, other) in enumerate(zip(expected, found, strict=True))
                for problem in missing(each, other, f"{where}[{number}]")
            ]
    same = expected == found or not (expected or found)
    return [] if same else [f"{where}: {expected!r} has become {found!r}"]
