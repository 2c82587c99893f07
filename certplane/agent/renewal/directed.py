"""What a directive of the broker means for a lineage: pure.

A directive names one certificate, the identity's by its serial number, and says when it should be renewed. It is the
broker's newer word in the place of the `renew_time` that came with that certificate, and means nothing for any other:
once the certificate is replaced, the directive is over. That is also why it may be obeyed in a lifetime's first tenth
without a loop.
"""

from __future__ import annotations

from dataclasses import replace

from certplane.agent.model import DirectedRenewal, Version
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


def laid_over(facts: LineageFacts, directed: DirectedRenewal | None) -> LineageFacts:
    """The facts with the directive's time at the certificate that it names, if that is still on disk.

    A revoked one is noted as such besides, so that nothing goes back to it.
    """
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
