"""Whether an identity that was let in before may still have certificates, from memory alone.

Asked about orders under way and before a certificate is handed out, however long ago the identity called.
"""

from __future__ import annotations

from certplane.broker.ports import DenyList, IdentityLedger, IdentityTrust
from certplane.errors import Reason, Refusal, RefusalError


def shut_out() -> Refusal:
    """Why an identity on the deny-list is refused."""
    return Refusal(Reason.IDENTITY_REVOKED, "an operator of the broker has denied this identity; contact an operator")


def check_standing(
    deny_list: DenyList, trust: IdentityTrust, name: str, certificate: tuple[str, str], anchor: str
) -> None:
    """Whether the identity's certificate (issuer, serial number) is neither denied nor of a removed CA.

    What an order of an older release doesn't say isn't asked.

    Raises:
        RefusalError: IDENTITY_REVOKED or IDENTITY_UNKNOWN.
    """
    if deny_list.denied(name, *certificate) is not None:
        raise RefusalError.of(shut_out())
    if anchor and not trust.trusts(anchor):
        raise RefusalError(
            Reason.IDENTITY_UNKNOWN,
            "the broker no longer trusts the CA of this identity; retry the call, or enroll again",
        )


def check_uncontested(identities: IdentityLedger, name: str) -> None:
    """Whether the identity of a host has one holder.

    Raises:
        RefusalError: IDENTITY_CONTESTED.
    """
    known = identities.known(name)
    if known is not None and known.contest is not None:
        raise RefusalError(
            Reason.IDENTITY_CONTESTED,
            f"two holders use the identity {name} in turn, since {known.contest.time:%Y-%m-%dT%H:%M:%SZ}: it gets no "
            "new certificates until an operator of the broker decides (`certplane-broker identity list`, then "
            "`identity allow`)",
        )
