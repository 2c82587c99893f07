"""What `StatusFile` promises, asked of the fake and of the real one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certplane.agent.install.status import JsonStatusFile
from certplane.agent.model import LineageStatus
from certplane.agent.ports import StatusFile
from certplane.fleet_report.model import CertificateState, RenewalStep
from tests.fakes.agent_install import FakeStatusFile

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
FULL = LineageStatus(
    name="www",
    state=CertificateState.DEGRADED,
    update_time=NOW,
    renew_time=NOW + timedelta(days=60),
    renew_reason="its renewal time has come",
    failures=2,
    next_attempt_time=NOW + timedelta(minutes=5, microseconds=7),
    last_error="the reload ended with status 1: \u2028 nginx: \x1b[31m",
    rejected_version=3,
    retry_time=NOW + timedelta(hours=1),
    confirmed_version=2,
    activation_failures=1,
    next_activation_time=NOW + timedelta(minutes=1),
    failed_step=RenewalStep.VERIFY,
    request_error="RATE_LIMITED: 20 an hour",
    issued_version=3,
    installed_version=2,
    activate_after=NOW + timedelta(hours=2),
    verified_version=2,
    verify_time=NOW,
    served_serial_number="1f",
    served_not_before=NOW - timedelta(days=30),
    served_not_after=NOW + timedelta(days=60),
    verify_failures=1,
    next_verify_time=NOW + timedelta(hours=6),
    verify_error="127.0.0.1:443 serves another certificate",
    drift_reloaded=True,
    revoked_versions=(1,),
    failed_time=NOW - timedelta(minutes=1),
    asked_request="0123456789abcdef",
    asked_settings="123456789abcdef0",
    activated_settings="23456789abcdef01",
    directed_times=(NOW - timedelta(hours=1), NOW),
    held_by_rollout_id="rollout-1",
)


@pytest.fixture(params=["fake", "json"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], StatusFile]:
    """The status file as after a restart."""
    if request.param == "json":
        return lambda: JsonStatusFile(tmp_path / "www")
    fake = FakeStatusFile()
    return lambda: fake


def test_nothing_saved_is_nothing_loaded(reopen: Callable[[], StatusFile]) -> None:
    """A new lineage has no status."""
    assert reopen().load() is None


def test_every_field_survives_a_restart(reopen: Callable[[], StatusFile]) -> None:
    """What was saved is loaded, to the last field."""
    defaults = LineageStatus("www", CertificateState.ABSENT, NOW)
    unset = [each.name for each in dataclasses.fields(FULL) if getattr(FULL, each.name) == getattr(defaults, each.name)]
    assert unset == ["name", "update_time"]
    reopen().save(FULL)
    assert reopen().load() == FULL


def test_the_last_save_counts(reopen: Callable[[], StatusFile]) -> None:
    """A save replaces the one before."""
    reopen().save(FULL)
    later = dataclasses.replace(FULL, state=CertificateState.WAITING, rejected_version=None)
    reopen().save(later)
    assert reopen().load() == later


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "state": "odd"}'])
def test_unreadable_status_starts_over(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    """A status that can't be read is no reason to stop renewing: it is said, and the plan starts over."""
    file = JsonStatusFile(tmp_path / "www")
    file.save(FULL)
    (tmp_path / "www" / "status.json").write_text(content)
    assert file.load() is None
    assert "starts over" in caplog.text
    file.save(FULL)
    assert file.load() == FULL


def test_status_of_an_older_release_is_loaded(tmp_path: Path) -> None:
    """A file from before there were windows and looks at services loads, what it lacks at its default."""
    (tmp_path / "www").mkdir(mode=0o755)
    (tmp_path / "www" / "status.json").write_text(
        '{"format": 1, "name": "www", "state": "waiting", "update_time": "2026-11-23T12:00:00+00:00",'
        ' "renew_time": null, "renew_reason": "", "failures": 0, "next_attempt_time": null, "last_error": "",'
        ' "rejected_version": null, "retry_time": null, "confirmed_version": 2, "activation_failures": 0,'
        ' "next_activation_time": null}'
    )
    expected = LineageStatus("www", CertificateState.WAITING, NOW, confirmed_version=2)
    assert JsonStatusFile(tmp_path / "www").load() == expected
