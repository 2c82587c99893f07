"""How bad it is with one certificate, in one word."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certplane.agent.model import LineageStatus, ServedLeaf, ServiceView, Version
from certplane.agent.renewal.due import LineageSpec
from certplane.agent.renewal.facts import LineageFacts
from certplane.agent.renewal.health import lineage_health
from certplane.fleet_report.model import CertificateState, RenewalStep
from certplane.runtime.health import NONE_YET, HealthWord, Severity

NOW = datetime(2026, 11, 28, 3, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SPEC = LineageSpec("web", "host/web", dns_names=("www.example.test",), key_type="ec-p256")
WELL = LineageStatus("web", CertificateState.SERVING, NOW, confirmed_version=2, verified_version=2, verify_time=NOW)


def version(number: int, left: timedelta, life: timedelta = 90 * DAY) -> Version:
    until = NOW + left
    return Version(
        number, Path("/nowhere"), SPEC.dns_names, f"{number:x}", "f" * 64, until - life, until, key_type="ec-p256"
    )


def leaf(number: int, left: timedelta = 80 * DAY) -> ServedLeaf:
    return ServedLeaf(f"{number:x}", "f" * 64, NOW - DAY, NOW + left)


@dataclass(frozen=True)
class Case:
    word: HealthWord
    says: str = ""
    left: timedelta = 80 * DAY
    status: dict[str, object] = field(default_factory=dict)
    seen: ServiceView | None = None
    spec: LineageSpec = SPEC
    versions: tuple[int, ...] = (1, 2)
    current: int | None = 2


REFUSED = {
    "failures": 1,
    "request_error": "NAMES_NOT_ALLOWED: the profile lacks x",
    "last_error": "NAMES_NOT_ALLOWED: the profile lacks x",
    "next_attempt_time": NOW + HOUR,
}
LIMITED = REFUSED | {"request_error": "RATE_LIMITED: too many", "last_error": "RATE_LIMITED: too many"}
NOT_INSTALLED = {
    "activation_failures": 2,
    "last_error": "no room",
    "failed_step": RenewalStep.INSTALL,
    "next_activation_time": NOW + HOUR,
}
FOREIGN = {
    "verified_version": None,
    "served_serial_number": "beef",
    "verify_error": "serves ANOTHER",
    "verify_failures": 1,
}

CASES = {
    "all is well": Case(HealthWord.OK),
    "an hour before its end, and failing": Case(HealthWord.WONT_HEAL, "next try", left=HOUR, status=LIMITED),
    "expired, and the service serves it": Case(HealthWord.EXPIRED, "expired at 2026-11-28 02:00", left=-HOUR),
    "expired, and limited": Case(HealthWord.EXPIRED, "RATE_LIMITED", left=-HOUR, status=LIMITED),
    "the service serves one that expired": Case(
        HealthWord.EXPIRED, "serves 1", seen=ServiceView(leaf(1, -HOUR), "serves the old one")
    ),
    "revoked, and no other comes": Case(
        HealthWord.REVOKED_IN_USE, "RATE_LIMITED", status=LIMITED | {"revoked_versions": (2,)}
    ),
    "the one before was revoked, and is served": Case(
        HealthWord.REVOKED_IN_USE, "version 1", status={"revoked_versions": (1,)}, seen=ServiceView(leaf(1), "old")
    ),
    "the one before was revoked, long gone": Case(HealthWord.OK, status={"revoked_versions": (1,)}),
    "a stranger's was served at the last look": Case(HealthWord.FOREIGN_SERVED, "ANOTHER", status=FOREIGN),
    "a stranger's is served now": Case(HealthWord.FOREIGN_SERVED, "is not", seen=ServiceView(leaf(9), "is not ours")),
    "the last look was bad, this one is well": Case(HealthWord.OK, status=FOREIGN | {"verify_error": ""}, seen=ServiceView(leaf(2), "")),
    "policy says no": Case(HealthWord.WONT_HEAL, "NAMES_NOT_ALLOWED", status=REFUSED),
    "the renewal is late": Case(HealthWord.OVERDUE, "ends at", left=2 * DAY),
    "a limit, with time to spare": Case(HealthWord.FAILING, "RATE_LIMITED", status=LIMITED),
    "not installed": Case(HealthWord.FAILING, "install: no room", status=NOT_INSTALLED),
    "there is none yet": Case(HealthWord.OK, "none yet", versions=(), current=None),
    "the service doesn't answer": Case(HealthWord.FAILING, "refused", seen=ServiceView(None, "connection refused")),
    "an older one is served": Case(HealthWord.STALE_SERVED, "serves version 1", seen=ServiceView(leaf(1), "old")),
    "agent.yml has other names": Case(
        HealthWord.MISMATCHED, "api.example.test", spec=replace(SPEC, dns_names=("api.example.test",))
    ),
    "agent.yml has another kind of key": Case(HealthWord.MISMATCHED, "rsa-2048", spec=replace(SPEC, key_type="rsa-2048")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_worst_is_said(case: Case) -> None:
    """One word for what is worst, with what happened; and a remedy, where a person can do something."""
    versions = tuple(version(number, case.left) for number in case.versions)
    current = next((each for each in versions if each.number == case.current), None)
    facts = LineageFacts(versions, current, None, replace(WELL, **case.status))  # type: ignore[arg-type]  # a table of keywords
    health = lineage_health(case.spec, facts, NOW, seen=case.seen)
    assert health.word is case.word
    assert case.says in health.text
    assert (health.severity is Severity.OK) == (health.word is HealthWord.OK) == (not health.text or health is NONE_YET)
    if health.severity is Severity.CRITICAL:
        assert health.remedy


def test_an_identity_has_other_remedies() -> None:
    """Nobody can `renew` it; a new token may be needed."""
    facts = LineageFacts((version(1, -HOUR),), version(1, -HOUR), None, WELL)
    health = lineage_health(LineageSpec("identity", "host"), facts, NOW, identity=True)
    assert health.word is HealthWord.EXPIRED
    assert "enroll --force" in health.remedy
