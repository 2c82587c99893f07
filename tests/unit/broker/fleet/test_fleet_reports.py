"""Which reports are new, and which of them are audited: the rule by itself."""

from __future__ import annotations

from certplane.broker.fleet.reports import KnownReports, take_reports
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate, Report

SERVING = CertificateStatus("web", CertificateState.SERVING, served=HeldCertificate("0a"))
RENEWED = CertificateStatus("web", CertificateState.SERVING, served=HeldCertificate("0b"))
INSTALLING = CertificateStatus("web", CertificateState.INSTALLING)
OTHER = CertificateStatus("mail", CertificateState.SERVING, served=HeldCertificate("0a"))


def report(*statuses: CertificateStatus, first: int = 1) -> list[Report]:
    return [Report(number, status) for number, status in enumerate(statuses, first)]


def test_an_outcome_is_audited_once_and_a_step_in_between_never() -> None:
    """A host that repeats what it serves tells an auditor nothing; the next certificate does, and another's too."""
    taken = take_reports(KnownReports(), "e-1", report(SERVING, SERVING, INSTALLING, SERVING, RENEWED, OTHER))
    assert [each.sequence for each in taken.new] == [1, 2, 3, 4, 5, 6]
    assert taken.telling == (1, 5, 6)
    assert taken.known.counted == ("e-1", 6)


def test_what_was_durable_before_is_neither_new_nor_audited() -> None:
    """A host that didn't hear the acknowledgement says it again, with more."""
    known = take_reports(KnownReports(), "e-1", report(SERVING, INSTALLING)).known
    taken = take_reports(known, "e-1", report(SERVING, INSTALLING, RENEWED))
    assert ([each.sequence for each in taken.new], taken.telling) == ([3], (3,))


def test_another_epoch_counts_anew_and_its_outcomes_are_still_compared() -> None:
    """A host that lost its spool repeats what an auditor knows already."""
    known = take_reports(KnownReports(), "e-1", report(SERVING, INSTALLING)).known
    taken = take_reports(known, "e-2", report(SERVING))
    assert ([each.sequence for each in taken.new], taken.telling) == ([1], ())
    assert taken.known.counted == ("e-2", 1)


def test_nothing_is_changed_in_what_was_known() -> None:
    """A transaction that is tried again begins with the same."""
    known = KnownReports("e-1", 1, {"web": SERVING.outcome})
    first = take_reports(known, "e-1", report(RENEWED, first=2))
    assert take_reports(known, "e-1", report(RENEWED, first=2)) == first
