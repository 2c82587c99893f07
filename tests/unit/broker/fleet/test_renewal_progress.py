"""How far a renewal is that an operator asked for: each thing that can have become of it, by what is known."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from certplane.broker.fleet.model import HostRecord, HostStream
from certplane.broker.fleet.progress import HolderNow, ProgressWord, item_progress
from certplane.broker.renewal.model import FollowedItem, RequestItem
from certplane.errors import Reason, Refusal
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate, HostFacts

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
OLD, NEW = HeldCertificate("1f", certificate_id="old"), HeldCertificate("2f", certificate_id="new")

ASKED = FollowedItem(
    1,
    RequestItem("web1.example", "old", NOW + HOUR),
    plan_request_id="r-1",
    in_force=True,
    not_after=NOW + 24 * HOUR,
    profile="web",
    dns_names=("a.example",),
)
ISSUED = replace(ASKED, in_force=False, new_certificate_id="new")
KNOWS = CertificateStatus(
    "web",
    CertificateState.SERVING,
    profile="web",
    dns_names=("a.example",),
    issued=OLD,
    installed=OLD,
    renew_time=NOW + HOUR,
)
STREAM = HostStream("web1.example", HostFacts("0.2.0"), "aa", NOW, "192.0.2.1", NOW, NOW, NOW - HOUR)


def holder(*certificates: CertificateStatus, connected: bool = True, error: str = "", why_none: str = "") -> HolderNow:
    refusal = Refusal(Reason.INTERNAL, error) if error else None
    record = HostRecord("web1.example", STREAM, certificates, directive_error=refusal)
    return HolderNow(record, connected=connected, why_none=why_none)


SERVICE = HolderNow(None, is_service=True, why_none="it is a service that isn't listening")
LATER = replace(KNOWS, renew_time=NOW + 30 * 24 * HOUR)
ON_DISK = replace(KNOWS, state=CertificateState.ISSUED, issued=NEW)

CASES = {
    "knows its time": (ASKED, holder(KNOWS), ProgressWord.PLANNED, "it is to be renewed at 2026-11-28 13:00:00 UTC"),
    "is being told": (ASKED, holder(LATER), ProgressWord.PLANNED, "it is to be renewed"),
    "knows and has gone": (ASKED, holder(KNOWS, connected=False), ProgressWord.PLANNED, "it is to be renewed"),
    "has not heard": (
        ASKED,
        holder(LATER, connected=False),
        ProgressWord.UNHEARD,
        "its host is not connected, last heard at 2026-11-28 11:00:00 UTC",
    ),
    "refused to": (ASKED, holder(LATER, error="the disk is full"), ProgressWord.FAILED, "refused to: the disk is full"),
    "asks": (
        ASKED,
        holder(replace(KNOWS, state=CertificateState.REQUESTING, last_error="waits for DNS")),
        ProgressWord.REQUESTING,
        "waits for DNS",
    ),
    "was refused": (
        ASKED,
        holder(replace(KNOWS, state=CertificateState.FAILED, request_failures=1, last_error="RATE_LIMITED: no")),
        ProgressWord.FAILED,
        "RATE_LIMITED: no",
    ),
    "host never came": (ASKED, HolderNow(None), ProgressWord.UNHEARD, "its host never came"),
    "host lost it": (ASKED, holder(), ProgressWord.GONE, "its host no longer has it"),
    "host is blocked": (
        ASKED,
        holder(KNOWS, why_none="the policy no longer has it"),
        ProgressWord.FAILED,
        "its host gets no certificates: the policy no longer has it",
    ),
    "is a service's": (ASKED, SERVICE, ProgressWord.PLANNED, "it is a service that isn't listening"),
    "is a listening service's": (
        ASKED,
        replace(SERVICE, connected=True, why_none=""),
        ProgressWord.PLANNED,
        "the service was told to renew it at",
    ),
    "is a listening service's that gets none": (
        ASKED,
        replace(SERVICE, connected=True, why_none="an operator has denied it"),
        ProgressWord.PLANNED,
        "an operator has denied it",
    ),
    "a service has renewed it": (ISSUED, SERVICE, ProgressWord.DONE, ""),
    "asked for again": (
        replace(ASKED, plan_request_id="r-2"),
        holder(KNOWS),
        ProgressWord.OVERTAKEN,
        "the request r-2 has asked for it since",
    ),
    "was due earlier anyway": (
        replace(ASKED, item=replace(ASKED.item, planned=False), plan_request_id=""),
        holder(KNOWS),
        ProgressWord.PLANNED,
        "it is to be renewed",
    ),
    "was revoked": (replace(ASKED, in_force=False, revoke_time=NOW), holder(KNOWS), ProgressWord.OVERTAKEN, "revoked"),
    "has expired and gone": (replace(ASKED, in_force=False, not_after=NOW), holder(), ProgressWord.GONE, "has expired"),
    "has expired in use": (
        replace(ASKED, in_force=False, not_after=NOW),
        holder(replace(KNOWS, state=CertificateState.FAILED, request_failures=9, last_error="no DNS")),
        ProgressWord.FAILED,
        "no DNS",
    ),
    "is no longer kept": (replace(ASKED, in_force=False, not_after=None), holder(), ProgressWord.GONE, "has expired"),
    "issued, and the host has not said so": (ISSUED, holder(KNOWS), ProgressWord.ISSUED, "not said that it has it"),
    "waits for its window": (
        ISSUED,
        holder(replace(ON_DISK, activate_time=NOW + HOUR)),
        ProgressWord.ISSUED,
        "it is installed at 2026-11-28 13:00:00 UTC",
    ),
    "is being activated": (
        ISSUED,
        holder(replace(ON_DISK, state=CertificateState.RELOADING, installed=NEW)),
        ProgressWord.ISSUED,
        "",
    ),
    "could not be activated": (
        ISSUED,
        holder(replace(ON_DISK, state=CertificateState.DEGRADED, activation_failures=1, last_error="nginx: no")),
        ProgressWord.FAILED,
        "nginx: no",
    ),
    "in use": (ISSUED, holder(replace(KNOWS, issued=NEW, installed=NEW)), ProgressWord.DONE, ""),
    "in use, and the next one fails": (
        ISSUED,
        holder(replace(KNOWS, issued=NEW, installed=NEW, state=CertificateState.FAILED, request_failures=1)),
        ProgressWord.DONE,
        "",
    ),
    "replaced again since": (
        ISSUED,
        holder(replace(KNOWS, issued=HeldCertificate("3f", certificate_id="newer"), installed=None)),
        ProgressWord.DONE,
        "",
    ),
    "issued, and the host reports nothing": (ISSUED, HolderNow(None), ProgressWord.ISSUED, "its host reports nothing"),
    "issued, and the host has dropped it": (ISSUED, holder(), ProgressWord.GONE, "its host no longer has it"),
}


@pytest.mark.parametrize("name", CASES)
def test_how_far_it_is(name: str) -> None:
    """One word for it, and why in words where there is something to say."""
    followed, known, word, reason = CASES[name]
    found = item_progress(followed, "r-1", known, NOW)
    assert found.word is word
    assert reason in found.reason
    assert bool(found.reason) is bool(reason)
