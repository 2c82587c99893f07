"""What `DirectiveFile` promises, asked of the fake and of the real one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certplane.agent.install.directive import JsonDirectiveFile
from certplane.agent.model import DirectedRenewal
from certplane.agent.ports import DirectiveFile
from certplane.errors import OperationError
from certplane.fleet_report.model import RenewalCause
from tests.fakes.agent_install import FakeDirectiveFile

FULL = DirectedRenewal(
    certificate_id="certificate-1",
    renew_time=datetime(2026, 11, 23, 12, 0, 0, 7, tzinfo=UTC),
    cause=RenewalCause.ISSUER,
    reason="the CA found \u00e4 mistake",
    explanation_url="https://ca.example/incident",
    renewal_request_id="request-1",
    serial_number="1f",  # an identity has no id: here both stand
    receive_time=datetime(2026, 11, 23, 12, 0, 1, tzinfo=UTC),
)


@pytest.fixture(params=["fake", "json"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], DirectiveFile]:
    """The file as after a restart."""
    if request.param == "json":
        return lambda: JsonDirectiveFile(tmp_path / "www")
    fake = FakeDirectiveFile()
    return lambda: fake


def test_nothing_saved_is_nothing_loaded(reopen: Callable[[], DirectiveFile]) -> None:
    """A lineage of which the broker has said nothing."""
    assert reopen().load() is None


def test_the_last_save_survives_a_restart(reopen: Callable[[], DirectiveFile]) -> None:
    """To the last field; an earlier one is replaced."""
    assert all(getattr(FULL, each.name) for each in dataclasses.fields(FULL))
    reopen().save(dataclasses.replace(FULL, certificate_id="certificate-0"))
    reopen().save(FULL)
    assert reopen().load() == FULL
    assert reopen().load().receive_time == FULL.receive_time  # type: ignore[union-attr]  # equal without it


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "renew_time": "2026-11-23T12:00:00"}'],
)
def test_what_cannot_be_read_counts_for_nothing(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    """The certificate then keeps its own time; it is said."""
    file = JsonDirectiveFile(tmp_path / "www")
    file.save(FULL)
    (tmp_path / "www" / "directive.json").write_text(content)
    assert file.load() is None
    assert "is ignored" in caplog.text


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    """So that nobody acknowledges what isn't kept."""
    (tmp_path / "www").write_text("a file where the directory should be")
    with pytest.raises(OperationError):
        JsonDirectiveFile(tmp_path / "www").save(FULL)
