"""What is known of a certificate of a rollout and of its host, made of what the host says and what was issued. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from certplane.broker.fleet.circumstances import UNKNOWN_INTERVAL
from certplane.broker.fleet.index import IndexedCertificate, IndexedHost
from certplane.broker.model import CertificateRecord, IdentityKind
from certplane.broker.ports import Policy
from certplane.broker.rollouts.model import ItemFacts, ItemState, RolloutAction, RolloutItem, RolloutSpec
from certplane.broker.rollouts.overrule import overruled_text
from certplane.fleet_report.model import AgentMode, CertificateState

_NOT_WELL = frozenset({CertificateState.INSTALLING, CertificateState.RELOADING, CertificateState.DEGRADED})
"""What is at the configured paths then isn't known to the service yet, or didn't do."""
_AT_WORK = frozenset({CertificateState.INSTALLING, CertificateState.RELOADING, CertificateState.VERIFYING})


@dataclass(frozen=True, slots=True)
class Successor:
    """A certificate that was issued in the place of another one.

    Attributes:
        replaced_id: The other one.
        certificate_id: Itself.
        serial_number: Its own.
        issuer: Its own.
        same_key: Whether it has the key of the other one.
    """

    replaced_id: str
    certificate_id: str
    serial_number: str
    issuer: str
    same_key: bool


class Successors(Protocol):
    """What was issued in the place of what."""

    async def successors_of(self, certificate_ids: Collection[str]) -> Sequence[Successor]:
        """Of those of these certificates that have a successor, the newest.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class Certificates(Protocol):
    """Certificates that were issued."""

    async def get_certificate(self, certificate_id: str) -> CertificateRecord | None:
        """The certificate, whoever's it is.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


@dataclass(frozen=True, slots=True)
class ItemView:
    """All that the facts of one item are made of.

    Attributes:
        item: The item.
        spec: Its rollout's.
        host: The holder; None where nothing is known of it.
        successor: What was issued in its place; None if nothing was.
        revoke_time: When what is replaced was revoked.
        taken_by: The rollout that is newer and has it; empty if none has.
        errors: What failed, in the host's words, by the certificate's name.
    """

    item: RolloutItem
    spec: RolloutSpec
    host: IndexedHost | None
    successor: Successor | None = None
    revoke_time: datetime | None = None
    taken_by: str = ""
    errors: Mapping[str, str] = field(default_factory=dict)


def held_certificate(item: RolloutItem, host: IndexedHost, successor: Successor | None) -> IndexedCertificate | None:
    """What the host says of the item: of one that holds it, or what is new; else of one of its name, profile, names."""
    ids = {item.certificate_id, item.new_certificate_id, "" if successor is None else successor.certificate_id} - {""}
    for one in host.certificates:
        if one.certificate_id in ids:
            return one
    for one in host.certificates:
        if one.name == item.certificate_name and one.profile == item.profile:
            return one
    return next(
        (one for one in host.certificates if (one.profile, one.dns_names) == (item.profile, item.dns_names)), None
    )


def facts_of(view: ItemView, policy: Policy, now: datetime) -> ItemFacts:
    """What is known now.

    A service says nothing of what it uses: what was issued to it counts as installed, and not as seen.
    """
    item, host, successor = view.item, view.host, view.successor
    gone = _why_gone(view, policy, now)
    if host is None:
        return ItemFacts(gone=gone, can_hold=False, revoke_time=view.revoke_time)
    if host.kind is IdentityKind.SERVICE:
        failure = _why_wrong(view)
        new_id = "" if successor is None or failure else successor.certificate_id
        return ItemFacts(
            is_there=True,
            can_be_told=False,
            can_hold=False,
            heard_time=now,
            new_certificate_id=new_id,
            installed=bool(new_id),
            failure=failure,
            failure_mark="" if successor is None else successor.certificate_id,
            is_final=bool(failure),
            gone=gone,
            revoke_time=view.revoke_time,
        )
    held = held_certificate(item, host, successor)
    failure, mark = _failure(view, held)
    new_id = "" if successor is None or _why_wrong(view) else successor.certificate_id
    installed, served = _in_use(item, held, new_id)
    return ItemFacts(
        is_there=host.connected or (_by_timer(host) and host.unheard_since is None),
        can_hold=host.can_hold,
        heard_time=now if host.connected else host.last_seen_time,
        interval=_interval(host),
        new_certificate_id=new_id,
        installed=installed,
        served=served,
        failure=failure,
        failure_mark=mark,
        is_final=bool(_why_wrong(view)),
        gone=gone,
        revoke_time=view.revoke_time,
    )


def uses(host: IndexedHost, certificate_id: str, serial_number: str) -> bool:
    """Whether a host has this certificate at its paths, or a service of it serves it, for all that is known."""
    return any(
        one.certificate_id == certificate_id or serial_number in (one.serial_number, one.served_serial_number)
        for one in host.certificates
    )


def _by_timer(host: IndexedHost) -> bool:
    return host.mode is AgentMode.TIMER


def _interval(host: IndexedHost) -> timedelta:
    return (host.run_interval or UNKNOWN_INTERVAL) if _by_timer(host) and not host.connected else timedelta()


def _in_use(item: RolloutItem, held: IndexedCertificate | None, new_id: str) -> tuple[bool, bool | None]:
    """Whether the new one is installed, its reload ended well, and whether it was seen served.

    One that was done stays so until its host says something else: neither the next renewal, which is under way, nor a
    host that is no more speaks against it.
    """
    was_done = item.state is ItemState.DONE
    if held is None or not new_id or (was_done and held.state in _AT_WORK):
        return was_done, None
    installed = held.certificate_id == new_id and held.state not in _NOT_WELL
    if held.state is CertificateState.VERIFYING:
        return installed, False
    if held.state is CertificateState.WAITING or not held.served_serial_number:
        return installed, None
    return installed, held.served_serial_number == held.serial_number


def _failure(view: ItemView, held: IndexedCertificate | None) -> tuple[str, str]:
    """What failed, and what tells it from another failure."""
    successor = view.successor
    if wrong := _why_wrong(view):
        return wrong, "" if successor is None else successor.certificate_id
    if held is None:
        return "", ""
    is_new = successor is not None and successor.serial_number in (held.issued_serial_number, held.serial_number)
    if held.state is CertificateState.DEGRADED and is_new:
        return _words(view, held), _mark(held)
    if held.state is CertificateState.FAILED and held.for_a_person and not is_new:
        return _words(view, held), _mark(held)
    return "", ""


def _words(view: ItemView, held: IndexedCertificate) -> str:
    return view.errors.get(held.name) or held.error_cause or "its host gave no details"


def _mark(held: IndexedCertificate) -> str:
    """Each try of the host has a time of its own for the next one."""
    time = held.next_attempt_time or held.update_time
    return "failed" if time is None else time.isoformat()


def _why_wrong(view: ItemView) -> str:
    """Why what was issued isn't what the rollout is for; empty if it is, or nothing was."""
    successor, spec = view.successor, view.spec
    if successor is None:
        return ""
    if spec.action is RolloutAction.REKEY and successor.same_key:
        return (
            "a certificate was issued, and for the same key: upgrade its agent, or set `key_rotation: always` there, "
            "and create another rollout for it"
        )
    if spec.action is RolloutAction.MOVE and successor.issuer != spec.issuer:
        return (
            f"a certificate was issued, and by {successor.issuer}: its host asked before it was told, or its broker no "
            f"longer has {spec.issuer} for the profile; create another rollout for it"
        )
    return ""


def _why_gone(view: ItemView, policy: Policy, now: datetime) -> str:
    """Why there is nothing to do any more; empty if there is."""
    item, host = view.item, view.host
    if view.taken_by:
        return overruled_text(view.taken_by)
    if why := _taken_away(view, policy):
        return why
    if host is not None and host.blocked:
        return f"its host gets no certificates: {host.blocked}"
    if item.not_after <= now and view.successor is None:
        return "it has expired, and nothing was issued in its place"
    says = host is not None and host.kind is IdentityKind.HOST and host.connected and bool(host.certificates)
    if host is not None and says and held_certificate(item, host, view.successor) is None:
        return "its host no longer has it"
    return ""


def _taken_away(view: ItemView, policy: Policy) -> str:
    """What the policy no longer gives; empty if it gives all."""
    item = view.item
    grant, profile = policy.find_grant(item.host), policy.find_profile(item.profile)
    if grant is None:
        return "the policy no longer has its host"
    if item.profile not in grant.profiles or profile is None:
        return f"the policy no longer gives its host the profile {item.profile}"
    if view.spec.action is RolloutAction.MOVE and not _allows(profile.issuers, view.spec.issuer):
        return f"the policy no longer lets {view.spec.issuer} issue for the profile {item.profile}"
    return ""


def _allows(issuers: tuple[str, ...], issuer: str) -> bool:
    """Without a list of its own a profile has the issuer of the configuration: which that is isn't policy's."""
    return not issuers or issuer in issuers
