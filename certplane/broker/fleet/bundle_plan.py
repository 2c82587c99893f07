"""What would come of an agent CA bundle in place of another, for the hosts that there are. Pure.

One comparison: for who plans a bundle, for the guard of a reload, and for what is said when a CA was taken out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from certplane.broker.fleet.audience import AnchoredHost, ShutOut, shut_out_by
from certplane.pki.trust_bundle import TrustBundle, anchor_of
from certplane.runtime.text import counted, printable

_MOST_CAS: Final = 5
_MOST_HOSTS: Final = 5
_LONGEST_NAME: Final = 100


@dataclass(frozen=True, slots=True)
class PlannedCa:
    """A CA of either bundle.

    Attributes:
        subject: RFC 4514.
        sha256: Of the certificate (DER).
        not_after: End of its validity.
        before: Whether the bundle in force has it.
        after: Whether the other one has.
        host_count: Hosts whose last identity led to it.
    """

    subject: str
    sha256: str
    not_after: datetime
    before: bool
    after: bool
    host_count: int


@dataclass(frozen=True, slots=True)
class BundlePlan:
    """What would come of a bundle; `confirmation`: why a reload with it would have to be confirmed."""

    trust_hash: str
    cas: tuple[PlannedCa, ...]
    shut_out: ShutOut
    confirmation: str


def plan_bundle(before: TrustBundle, after: TrustBundle, hosts: Sequence[AnchoredHost]) -> BundlePlan:
    """What would come of `after` in place of `before`. CAs that come and go stand first."""
    signed = Counter(host.anchor for host in hosts)
    old, new = ({each.fingerprint(hashes.SHA256()).hex(): each for each in one.certificates} for one in (before, after))
    cas = [
        PlannedCa(
            _subject(certificate),
            sha256,
            certificate.not_valid_after_utc,
            sha256 in old,
            sha256 in new,
            signed[anchor_of(certificate)],
        )
        for sha256, certificate in (old | new).items()
    ]
    cas.sort(key=lambda ca: (ca.before and ca.after, ca.subject, ca.sha256))
    return BundlePlan(after.hash, tuple(cas), shut_out_by(after.anchors, hosts), shuts_out(before, after, hosts))


def shuts_out(before: TrustBundle, after: TrustBundle, hosts: Sequence[AnchoredHost]) -> str:
    """Why a bundle is to be confirmed, going on from its name; empty if it isn't."""
    removed = before.anchors - after.anchors
    lost = shut_out_by(after.anchors, hosts)
    if not removed or not lost.connected:
        return ""
    names = sorted({_subject(each) for each in before.certificates if anchor_of(each) in removed})
    more = f" and {len(names) - _MOST_CAS} more" if len(names) > _MOST_CAS else ""
    return (
        f"would shut out {lost.connected} of {counted(lost.all_connected, 'connected host')}: "
        f"it lacks {'; '.join(names[:_MOST_CAS])}{more}"
    )


def removed_cas(before: TrustBundle, after: TrustBundle, hosts: Sequence[AnchoredHost]) -> list[str]:
    """What comes of each CA that is taken out, a line each: which hosts have an identity of it."""
    lines = []
    removed = {anchor_of(each): each for each in before.certificates if anchor_of(each) not in after.anchors}
    for anchor, ca in removed.items():
        lost = [host for host in hosts if host.anchor == anchor]
        names = ", ".join(host.name for host in lost[:_MOST_HOSTS])
        more = f" and {len(lost) - _MOST_HOSTS} more" if len(lost) > _MOST_HOSTS else ""
        whom = f"{counted(len(lost), 'host')} with an identity of it {'is' if len(lost) == 1 else 'are'} refused"
        connected = f", {sum(host.connected for host in lost)} of them connected now"
        remedy = "; each needs a new identity (`certplane-agent enroll`)"
        lines.append(f"CA removed: {_subject(ca)}: {whom}{f'{connected}: {names}{more}{remedy}' if lost else ''}")
    return lines


def _subject(certificate: x509.Certificate) -> str:
    return printable(certificate.subject.rfc4514_string(), _LONGEST_NAME)
