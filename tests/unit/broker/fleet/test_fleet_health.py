"""How bad it is with one certificate, by what the broker knows, in one word; and when time makes it another."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from certplane.broker.fleet.facts import facts_of
from certplane.broker.fleet.health import HostKnowledge, certificate_health, next_change
from certplane.broker.fleet.model import Block, RevokedCertificate
from certplane.errors import Reason, Refusal
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate, RenewalStep
from certplane.runtime.health import NONE_YET, HealthActor, HealthWord, Severity

NOW = datetime(2026, 11, 28, 3, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
UP = HostKnowledge(heard=True)
DOWN = HostKnowledge(heard=False, last_heard=NOW - 2 * DAY)
LIMITED = {
    "state": CertificateState.FAILED,
    "failed_step": RenewalStep.REQUEST,
    "last_error": "RATE_LIMITED: too many",
    "request_failures": 1,
    "next_attempt_time": NOW + HOUR,
}
REFUSED = LIMITED | {"last_error": "NAMES_NOT_ALLOWED: the profile lacks x"}
NOT_INSTALLED = {
    "state": CertificateState.FAILED,
    "failed_step": RenewalStep.INSTALL,
    "last_error": "no room",
    "activation_failures": 2,
    "next_attempt_time": NOW + HOUR,
}


def held(serial: str, left: timedelta = 80 * DAY, **fields: Any) -> HeldCertificate:
    end = NOW + left
    values = {"version": int(serial, 16), "certificate_id": f"certificate-{serial}", **fields}
    return HeldCertificate(serial, end - 90 * DAY, end, **values)


def well(
    left: timedelta = 80 * DAY, state: CertificateState = CertificateState.SERVING, **fields: Any
) -> CertificateStatus:
    """Version 2 is issued, installed and served, and due at two thirds of its life."""
    newest = held("2", left)
    values = {"issued": newest, "installed": newest, "served": newest, "renew_time": NOW + left - 30 * DAY, **fields}
    return CertificateStatus("web", state, profile="web", **values)


def knowing(host: HostKnowledge = UP, *revoked: str, why_none: str = "") -> HostKnowledge:
    found = {each: RevokedCertificate("web1", each, NOW - HOUR, "keyCompromise") for each in revoked}
    block = Block(why_none, "IDENTITY_UNKNOWN", "see policy.yml") if why_none else None
    return replace(host, revoked=found, block=block)


@dataclass(frozen=True)
class Case:
    word: HealthWord
    status: CertificateStatus
    host: HostKnowledge = UP
    says: tuple[str, ...] = ()
    remedy: str = ""


FOREIGN = held("beef", version=0, certificate_id="")
NEXT = held("3", 89 * DAY)
SHUT_OUT = "the policy no longer has it"

ASKING = replace(well(), profile="shop", dns_names=("shop.example.test",))
LACKING = replace(
    UP, refusal=lambda _profile, _names: Refusal(Reason.NAMES_NOT_ALLOWED, "this one lacks store.example.test")
)
NO_PROFILE = replace(UP, refusal=lambda _profile, _names: Refusal(Reason.PROFILE_NOT_ALLOWED, "not for this identity"))
SILENT = replace(DOWN, unheard_time=NOW - HOUR)

CASES = {
    "all is well": Case(HealthWord.OK, well()),
    "all was well when the host was last heard": Case(HealthWord.OK, well(), DOWN),
    "expired and served": Case(HealthWord.EXPIRED, well(-HOUR), UP, ("expired at 2026-11-28 02:00",), "renew web"),
    "expires this moment": Case(HealthWord.EXPIRED, well(timedelta())),
    "expired, and its host is down": Case(
        HealthWord.EXPIRED, well(-HOUR, state=CertificateState.WAITING), DOWN, ("last heard at 2026-11-26",), "check that the host"
    ),
    "expired, and its host never came back": Case(HealthWord.EXPIRED, well(-HOUR), HostKnowledge(heard=False), ("is down",)),
    "expired, and limited": Case(HealthWord.EXPIRED, well(-HOUR, **LIMITED), UP, ("RATE_LIMITED",)),
    "expired, and asked for": Case(
        HealthWord.EXPIRED, well(-HOUR, state=CertificateState.REQUESTING, last_error="for DNS"), UP, ("; waits: for DNS",)
    ),
    "expired, the next one isn't installed": Case(HealthWord.EXPIRED, well(-HOUR, issued=NEXT)),
    "expired, revoked, denied, and a stranger's is served": Case(
        HealthWord.EXPIRED, well(-HOUR, served=FOREIGN), knowing(UP, "2", why_none=SHUT_OUT)
    ),
    "issued alone, and expired": Case(HealthWord.EXPIRED, well(-HOUR, installed=None, served=None)),
    "the service serves one that expired": Case(
        HealthWord.EXPIRED, well(served=held("1", -HOUR)), UP, ("serves 1", "02:00"), "reload it"
    ),
    "the identity expired": Case(
        HealthWord.EXPIRED, replace(well(-HOUR), name="identity", profile="", served=None), UP, (), "enroll --force"
    ),
    "the identity expired, so that its host is down": Case(
        HealthWord.EXPIRED, replace(well(-HOUR), name="identity", profile="", served=None), DOWN, ("is down",), "enroll --force"
    ),
    "revoked, and nobody renews it": Case(
        HealthWord.REVOKED_IN_USE, well(**LIMITED), knowing(UP, "2"), ("keyCompromise", "RATE_LIMITED"), "renew web"
    ),
    "revoked, and its host is down": Case(HealthWord.REVOKED_IN_USE, well(), knowing(DOWN, "2"), ("is down",)),
    "the one before was revoked, and is served": Case(
        HealthWord.REVOKED_IN_USE, well(served=held("1")), knowing(UP, "1"), ("serves 1",), "reload it"
    ),
    "the one before was revoked, long gone": Case(HealthWord.OK, well(), knowing(UP, "1")),
    "revoked and a stranger's is served": Case(HealthWord.REVOKED_IN_USE, well(served=FOREIGN), knowing(UP, "2")),
    "a stranger's is served": Case(HealthWord.FOREIGN_SERVED, well(served=FOREIGN), UP, ("beef",), "reload it"),
    "a stranger's is served, and its host gets no other": Case(
        HealthWord.FOREIGN_SERVED, well(served=FOREIGN), knowing(why_none=SHUT_OUT)
    ),
    "what was there before the agent is served": Case(
        HealthWord.OK, well(issued=FOREIGN, installed=FOREIGN, served=FOREIGN)
    ),
    "policy doesn't have the host": Case(HealthWord.WONT_HEAL, well(), knowing(why_none=SHUT_OUT), (SHUT_OUT,), "policy.yml"),
    "policy says no": Case(HealthWord.WONT_HEAL, well(**REFUSED), UP, ("NAMES_NOT_ALLOWED",), "fix the cause"),
    "the next try comes after the end": Case(HealthWord.WONT_HEAL, well(HOUR / 2, **LIMITED), UP, ("next try",)),
    "the next activation comes after the end": Case(HealthWord.WONT_HEAL, well(HOUR / 2, **NOT_INSTALLED)),
    "the identity of a host that gets nothing": Case(
        HealthWord.OK, replace(well(), name="identity", profile=""), knowing(why_none=SHUT_OUT)
    ),
    "the renewal is late": Case(HealthWord.OVERDUE, well(14 * DAY), UP, ("ends at",), "renew web"),
    "the renewal is late, since its host is down": Case(HealthWord.OVERDUE, well(14 * DAY), DOWN, ("is down",), "check that"),
    "late, and failing": Case(HealthWord.OVERDUE, well(14 * DAY, **LIMITED), UP, ("RATE_LIMITED",)),
    "due, and not late": Case(HealthWord.OK, well(16 * DAY, state=CertificateState.DUE)),
    "late by the rule for all: the host said no time": Case(HealthWord.OVERDUE, well(10 * DAY, renew_time=None)),
    "late, and what was renewed is held back": Case(
        HealthWord.OVERDUE, well(10 * DAY, issued=NEXT, activate_time=NOW + 9 * DAY, held_by_rollout_id="r1"),
        UP, ("the rollout r1 holds",), "agent activate web",
    ),
    "the time said is the next one's": Case(HealthWord.OVERDUE, well(10 * DAY, issued=NEXT, renew_time=NOW + 59 * DAY)),
    "a limit, with time to spare": Case(HealthWord.FAILING, well(**LIMITED), UP, ("request: RATE_LIMITED",), "errors.md"),
    "a name server, with time to spare": Case(
        HealthWord.FAILING, well(**LIMITED | {"last_error": "DNS_UNAVAILABLE: ns2.example.org"}), UP, (), "certplanectl orders"
    ),
    "not installed": Case(HealthWord.FAILING, well(**NOT_INSTALLED), UP, ("install: no room",), "renew web"),
    "degraded": Case(HealthWord.FAILING, well(state=CertificateState.DEGRADED), UP, ("degraded",)),
    "failed without a word": Case(HealthWord.FAILING, CertificateStatus("web", CertificateState.FAILED)),
    "there is none yet": Case(HealthWord.OK, CertificateStatus("web", CertificateState.ABSENT), UP, ("none yet",), "agent"),
    "there is none yet, and nobody asks": Case(HealthWord.FAILING, CertificateStatus("web", CertificateState.ABSENT), DOWN, ("none yet",), "run"),
    "an older one is served": Case(HealthWord.STALE_SERVED, well(served=held("1")), UP, ("serves 1", "2 is the newest"), "reload it"),
    "the newest is not installed": Case(HealthWord.STALE_SERVED, well(issued=NEXT), UP),
    "a window holds the newest back": Case(
        HealthWord.OK, well(issued=NEXT, state=CertificateState.ISSUED, activate_time=NOW + HOUR)
    ),
    "a rollout holds it back": Case(
        HealthWord.OK,
        well(issued=NEXT, state=CertificateState.ISSUED, activate_time=NOW + HOUR, held_by_rollout_id="r1"),
    ),
    "the window was missed": Case(HealthWord.STALE_SERVED, well(issued=NEXT, activate_time=NOW - HOUR)),
    "the newest is being installed": Case(HealthWord.OK, well(issued=NEXT, state=CertificateState.VERIFYING)),
    "the host went down installing the newest": Case(
        HealthWord.STALE_SERVED, well(issued=NEXT, state=CertificateState.VERIFYING), DOWN
    ),
    "policy has another name": Case(HealthWord.MISMATCHED, ASKING, LACKING, ("profile shop", "lacks store.example.test"), "agent.yml"),
    "policy has another profile": Case(HealthWord.MISMATCHED, ASKING, NO_PROFILE, ("profile shop", "doesn't give"), "policy.yml"),
    "policy has another name, and an older one is served": Case(HealthWord.STALE_SERVED, replace(ASKING, served=held("1")), LACKING),
    "an identity asks for no profile": Case(HealthWord.OK, replace(ASKING, name="identity", profile=""), LACKING),
    "its host is silent": Case(HealthWord.UNHEARD, well(), SILENT, ("last heard at 2026-11-26",), "check that the host"),
    "its host is silent, and policy has another name": Case(HealthWord.MISMATCHED, ASKING, replace(LACKING, unheard_time=NOW)),
    "its host may be silent for longer": Case(HealthWord.OK, well(), replace(SILENT, unheard_time=NOW + HOUR)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_worst_is_said(case: Case) -> None:
    """One word for what is worst, with what happened; and a remedy, where a person has to do something."""
    health = certificate_health(case.status, case.host, NOW)
    assert health.word is case.word, health
    for part in case.says:
        assert part in health.text
    assert case.remedy in health.remedy
    assert (health.severity is Severity.OK) == (health.word is HealthWord.OK) == (not health.text or health is NONE_YET)
    if health.severity is Severity.CRITICAL:
        assert health.remedy


def test_every_word_has_a_case() -> None:
    """No word is there that nothing leads to."""
    assert {case.word for case in CASES.values()} == set(HealthWord)


@dataclass(frozen=True)
class Caused:
    status: CertificateStatus
    host: HostKnowledge
    cause: str
    actor: HealthActor
    since: datetime | None


NS2 = "DNS_UNAVAILABLE: the TXT record at _acme-challenge.shop.example.test isn't visible: ns2.example.org (192.0.2.1) lacks it"
NGINX = NOT_INSTALLED | {
    "failed_step": RenewalStep.RELOAD,
    "last_error": "the reload ended with status 1: Job for nginx.service failed",
}
BEFORE = NOW - DAY
CAUSES = {
    "a name server": Caused(
        replace(ASKING, **LIMITED | {"last_error": NS2, "update_time": BEFORE}),
        UP, "DNS_UNAVAILABLE ns2.example.org", HealthActor.DNS, BEFORE,
    ),
    "a limit": Caused(well(**LIMITED), UP, "RATE_LIMITED", HealthActor.OPERATOR, None),
    "a unit": Caused(well(**NGINX), UP, "RELOAD nginx.service", HealthActor.HOST, None),
    "policy, since it refused": Caused(
        well(**REFUSED), UP, "NAMES_NOT_ALLOWED web", HealthActor.OPERATOR, None
    ),
    "policy, before it refuses": Caused(ASKING, LACKING, "NAMES_NOT_ALLOWED shop", HealthActor.OPERATOR, None),
    "its host is shut out": Caused(
        well(), knowing(why_none=SHUT_OUT), "IDENTITY_UNKNOWN", HealthActor.OPERATOR, None
    ),
    "expired, since a CA limits": Caused(
        well(-HOUR, **LIMITED | {"last_error": "ISSUER_RATE_LIMITED: too many"}), UP, "ISSUER_RATE_LIMITED",
        HealthActor.ISSUER, NOW - HOUR,
    ),
    "expired, and its host is down": Caused(well(-HOUR), DOWN, "UNHEARD", HealthActor.HOST, NOW - HOUR),
    "expired, and nothing failed": Caused(well(-HOUR), UP, "REQUEST", HealthActor.HOST, NOW - HOUR),
    "revoked": Caused(well(), knowing(UP, "2"), "REQUEST", HealthActor.HOST, NOW - HOUR),
    "a stranger's is served": Caused(well(served=FOREIGN), UP, "VERIFY", HealthActor.HOST, None),
    "silence": Caused(well(), SILENT, "UNHEARD", HealthActor.HOST, NOW - HOUR),
    "nothing": Caused(well(), UP, "", HealthActor.NOBODY, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CAUSES.values(), ids=CAUSES)
def test_what_one_cause_affects_has_one_text(case: Caused) -> None:
    """The reason or the step and what it is about, with who can act and since when; nothing that differs by host."""
    health = certificate_health(case.status, case.host, NOW)
    assert (health.cause, health.actor, health.since) == (case.cause, case.actor, case.since)


@dataclass(frozen=True)
class Passing:
    status: CertificateStatus
    words: tuple[HealthWord, ...]
    host: HostKnowledge = field(default=DOWN)


PASSING = {
    "nobody renews it": Passing(well(), (HealthWord.OK, HealthWord.OVERDUE, HealthWord.EXPIRED)),
    "an older one is served that ends first": Passing(
        well(served=held("1", 5 * DAY)), (HealthWord.STALE_SERVED, HealthWord.EXPIRED)
    ),
    "a window that is missed": Passing(
        well(30 * DAY, issued=NEXT, activate_time=NOW + DAY, served=held("2", 30 * DAY)),
        (HealthWord.OK, HealthWord.STALE_SERVED, HealthWord.OVERDUE, HealthWord.EXPIRED),
    ),
    "its host is silent": Passing(
        well(),
        (HealthWord.OK, HealthWord.UNHEARD, HealthWord.OVERDUE, HealthWord.EXPIRED),
        replace(DOWN, unheard_time=NOW + DAY),
    ),
    "there is none": Passing(CertificateStatus("web", CertificateState.ABSENT), (HealthWord.FAILING,)),
}


@pytest.mark.parametrize("case", PASSING.values(), ids=PASSING)
def test_time_alone_changes_it_at_the_moments_that_are_told(case: Passing) -> None:
    """Between two of them it stays what it was, so that whoever looks at these moments misses nothing."""
    now, words = NOW, [certificate_health(case.status, case.host, NOW).word]
    while (moment := next_change(facts_of(case.status), case.host, now)) is not None:
        just_before = certificate_health(case.status, case.host, moment - timedelta(microseconds=1)).word
        assert just_before is words[-1]
        now = moment
        if (word := certificate_health(case.status, case.host, now).word) is not words[-1]:
            words.append(word)
    assert tuple(words) == case.words
    assert certificate_health(case.status, case.host, now + 1000 * DAY).word is words[-1]
