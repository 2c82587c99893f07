"""The host's time zone: TZ, else its file, else UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from certplane.runtime import clock
from certplane.runtime.clock import local_zone

SUMMER, WINTER = datetime(2026, 7, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
BERLIN = (timedelta(hours=2), timedelta(hours=1))
NOWHERE = (timedelta(), timedelta())


def offsets() -> tuple[timedelta | None, timedelta | None]:
    """What the zone adds in summer and in winter."""
    zone = local_zone()
    return SUMMER.astimezone(zone).utcoffset(), WINTER.astimezone(zone).utcoffset()


@pytest.fixture
def zone_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for /etc/localtime."""
    path = tmp_path / "localtime"
    monkeypatch.setattr(clock, "_LOCALTIME", path)
    return path


def berlin(path: Path) -> None:
    """Copy the rules of Berlin, wherever this Python has them from."""
    for folder in ("/usr/share/zoneinfo", "/usr/lib/zoneinfo"):
        source = Path(folder) / "Europe" / "Berlin"
        if source.exists():
            path.write_bytes(source.read_bytes())
            return
    pytest.skip("no time zone files on this machine")


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        pytest.param("Europe/Berlin", BERLIN, id="a name"),
        pytest.param(":Europe/Berlin", BERLIN, id="a name after a colon, as POSIX has it"),
        pytest.param("UTC", NOWHERE, id="UTC"),
        pytest.param("Mars/Olympus", NOWHERE, id="no such zone"),
        pytest.param("../../etc/passwd", NOWHERE, id="a path that leaves"),
        pytest.param("/dev/null", NOWHERE, id="a file of no zone"),
    ],
)
def test_variable_counts_first(
    monkeypatch: pytest.MonkeyPatch, variable: str, expected: tuple[timedelta, timedelta]
) -> None:
    """TZ names a zone; what names none is UTC, and no error at the start of a program."""
    monkeypatch.setenv("TZ", variable)
    assert offsets() == expected


def test_file_counts_without_the_variable(zone_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of the host's zone are read, not only the offset of this moment."""
    monkeypatch.delenv("TZ", raising=False)
    berlin(zone_file)
    assert offsets() == BERLIN
    monkeypatch.setenv("TZ", str(zone_file))
    assert offsets() == BERLIN
    assert ZoneInfo("Europe/Berlin").utcoffset(SUMMER.replace(tzinfo=None)) == BERLIN[0]


def test_host_without_a_zone_is_in_utc(zone_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container has no /etc/localtime."""
    monkeypatch.delenv("TZ", raising=False)
    assert not zone_file.exists()
    assert offsets() == NOWHERE
