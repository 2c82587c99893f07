"""May this identity have this certificate? Pure: a policy, a name, what is asked for, and an answer.

A refusal tells a caller about its own request and nothing about the policy: an identity that the policy doesn't know, a
profile that doesn't exist and a profile of somebody else get one text, so that nobody can list what there is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from certplane.broker.model import Profile
from certplane.broker.ports import Policy
from certplane.errors import Reason, RefusalError, Violation
from certplane.pki.keys import KeyType

NOT_ALLOWED = "policy does not allow this identity what it asks for; the broker's audit log has the decision"
"""What IDENTITY_UNKNOWN and PROFILE_NOT_ALLOWED say alike."""

_MAX_NAMES_SHOWN = 20


class Requested(Protocol):
    """What policy looks at in a CSR (`certplane.pki.csr.CertificateRequest`)."""

    @property
    def dns_names(self) -> tuple[str, ...]:
        """Canonical names, sorted."""
        ...

    @property
    def key_type(self) -> KeyType:
        """The key's kind."""
        ...


def decide(policy: Policy, caller_name: str, profile: str, csr: Requested) -> Profile:
    """The profile under which the caller may have a certificate for the CSR.

    Args:
        policy: The snapshot to decide by.
        caller_name: The authenticated identity's name, as `Policy.find_grant` takes it.
        profile: The profile's name as the caller wrote it.
        csr: What is asked for.

    Raises:
        RefusalError: IDENTITY_UNKNOWN, PROFILE_NOT_ALLOWED (an unknown profile too), NAMES_NOT_ALLOWED, KEY_WEAK when
            the profile doesn't take this kind of key.
    """
    allowed = decide_again(policy, caller_name, profile, csr.dns_names)
    if csr.key_type not in allowed.key_types:
        message = f"this profile takes no {csr.key_type} keys; use one of {', '.join(allowed.key_types)}"
        raise RefusalError(Reason.KEY_WEAK, message, violations=[Violation("csr_pem", message)])
    return allowed


def decide_again(policy: Policy, caller_name: str, profile: str, dns_names: Collection[str]) -> Profile:
    """As `decide` for a certificate or order of known key: asked before a finalisation and each hand-out.

    Whether the answer is still the same profile is for the caller to see, by `Profile.hash`.

    Raises:
        RefusalError: IDENTITY_UNKNOWN, PROFILE_NOT_ALLOWED, NAMES_NOT_ALLOWED.
    """
    if policy.find_grant(caller_name) is None:
        raise RefusalError(Reason.IDENTITY_UNKNOWN, NOT_ALLOWED)
    allowed = policy.granted(caller_name, profile)
    if allowed is None:
        raise RefusalError(Reason.PROFILE_NOT_ALLOWED, NOT_ALLOWED)
    missing = set(allowed.dns_names).difference(dns_names)
    extra = set(dns_names).difference(allowed.dns_names)
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"lacks {_listed(missing)}")
        if extra:
            parts.append(f"asks for {_listed(extra)}, which the profile doesn't have")
        raise RefusalError(
            Reason.NAMES_NOT_ALLOWED, f"a CSR must have exactly the profile's names; this one {' and '.join(parts)}"
        )
    return allowed


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - _MAX_NAMES_SHOWN
    shown = ", ".join(ordered[:_MAX_NAMES_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown
