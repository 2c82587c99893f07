"""How bad it is with one certificate: one word, worst first, in the same words everywhere. Pure.

A state (`CertificateState`) says where a certificate is in its renewal; health says whether anybody is hurt, or will
be:

    EXPIRED          what is in place, or what the service serves, has expired
    REVOKED_IN_USE   it was revoked, and is still in place or served
    FOREIGN_SERVED   the service serves a certificate that isn't this host's
    WONT_HEAL        what failed needs a person, or its next try comes after the end of what is in place
    OVERDUE          its renewal is late (`warn_before`)
    FAILING          a step fails, and is tried again before the end
    STALE_SERVED     the service serves an older version than what is in place
    MISMATCHED       agent.yml wants other names or another kind of key than the newest version has
    OK               none of these; there may be no certificate yet
"""

from dataclasses import dataclass
from datetime import datetime

from certplane.agent.model import ServedLeaf, ServiceView, Version
from certplane.agent.renewal.due import LineageSpec, aborted_rollout, waiting_text, warn_time
from certplane.agent.renewal.facts import LineageFacts
from certplane.agent.renewal.failures import needs_person
from certplane.agent.renewal.plan import newest_version
from certplane.fleet_report.model import RenewalStep
from certplane.runtime.health import NONE_YET, REMEDY_FOR_SERVICE, Health, HealthWord
from certplane.runtime.health import moment_text as _text

_REMEDY_FOR_AGENT_YML = "`certplane-agent reload` has the running agent read it; a timer's next run does by itself"


def lineage_health(
    spec: LineageSpec, facts: LineageFacts, now: datetime, *, seen: ServiceView | None = None, identity: bool = False
) -> Health:
    """How bad it is.

    Args:
        spec: What the configuration wants.
        facts: What is on disk, the broker's directive laid over it: that is where a revocation is.
        now: The wall clock's time.
        seen: What the service serves, where somebody has just looked; else what the last look found counts.
        identity: Whether this is the host's own identity, which has other remedies.
    """
    return (
        _hurting(spec, facts, now, _Served.of(facts, seen), identity=identity)
        or _late(spec, facts, now, identity=identity)
        or _failing(facts, _Served.of(facts, seen))
        or _mismatched(spec, facts)
        or (Health(HealthWord.OK) if facts.versions else NONE_YET)
    )


@dataclass(frozen=True, slots=True)
class _Served:
    """What a look at the service found: `version` of this host, None if it is none of them."""

    serial_number: str = ""
    not_after: datetime | None = None
    version: int | None = None
    problem: str = ""

    @classmethod
    def of(cls, facts: LineageFacts, seen: ServiceView | None) -> "_Served":
        status = facts.status
        if seen is None:
            number = status.verified_version
            return cls(status.served_serial_number, status.served_not_after, number, status.verify_error)
        if seen.leaf is None:
            return cls(problem=seen.problem)
        number = next((each.number for each in facts.versions if _is_leaf_of(seen.leaf, each)), None)
        return cls(seen.leaf.serial_number, seen.leaf.not_after, number, seen.problem)


def _is_leaf_of(leaf: ServedLeaf, version: Version) -> bool:
    return (leaf.serial_number, leaf.public_key_sha256) == (version.serial_number, version.public_key_sha256)


def _hurting(
    spec: LineageSpec, facts: LineageFacts, now: datetime, served: _Served, *, identity: bool
) -> Health | None:
    current, revoked = facts.current, facts.status.revoked_versions
    remedy = _renew_remedy(spec, identity=identity)
    if current is not None and current.not_after <= now:
        return Health(HealthWord.EXPIRED, _with_error(f"expired at {_text(current.not_after)}", facts), remedy)
    if served.not_after is not None and served.not_after <= now:
        text = f"the service serves {served.serial_number}, which expired at {_text(served.not_after)}"
        return Health(HealthWord.EXPIRED, text, REMEDY_FOR_SERVICE)
    if current is not None and current.number in revoked:
        return Health(HealthWord.REVOKED_IN_USE, _with_error("it was revoked and is in use", facts), remedy)
    if served.version is not None and served.version in revoked:
        return Health(
            HealthWord.REVOKED_IN_USE, f"the service serves version {served.version}, a revoked one", REMEDY_FOR_SERVICE
        )
    if served.serial_number and served.version is None:
        text = served.problem or f"the service serves {served.serial_number}, which isn't this host's"
        return Health(HealthWord.FOREIGN_SERVED, text, REMEDY_FOR_SERVICE)
    return None


def _late(spec: LineageSpec, facts: LineageFacts, now: datetime, *, identity: bool) -> Health | None:
    current, status = facts.current, facts.status
    remedy = _renew_remedy(spec, identity=identity)
    if status.failures and needs_person(status):
        return Health(HealthWord.WONT_HEAL, status.request_error or status.last_error, f"fix the cause; then {remedy}")
    tries = [status.next_attempt_time] if status.failures else []
    tries += [status.next_activation_time] if status.activation_failures else []
    soonest = min((each for each in tries if each is not None), default=None)
    if current is not None and soonest is not None and soonest >= current.not_after:
        text = f"it ends at {_text(current.not_after)}, and the next try is at {_text(soonest)}"
        return Health(HealthWord.WONT_HEAL, _with_error(text, facts), remedy)
    if current is not None and current.is_own and now >= warn_time(spec, current):
        text, newest = f"ends at {_text(current.not_after)}", newest_version(facts.versions)
        if newest is not None and status.activate_after is not None and newest.number > current.number:
            rollouts = status.held_by_rollout_id, aborted_rollout(newest)
            text = f"{text}; {waiting_text(newest.number, *rollouts, _text(status.activate_after))}"
            remedy = f"`certplane-agent activate {spec.name}` uses it now"
        return Health(HealthWord.OVERDUE, _with_error(text, facts), remedy)
    return None


def _failing(facts: LineageFacts, served: _Served) -> Health | None:
    current, status = facts.current, facts.status
    if status.failures or status.activation_failures:
        step = RenewalStep.REQUEST if status.failed_step is None else status.failed_step
        return Health(HealthWord.FAILING, f"{step}: {status.last_error or status.request_error}")
    if served.version is not None and current is not None and served.version != current.number:
        text = f"the service serves version {served.version}, and version {current.number} is in place"
        return Health(HealthWord.STALE_SERVED, text, REMEDY_FOR_SERVICE)
    if served.problem:
        return Health(HealthWord.FAILING, served.problem, REMEDY_FOR_SERVICE)
    return None


def _mismatched(spec: LineageSpec, facts: LineageFacts) -> Health | None:
    newest = newest_version(facts.versions)
    if newest is None:
        return None
    if spec.dns_names and newest.dns_names != spec.dns_names:
        text = f"agent.yml has the names {' '.join(spec.dns_names)}, the certificate {' '.join(newest.dns_names)}"
        return Health(HealthWord.MISMATCHED, text, _REMEDY_FOR_AGENT_YML)
    if spec.key_type and newest.key_type != spec.key_type:
        text = f"agent.yml has a key of the kind {spec.key_type}, the certificate {newest.key_type or 'another'}"
        return Health(HealthWord.MISMATCHED, text, _REMEDY_FOR_AGENT_YML)
    return None


def _with_error(text: str, facts: LineageFacts) -> str:
    error = facts.status.request_error if facts.status.failures else facts.status.last_error
    return f"{text}; last error: {error}" if error else text


def _renew_remedy(spec: LineageSpec, *, identity: bool) -> str:
    if identity:
        return (
            "check that the agent runs and reaches the internal CA; "
            "else run `certplane-agent enroll --force` with a new token"
        )
    return f"`certplane-agent renew {spec.name}` tries at once and says why it fails"
