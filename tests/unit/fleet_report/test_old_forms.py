"""What 65c7d4a wrote is read: the agent's files and the broker's rows in tests/cases/formats-65c7d4a, made by its code."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certplane.agent.install.copying import _Journal
from certplane.agent.install.directive import JsonDirectiveFile
from certplane.agent.install.status import JsonStatusFile
from certplane.agent.install.versions import Metadata
from certplane.agent.keystore.pending import _Stored, _stored
from certplane.agent.link.state import LinkFile, LinkPhase, LinkState
from certplane.agent.model import DirectedRenewal, LineageStatus, PendingRequest
from certplane.agent.reporting.spool import FileReportSpool
from certplane.broker.renewal.model import HeldUp
from certplane.broker.store.fleet_rows import decode_status, encode_status
from certplane.broker.store.request_rows import decode_held_up, encode_held_up
from certplane.fleet_report.model import (
    CertificateState,
    CertificateStatus,
    HeldCertificate,
    RenewalCause,
    RenewalStep,
    Report,
)
from certplane.runtime.json_state import decode

OLD = Path(__file__).parents[2] / "cases" / "formats-65c7d4a"
T = datetime(2026, 11, 28, 3, 14, 15, 926535, tzinfo=UTC)
H = timedelta(hours=1)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy, since a directory that others may write isn't read."""
    return Path(shutil.copytree(OLD, tmp_path / "state"))


def held(number: int) -> HeldCertificate:
    return HeldCertificate(f"{number}a1f", T - 900 * H, T + 900 * H, f"cert-{number}", number, T - H)


FULL = CertificateStatus(
    "web", CertificateState.DEGRADED, "web", ("a.test", "b.test"), RenewalStep.RELOAD, held(5), held(3), held(2),
    T + H, "due in its window", "it failed: é", 3, 2, T + 2 * H, T + 3 * H, T,
)  # fmt: skip
IDENTITY = HeldCertificate("1f", T, T + H, version=1)


def test_status_files(old: Path) -> None:
    """A status of which every member says something, and one of which none does."""
    assert JsonStatusFile(old / "lineage").load() == LineageStatus(
        "web", CertificateState.DEGRADED, T, T + H, "due in its window", 3, T + 2 * H,
        "the reload command exited with status 1: é", 4, T + 3 * H, 3, 2, T + 4 * H, RenewalStep.RELOAD,
        "RATE_LIMITED: later", 5, 3, T + 5 * H, 2, T + 6 * H, "4a1f", T - 900 * H, T + 900 * H, 6, T + 7 * H,
        "it serves another certificate", True, (1, 2), T - H, "a" * 64, "b" * 64, "c" * 64, (T - 9 * H, T - 8 * H),
    )  # fmt: skip
    assert JsonStatusFile(old / "lineage-new").load() == LineageStatus("web", CertificateState.ABSENT, T)


def test_directive_file(old: Path) -> None:
    """The broker's last word, with the time when it was heard."""
    directed = JsonDirectiveFile(old / "lineage").load()
    assert directed == DirectedRenewal(
        "cert-1", T, RenewalCause.ISSUER, "the CA's window", "https://ca.test/why", "req-1"
    )
    assert directed.receive_time == T - H


def test_link_file(old: Path) -> None:
    """With its span of time in seconds."""
    assert LinkFile(old).load() == LinkState(
        LinkPhase.WAITING, T, "no answer", T + H, T - H, "0.9.0", timedelta(seconds=-1.5), "d" * 64, "epoch-1"
    )


def test_spool(old: Path) -> None:
    """The counting goes on, and no report is lost."""
    spool = FileReportSpool(old / "reports", names=["web", "identity"], new_epoch=lambda: "another")
    second = CertificateStatus(
        "identity", CertificateState.WAITING, "", ("web1.test",), None, IDENTITY, IDENTITY, None, T + H, update_time=T
    )
    assert spool.epoch == "epoch-7"
    assert spool.reports() == [Report(1, FULL), Report(2, second)]
    assert spool.unacknowledged == 1


def test_small_files(old: Path) -> None:
    """A version's metadata, a pending request, and the journal of a copy, which has no format."""
    lineage = old / "lineage"
    assert decode(Metadata, (lineage / "metadata.json").read_bytes()) == Metadata(
        "cert-5", T + H, "request-5", "ec-p256"
    )
    pem = "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n"
    request = PendingRequest(pem, "e" * 64, T, "cert-5", "order-6")
    assert _stored((lineage / "request.json").read_bytes()) == _Stored("request-6", request)
    assert decode(_Journal, (lineage / "install.json").read_bytes(), with_format=False) == _Journal(5)


def test_rows() -> None:
    """Statuses and what holds up a renewal; and they are written as they were, with what came later at the end."""
    rows = (OLD / "status-rows.jsonl").read_text().splitlines()
    statuses = [FULL, CertificateStatus("identity", CertificateState.WAITING)]
    assert list(map(decode_status, rows)) == statuses
    assert list(map(encode_status, statuses)) == [f'{row[:-1]},""]' for row in rows]
    text = (OLD / "held-up.json").read_text().strip()
    held_up = (
        HeldUp("web1.test", "cert-5", "RATE_LIMITED: 2 in a day", "web", T),
        HeldUp("web2.test", "cert-6", "two hold its identity"),
    )
    assert decode_held_up(text) == held_up
    assert encode_held_up(held_up) == text


def test_a_row_of_fewer_or_more_fields_is_read() -> None:
    """Those of an older release have defaults, those of a newer one are passed over."""
    row = encode_status(FULL)
    assert decode_status(row[:-1] + ',"news"]') == FULL
    assert decode_status('["web","serving"]') == CertificateStatus("web", CertificateState.SERVING)
