"""A status as the broker is told it, and that telling never gets in the way of keeping it."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certplane.agent.model import DirectedRenewal, LineageStatus, Version
from certplane.agent.renewal.due import LineageSpec, RenewReason
from certplane.agent.renewal.facts import LineageFacts
from certplane.agent.reporting.recording import ReportedStatusFile
from certplane.agent.reporting.report import certificate_report
from certplane.agent.reporting.spool import FileReportSpool
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate, RenewalCause, RenewalStep
from tests.fakes.agent_install import FakeDirectiveFile, FakeStatusFile, FakeVersionStore
from tests.fakes.agent_keystore import FakePendingKeys
from tests.fakes.clock import ManualClock

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SPEC = LineageSpec("web", phase_key="p", dns_names=("a.example", "b.example"))


def version(number: int) -> Version:
    return Version(
        number, Path("/v"), ("a.example", "b.example"), f"1{number}", "aa", NOW, NOW + 90 * DAY, f"c{number}"
    )


def held(number: int) -> HeldCertificate:
    return HeldCertificate(f"1{number}", NOW, NOW + 90 * DAY, f"c{number}", number)


OLD, NEW = version(1), version(2)
STATUS = LineageStatus("web", CertificateState.WAITING, NOW, renew_time=NOW + 60 * DAY)


def facts(status: LineageStatus, *versions: Version, current: Version | None = None) -> LineageFacts:
    return LineageFacts(versions, current or (versions[-1] if versions else None), None, status)


def test_all_that_a_reader_elsewhere_needs() -> None:
    """Names, profile, what is on disk and what is shown, and what went wrong, from one status."""
    status = replace(
        STATUS,
        state=CertificateState.DEGRADED,
        failed_step=RenewalStep.RELOAD,
        last_error="line one\nline \x1b[31mtwo",
        activation_failures=2,
        next_activation_time=NOW + DAY,
        next_attempt_time=NOW,
        renew_reason="its renewal time has come",
        activate_after=NOW + 2 * DAY,
        held_by_rollout_id="rollout-1",
    )
    assert certificate_report(SPEC, "web", facts(status, OLD, NEW, current=OLD)) == CertificateStatus(
        name="web",
        state=CertificateState.DEGRADED,
        update_time=NOW,
        profile="web",
        dns_names=("a.example", "b.example"),
        failed_step=RenewalStep.RELOAD,
        issued=held(2),
        installed=held(1),
        renew_time=NOW + 60 * DAY,
        renew_reason="its renewal time has come",
        last_error="line one line  [31mtwo",
        activation_failures=2,
        next_attempt_time=NOW + DAY,
        activate_time=NOW + 2 * DAY,
        held_by_rollout_id="rollout-1",
    )


@pytest.mark.parametrize(
    ("serial", "expected"),
    [
        pytest.param("", None, id="nobody looked"),
        pytest.param("11", replace(held(1), observe_time=NOW), id="one of ours"),
        pytest.param("ff", HeldCertificate("ff", NOW, NOW + 90 * DAY, "", 0, NOW), id="a stranger's"),
    ],
)
def test_what_is_served_is_named_where_it_is_known(serial: str, expected: HeldCertificate | None) -> None:
    """Certificates of this host have their version and the broker's name, others neither."""
    status = replace(
        STATUS,
        served_serial_number=serial,
        verify_time=NOW,
        served_not_before=NOW if serial else None,
        served_not_after=NOW + 90 * DAY if serial else None,
    )
    assert certificate_report(SPEC, "web", facts(status, OLD, NEW)).served == expected


@pytest.mark.parametrize(
    ("status", "directed", "reason"),
    [
        pytest.param("", True, "an operator asked: keys leaked", id="not due yet"),
        pytest.param(RenewReason.DUE, True, "an operator asked: keys leaked", id="due by that"),
        pytest.param(RenewReason.NAMES_CHANGED, True, "the configuration has other names", id="due by another cause"),
        pytest.param("", False, "the host's rule", id="nobody said anything"),
        pytest.param(RenewReason.DUE, False, "its renewal time has come", id="due by the rule"),
    ],
)
def test_who_reads_the_fleet_sees_why(status: str, directed: bool, reason: str) -> None:
    """The broker's own word where that decides, and what the host says otherwise."""
    word = DirectedRenewal("c2", NOW, RenewalCause.OPERATOR, "keys leaked") if directed else None
    newest = replace(NEW, directed=word, renew_time=NOW if directed else None)
    report = certificate_report(SPEC, "web", facts(replace(STATUS, renew_reason=str(status)), OLD, newest))
    assert report.renew_reason == reason


def test_a_freshly_enrolled_identity_is_in_use() -> None:
    """No agent has seen it yet, but there is one; its names are its own."""
    spec = LineageSpec("identity", phase_key="p")
    report = certificate_report(spec, "", facts(LineageStatus("identity", CertificateState.ABSENT, NOW), OLD))
    assert (report.state, report.dns_names, report.profile) == (CertificateState.WAITING, OLD.dns_names, "")


def test_texts_fit_their_fields() -> None:
    """The broker refuses longer ones; a character isn't cut in two."""
    report = certificate_report(
        SPEC, "web", facts(replace(STATUS, last_error="ä" * 1500, renew_reason="x" + "ä" * 400), OLD)
    )
    assert report.last_error == "ä" * 998 + "..."
    assert report.renew_reason == "x" + "ä" * 248 + "..."


class BrokenStore(FakeVersionStore):
    def current(self) -> Version | None:
        raise RuntimeError("a fault of ours")


def recorded(tmp_path: Path, store: FakeVersionStore) -> tuple[ReportedStatusFile, FileReportSpool]:
    spool = FileReportSpool(tmp_path / "reports", names=["web"], new_epoch=lambda: "e")
    file = ReportedStatusFile(
        FakeStatusFile(), spool=spool, spec=SPEC, profile="web", versions=store, directive=FakeDirectiveFile()
    )
    return file, spool


def test_a_saved_status_is_a_report(tmp_path: Path) -> None:
    """Each save, in its order."""
    file, spool = recorded(tmp_path, FakeVersionStore(FakePendingKeys(clock=ManualClock())))
    file.save(replace(STATUS, state=CertificateState.DUE))
    file.save(replace(STATUS, state=CertificateState.REQUESTING))
    assert [each.certificate.state for each in spool.reports()] == [CertificateState.DUE, CertificateState.REQUESTING]
    assert file.load() == replace(STATUS, state=CertificateState.REQUESTING)


def test_a_fault_in_reporting_is_logged_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The status is kept, and the certificate's life goes on."""
    file, spool = recorded(tmp_path, BrokenStore(FakePendingKeys(clock=ManualClock())))
    with caplog.at_level(logging.WARNING):
        file.save(STATUS)
    assert file.load() == STATUS
    assert spool.reports() == []
    assert "web: could not report its status" in caplog.text
