"""How names are proved to a CA: what `acme.challenge` of an issuer says."""

from __future__ import annotations

from enum import StrEnum


class ChallengeKind(StrEnum):
    """Values are those of the configuration; but for `none` the CA names its challenges so too (RFC 8555 9.7.8)."""

    DNS_01 = "dns-01"
    """A TXT record that the broker writes for each order (RFC 8555 8.4)."""
    DNS_PERSIST_01 = "dns-persist-01"
    """A TXT record that the domain's owner has written once (draft-ietf-acme-dns-persist)."""
    NONE = "none"
    """Nothing is proved in an order: the CA has approved the account's names beforehand."""

    @property
    def caa_method(self) -> str:
        """As CAA's `validationmethods` names it (RFC 8657 4); empty where only the CA knows how it has approved."""
        return "" if self is ChallengeKind.NONE else self.value
