"""What directives of the broker mean for a lineage: pure.

A directive names one certificate, the identity's by its serial number, and says when it should be renewed. It is the
broker's newer word in the place of the `renew_time` that came with that certificate, and means nothing for any other:
once the certificate is replaced, the directive is over. That is also why it may be obeyed in a lifetime's first tenth
without a loop.

What it says of certificates that are held back stands beside their versions in the same way (`released`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from certplane.agent.model import Activation, ActivationHold, DirectedRenewal, Version
from certplane.agent.renewal.facts import LineageFacts
from certplane.fleet_report.model import RenewalCause

_WHY = {
    RenewalCause.LIFETIME: "the broker set the time",
    RenewalCause.ISSUER: "the CA's window (ARI)",
    RenewalCause.OPERATOR: "an operator asked",
    RenewalCause.REVOKED: "it was revoked",
}


_SPEAK_FOR_THEMSELVES = frozenset({RenewalCause.ISSUER, RenewalCause.REVOKED})
"""Causes of which the broker gives the whole reason: whether the CA asks for it now, or has just named its window."""


def laid_over(
    facts: LineageFacts, directed: DirectedRenewal | None, activations: Sequence[Activation] = ()
) -> LineageFacts:
    """The facts with what the broker said: the directive's time at the certificate that it names, if that is on disk.

    A revoked one is noted as such besides, so that nothing goes back to it. Certificates that `activations` name are
    held no longer, or as an abandoned one is.
    """
    if activations:
        facts = replace(facts, versions=tuple(released(each, activations) for each in facts.versions))
    if directed is None:
        return facts
    named = {each.number for each in facts.versions if _is_named(each, directed)}
    if not named:
        return facts

    def told(version: Version) -> Version:
        if not _is_named(version, directed):
            return version
        return replace(version, renew_time=directed.renew_time, directed=directed)

    status = facts.status
    if directed.cause is RenewalCause.REVOKED and not named <= set(status.revoked_versions):
        status = replace(status, revoked_versions=tuple(sorted({*status.revoked_versions, *named})))
    return replace(
        facts,
        versions=tuple(map(told, facts.versions)),
        current=None if facts.current is None else told(facts.current),
        status=status,
    )


def kept_directive(told: DirectedRenewal, known: DirectedRenewal | None) -> DirectedRenewal:
    """What a lineage keeps of a directive, in the place of what was `known`.

    A rollout that ends leaves its certificates to their lifetimes again. What was asked for by then may be on its way:
    it is held on, as one that a rollout has abandoned is, since nobody has let it activate.
    """
    if known is None or not known.hold_activation or known.certificate_id != told.certificate_id:
        return told
    if told.cause is not RenewalCause.LIFETIME or told.rollout_id:
        return told
    # Until then at most: what is asked for when that time comes is held by nobody.
    by = told.renew_time
    return replace(told, rollout_id=known.rollout_id, hold_activation=True, activate_by_time=by, abandoned=True)


def released(version: Version, activations: Sequence[Activation]) -> Version:
    """The version with its hold as the broker has left it."""
    if version.hold is None:
        return version
    told = next((each for each in reversed(activations) if each.certificate_id in _names_of(version)), None)
    if told is None:
        return version
    # The rollout's own time was for those that it would have released.
    left = replace(version.hold, abandoned=True, activate_by_time=None)
    return replace(version, hold=left if told.abandoned else None)


def kept_activations(
    told: Sequence[Activation], known: Sequence[Activation], facts: LineageFacts
) -> tuple[Activation, ...]:
    """What a lineage keeps of activations: the broker's `told`, in the place of what was `known` of the same.

    That is what names its newest version, and what is about the rollout that its directive is of as long as the newest
    version is the one to be replaced: the certificate may be on its way.
    """
    newest = max(facts.versions, key=lambda each: each.number, default=None)
    if newest is None:
        return ()
    coming = "" if newest.directed is None or not newest.directed.hold_activation else newest.directed.rollout_id
    every = {each.certificate_id: each for each in (*known, *told)}
    return tuple(
        each
        for each in every.values()
        if each.certificate_id in _names_of(newest) or (coming and each.rollout_id == coming)
    )


def inherited_hold(replaced: Version, current: Version | None) -> ActivationHold | None:
    """What holds back the certificate that replaces one which is held itself, and never was in use: the same.

    What waits for a rollout waits for it as long, however often the CA, or a person, has it renewed meanwhile.
    """
    if replaced.hold is None or current is None or current.number >= replaced.number:
        return None
    return replace(replaced.hold, named_as=replaced.hold.named_as or replaced.certificate_id)


def _names_of(version: Version) -> set[str]:
    """The certificates by which the broker may name what a version is."""
    return {version.certificate_id, "" if version.hold is None else version.hold.named_as} - {""}


def _is_named(version: Version, directed: DirectedRenewal) -> bool:
    if directed.is_of_identity:
        return directed.serial_number != "" and version.serial_number == directed.serial_number
    return version.certificate_id == directed.certificate_id


def explanation(directed: DirectedRenewal | None) -> str:
    """Why the broker set the time, for a person: `an operator asked: key ceremony`; empty without a directive."""
    if directed is None:
        return ""
    if directed.cause in _SPEAK_FOR_THEMSELVES and directed.reason:
        words = [directed.reason, directed.explanation_url]
    else:
        words = [_WHY[directed.cause], " ".join(filter(None, (directed.reason, directed.explanation_url)))]
    return ": ".join(filter(None, words))
