"""How bad it is with one certificate of one host, by what the broker knows: the words are `certplane.runtime.health`'s.

A host that is down says nothing, and its certificate expires all the same: so nothing here is the host's own verdict,
and time alone makes it another one (`next_change`). Pure.

    EXPIRED          what is in place, or what the service serves, has expired
    REVOKED_IN_USE   it was revoked, and is still in place or served
    FOREIGN_SERVED   the service serves a certificate that isn't this host's
    WONT_HEAL        its host gets no certificates, what failed needs a person, or the next try comes after the end
    OVERDUE          its renewal is late: half of the time between that and the end is over
    FAILING          a step fails, and is tried again before the end; or there is no certificate, and its host is silent
    STALE_SERVED     the service serves an older certificate than the newest, and nothing holds that one back
    MISMATCHED       what the host's configuration asks for isn't what the policy allows: its renewal will be refused
    UNHEARD          its host has been silent for longer than its mode allows
    OK               none of these; there may be no certificate yet

`find` decides, by facts so small that a whole fleet's are kept in memory (`index`); `certificate_health` puts what it
has found into words for people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Final

from certplane.broker.fleet.facts import CertificateFacts, facts_of
from certplane.broker.fleet.model import Block, RevokedCertificate
from certplane.errors import Reason, Refusal
from certplane.fleet_report.model import CertificateState, CertificateStatus, RenewalStep
from certplane.pki.lifetime import renew_time
from certplane.runtime.causes import cause_text
from certplane.runtime.health import (
    NONE_YET,
    REMEDY_FOR_SERVICE,
    Health,
    HealthActor,
    HealthWord,
    moment_text,
    overdue_time,
)

IDENTITY: Final = "identity"
UNHEARD_CAUSE: Final = "UNHEARD"
"""The cause of what is wrong since a host says nothing."""

_VERIFY: Final = RenewalStep.VERIFY.value.upper()
_REQUEST: Final = RenewalStep.REQUEST.value.upper()
_ACTIVATING: Final = frozenset(
    {CertificateState.ISSUED, CertificateState.INSTALLING, CertificateState.RELOADING, CertificateState.VERIFYING}
)
_ILL: Final = frozenset({CertificateState.FAILED, CertificateState.DEGRADED})


def nothing_refused(_profile: str, _dns_names: tuple[str, ...]) -> Refusal | None:
    """Policy allows what the host asks for."""
    return None


@dataclass(frozen=True, slots=True)
class HostKnowledge:
    """What the broker knows of the host whose certificate it is.

    Attributes:
        heard: Whether it is there: it has a stream, or its agent runs by a timer and was heard as often as that says.
        last_heard: When it was last heard; None if never, or unknown.
        unheard_time: From when on it is silent for longer than its mode allows, unless it comes before; None while it
            has a stream, and of one that never came.
        block: Why it gets no new certificates whatever it is told; None if it does.
        revoked: Its revoked certificates that haven't expired, by serial number.
        refusal: Why policy refuses a profile with these names to the host; None if it doesn't.
        is_service: Whether it is a service: it has no agent, and renews when it asks.
    """

    heard: bool
    last_heard: datetime | None = None
    unheard_time: datetime | None = None
    block: Block | None = None
    revoked: Mapping[str, RevokedCertificate] = field(default_factory=dict)
    refusal: Callable[[str, tuple[str, ...]], Refusal | None] = nothing_refused
    is_service: bool = False

    def is_unheard(self, now: datetime) -> bool:
        """Whether it has been silent for too long."""
        return self.unheard_time is not None and self.unheard_time <= now


class What(Enum):
    """What is wrong, where one word may have several grounds."""

    NOTHING = "nothing"
    EXPIRED_IN_USE = "expired, in use"
    EXPIRED_SERVED = "expired, served"
    REVOKED_IN_USE = "revoked, in use"
    REVOKED_SERVED = "revoked, served"
    FOREIGN = "foreign"
    BLOCKED = "blocked"
    FOR_A_PERSON = "for a person"
    TOO_LATE = "too late"
    LATE = "late"
    FAILS = "fails"
    NONE_AND_SILENT = "none, and its host silent"
    STALE = "stale"
    MISMATCHED = "mismatched"
    UNHEARD = "unheard"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a certificate: the worst of it. `cause`, `actor` and `since` are `Health`'s."""

    what: What
    word: HealthWord
    cause: str = ""
    actor: HealthActor = HealthActor.NOBODY
    since: datetime | None = None


WELL: Final = Finding(What.NOTHING, HealthWord.OK)


def find(facts: CertificateFacts, host: HostKnowledge, now: datetime) -> Finding:
    """What is wrong with it; the first that is true in the order of the words."""
    return (
        _expired(facts, host, now)
        or _revoked(facts, host)
        or _foreign(facts)
        or _late(facts, host, now)
        or _failing(facts, host)
        or _stale(facts, host, now)
        or _mismatched(facts, host)
        or _unheard(host, now)
        or WELL
    )


def next_change(facts: CertificateFacts, host: HostKnowledge, now: datetime) -> datetime | None:
    """When time alone may next make it another one; None if it can't."""
    moments = (facts.not_after, facts.served_not_after, _late_from(facts), facts.activate_time, host.unheard_time)
    return min((each for each in moments if each is not None and each > now), default=None)


def _expired(facts: CertificateFacts, host: HostKnowledge, now: datetime) -> Finding | None:
    if facts.not_after is not None and facts.not_after <= now:
        return _of_renewal(What.EXPIRED_IN_USE, HealthWord.EXPIRED, facts, host, facts.not_after)
    if facts.served_not_after is not None and facts.served_not_after <= now:
        return _of_service(What.EXPIRED_SERVED, HealthWord.EXPIRED, facts.served_not_after)
    return None


def _revoked(facts: CertificateFacts, host: HostKnowledge) -> Finding | None:
    if not host.revoked:
        return None
    if (revoked := host.revoked.get(facts.serial_number)) is not None:
        return _of_renewal(What.REVOKED_IN_USE, HealthWord.REVOKED_IN_USE, facts, host, revoked.revoke_time)
    if (revoked := host.revoked.get(facts.served_serial_number)) is not None:
        return _of_service(What.REVOKED_SERVED, HealthWord.REVOKED_IN_USE, revoked.revoke_time)
    return None


def _foreign(facts: CertificateFacts) -> Finding | None:
    if not facts.served_serial_number or facts.served_own:
        return None
    return _of_service(What.FOREIGN, HealthWord.FOREIGN_SERVED, facts.update_time)


def _late(facts: CertificateFacts, host: HostKnowledge, now: datetime) -> Finding | None:
    block = host.block
    if block is not None and facts.name != IDENTITY:  # that one is the internal CA's to give
        return Finding(What.BLOCKED, HealthWord.WONT_HEAL, block.cause, HealthActor.OPERATOR, block.since)
    if facts.for_a_person:
        return Finding(What.FOR_A_PERSON, HealthWord.WONT_HEAL, facts.error_cause, facts.error_actor, facts.update_time)
    end = facts.not_after
    if end is None:
        return None
    if facts.failing and facts.next_attempt_time is not None and facts.next_attempt_time >= end:
        return _of_renewal(What.TOO_LATE, HealthWord.WONT_HEAL, facts, host, facts.update_time)
    late = _late_from(facts)
    if late is not None and late <= now:
        return _of_renewal(What.LATE, HealthWord.OVERDUE, facts, host, late)
    return None


def _failing(facts: CertificateFacts, host: HostKnowledge) -> Finding | None:
    if facts.failing or facts.state in _ILL:
        return Finding(What.FAILS, HealthWord.FAILING, facts.error_cause, facts.error_actor, facts.update_time)
    if not facts.serial_number and not host.heard:
        return Finding(What.NONE_AND_SILENT, HealthWord.FAILING, UNHEARD_CAUSE, HealthActor.HOST, host.last_heard)
    return None


def _stale(facts: CertificateFacts, host: HostKnowledge, now: datetime) -> Finding | None:
    newest = facts.issued_serial_number or facts.serial_number
    if not newest or facts.served_serial_number in {"", newest}:
        return None
    if facts.activate_time is not None and facts.activate_time > now:
        return None  # a rollout or a window holds it back
    if host.heard and facts.state in _ACTIVATING:
        return None  # it is being done
    return _of_service(What.STALE, HealthWord.STALE_SERVED, facts.update_time)


def _mismatched(facts: CertificateFacts, host: HostKnowledge) -> Finding | None:
    if not facts.profile or not facts.dns_names:  # an identity, or nothing that was ever asked for
        return None
    refusal = host.refusal(facts.profile, facts.dns_names)
    if refusal is None:
        return None
    cause = cause_text(refusal.reason, facts.profile)
    return Finding(What.MISMATCHED, HealthWord.MISMATCHED, cause, HealthActor.OPERATOR)


def _unheard(host: HostKnowledge, now: datetime) -> Finding | None:
    if not host.is_unheard(now):
        return None
    return Finding(What.UNHEARD, HealthWord.UNHEARD, UNHEARD_CAUSE, HealthActor.HOST, host.unheard_time)


def _late_from(facts: CertificateFacts) -> datetime | None:
    """From when on the renewal of what is in use is late; None if that can't be told.

    The host's time is that of its newest certificate: where another one is in use, or the host said none, it is what
    the rule for all gives (`certplane.pki.lifetime`).
    """
    if facts.not_after is None:
        return None
    is_newest = facts.issued_serial_number in {"", facts.serial_number}
    due = facts.renew_time if is_newest else None
    if due is None or due >= facts.not_after:
        if facts.not_before is None or facts.not_before >= facts.not_after:
            return None
        due = renew_time(facts.not_before, facts.not_after, None, facts.name)
    return overdue_time(due, facts.not_after)


def _of_renewal(
    what: What, word: HealthWord, facts: CertificateFacts, host: HostKnowledge, since: datetime | None
) -> Finding:
    """One that a renewal ends: its cause is what keeps that from happening, as far as it is known."""
    if host.block is not None and facts.name != IDENTITY:
        return Finding(what, word, host.block.cause, HealthActor.OPERATOR, since)
    if facts.error_cause:
        return Finding(what, word, facts.error_cause, facts.error_actor, since)
    return Finding(what, word, _REQUEST if host.heard else UNHEARD_CAUSE, HealthActor.HOST, since)


def _of_service(what: What, word: HealthWord, since: datetime | None) -> Finding:
    """One that the host's service has to end."""
    return Finding(what, word, _VERIFY, HealthActor.HOST, since)


# In words.

_SERVED: Final = frozenset({What.EXPIRED_SERVED, What.REVOKED_SERVED, What.FOREIGN, What.STALE})
"""What the host's service has to end."""
_GONE: Final = "check that the host and its certplane-agent run"


def certificate_health(status: CertificateStatus, host: HostKnowledge, now: datetime) -> Health:
    """How bad it is, for people."""
    facts = facts_of(status)
    found = find(facts, host, now)
    if found is WELL:
        return Health(HealthWord.OK) if facts.serial_number else NONE_YET
    text, remedy = _said(found, facts, status, host)
    return Health(found.word, text, remedy, found.cause, found.actor, found.since)


def _said(found: Finding, facts: CertificateFacts, status: CertificateStatus, host: HostKnowledge) -> tuple[str, str]:
    """Text and remedy."""
    if found.what in _SERVED:
        return f"{_served_text(found, facts, host)}{_silence(host)}", REMEDY_FOR_SERVICE
    match found.what:
        case What.BLOCKED if host.block is not None:
            said = (
                f"its {'service' if host.is_service else 'host'} gets no certificates: {host.block.text}",
                host.block.remedy,
            )
        case What.FOR_A_PERSON:
            said = status.last_error, f"fix the cause; then {_renew(facts, host)}"
        case What.FAILS:
            step = status.failed_step or status.state
            said = f"{step}: {status.last_error or 'it gave no details'}", _while_failing(found, facts, host)
        case What.NONE_AND_SILENT:
            said = f"{NONE_YET.text}{_silence(host)}", _gone(host)
        case What.MISMATCHED:
            said = _mismatch(facts, host)
        case What.UNHEARD:
            said = f"its host isn't heard any more{_last(host)}", _GONE
        case _:
            newer = "; no newer one was asked for" if host.is_service else ""
            said = f"{_of_use(found, facts, host)}{newer}{_silence(host)}{_error(status)}", _renew(facts, host)
            if status.held_by_rollout_id and found.what is What.LATE:
                said = _held(said[0], status, host)
    return said


def _held(text: str, status: CertificateStatus, host: HostKnowledge) -> tuple[str, str]:
    """Of what is late since a rollout holds back what was renewed: to renew it once more changes nothing."""
    rollout = status.held_by_rollout_id
    remedy = (
        f"`certplane-agent activate {status.name}` there uses it now; `certplanectl rollout show {rollout}` says why"
    )
    return f"{text}; the rollout {rollout} holds the new one back", _gone(host) or remedy


def _served_text(found: Finding, facts: CertificateFacts, host: HostKnowledge) -> str:
    """What is wrong with what is served."""
    served = facts.served_serial_number
    match found.what:
        case What.EXPIRED_SERVED:
            what = f", which expired at {_moment(facts.served_not_after)}"
        case What.REVOKED_SERVED:
            what = f"; {_revocation(host.revoked[served])}"
        case What.FOREIGN:
            what = ", which isn't this host's"
        case _:
            what = f", and {facts.issued_serial_number or facts.serial_number} is the newest"
    return f"the service serves {served}{what}"


def _of_use(found: Finding, facts: CertificateFacts, host: HostKnowledge) -> str:
    """What is wrong with what is in use."""
    match found.what:
        case What.EXPIRED_IN_USE:
            return f"expired at {_moment(facts.not_after)}"
        case What.REVOKED_IN_USE:
            return f"is in use; {_revocation(host.revoked[facts.serial_number])}"
        case What.TOO_LATE:
            return f"it ends at {_moment(facts.not_after)}, and the next try is at {_moment(facts.next_attempt_time)}"
        case _:
            return f"ends at {_moment(facts.not_after)}"


def _error(status: CertificateStatus) -> str:
    if not status.last_error:
        return ""
    return f"; {'waits' if status.state is CertificateState.REQUESTING else 'last error'}: {status.last_error}"


def _renew(facts: CertificateFacts, host: HostKnowledge) -> str:
    """What has it renewed."""
    if host.is_service:
        return "check that the service runs and asks for a new one: the broker can't tell it to"
    gone = _gone(host)
    if facts.name == IDENTITY:  # without one its host is down, whatever runs there
        first = gone or "check that its agent reaches the internal CA"
        return f"{first}; else run `certplane-agent enroll --force` there with a new token"
    return gone or f"`certplane-agent renew {facts.name}` there tries at once and says why it fails"


def _while_failing(found: Finding, facts: CertificateFacts, host: HostKnowledge) -> str:
    """What helps where a step is tried again anyway."""
    if found.actor in {HealthActor.DNS, HealthActor.ISSUER}:
        return _gone(host) or "`certplanectl orders` shows what its orders wait for; it is tried again by itself"
    if found.actor is HealthActor.OPERATOR:
        return _gone(host) or f"docs/errors.md has what to do about {found.cause.partition(' ')[0]}"
    return _renew(facts, host)


def _mismatch(facts: CertificateFacts, host: HostKnowledge) -> tuple[str, str]:
    refusal = host.refusal(facts.profile, facts.dns_names)
    assert refusal is not None  # it was found by this
    if refusal.reason is Reason.NAMES_NOT_ALLOWED:
        text = f"agent.yml and the policy differ in the names of profile {facts.profile}: {refusal.message}"
        remedy = f"make `dns_names` of {facts.name} in agent.yml those of profile {facts.profile} in policy.yml"
        return text, f"{remedy}, and restart the agent"
    text = f"agent.yml asks for profile {facts.profile}, which the policy doesn't give to this host"
    return text, f"add the profile to the host in policy.yml, or take {facts.name} out of agent.yml"


def _silence(host: HostKnowledge) -> str:
    return "" if host.heard else f"; its host is down{_last(host)}"


def _last(host: HostKnowledge) -> str:
    return f", last heard at {moment_text(host.last_heard)}" if host.last_heard else ""


def _gone(host: HostKnowledge) -> str:
    return "" if host.heard else _GONE


def _revocation(revoked: RevokedCertificate) -> str:
    reason = f": {revoked.reason}" if revoked.reason else ""
    return f"it was revoked at {moment_text(revoked.revoke_time)}{reason}"


def _moment(time: datetime | None) -> str:
    return "no time" if time is None else moment_text(time)
