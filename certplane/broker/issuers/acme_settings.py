"""A public CA as broker.yml describes it: the keys of `issuer.acme` and `issuers.NAME.acme` that are no DNS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from certplane.broker.budget.published import LimitsSettings
from certplane.broker.contact import NO_CONTACT, ContactEmail
from certplane.broker.issuers.challenge_kinds import ChallengeKind
from certplane.config.decoding import KeyProblem
from certplane.config.values import HttpsUrl


class EabAlgorithm(StrEnum):
    """How an external account's key binds (RFC 7518 3.1)."""

    HS256 = "HS256"
    HS384 = "HS384"
    HS512 = "HS512"


@dataclass(frozen=True, slots=True)
class EabSettings:
    """The external account that the CA wants its accounts bound to; `hmac_secret` names the base64url MAC key."""

    kid: str
    hmac_secret: str
    algorithm: EabAlgorithm = EabAlgorithm.HS256


@dataclass(frozen=True, slots=True)
class RenewalInfoSettings:
    """Whether the CA is asked when its certificates should be renewed (RFC 9773)."""

    enabled: bool = True


@dataclass(frozen=True, slots=True)
class AccountKeySettings:
    """Where the account's key is: in a file, in a secret, or in the database. One of the three is set."""

    shorthand: ClassVar[str] = "file"
    file: Path | None = None
    secret: str = ""
    store: bool = False

    @property
    def place(self) -> str:
        """Where it is, for people."""
        if self.store:
            return "the database"
        return f"the secret {self.secret}" if self.secret else str(self.file)

    def problems(self) -> Iterator[KeyProblem]:
        """One place, and not two that could differ."""
        named = [name for name in ("file", "secret", "store") if getattr(self, name)]
        if not named:
            yield KeyProblem("file", "is required", "name a file, or write `secret: NAME` or `store: true` instead")
        for name in named[1:]:
            yield KeyProblem(name, f"stands beside `{named[0]}`, and the key is in one place", "leave one of them out")


@dataclass(frozen=True, slots=True, kw_only=True)
class AcmeCaSettings:
    """A public CA (RFC 8555) and our account there.

    `account_key` in a file or the database is made on first use. `ca_bundle` is for a private CA's own HTTPS,
    `allowed_hosts` for hosts other than the directory's that its URLs may name. `preferred_chain` is the common name of
    the issuer of a chain's last certificate. `challenge` is how names are proved to it.
    """

    directory_url: HttpsUrl
    account_key: AccountKeySettings
    challenge: ChallengeKind = ChallengeKind.DNS_01
    account_email: ContactEmail = NO_CONTACT
    preferred_chain: str = ""
    eab: EabSettings | None = None
    ca_bundle: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    renewal_info: RenewalInfoSettings = field(default_factory=RenewalInfoSettings)
    limits: LimitsSettings | None = None
