"""Limits of CAs, the buckets in which their places are counted, and the orders that wait for a place. Values only.

A *limit* is a rule of a CA: so many orders, or certificates, in so much time, counted by its scope. For each subject of
the scope (the account, a registered domain, a set of names, a name) there is a *bucket* of `amount` places. An order
takes a place in each bucket that it needs (`Claim`); places come back one after the other, evenly, all within `per`.

The ledger's state is `LedgerState`: all that decides when which order can go is in it, so that a forecast needs
nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

_HOUR: Final = timedelta(hours=1)
_MINUTE: Final = timedelta(minutes=1)


class LimitScope(StrEnum):
    """What a CA counts by; values are those of broker.yml."""

    ACCOUNT = "account"
    """Orders of the ACME account."""
    REGISTERED_DOMAIN = "registered_domain"
    """Certificates below one registered domain, whoever asks for them."""
    NAMES = "names"
    """Certificates of exactly the same names, whoever asks for them."""
    FAILED_VALIDATIONS = "failed_validations"
    """Failed validations of one name, by the account. An order takes none; one that fails does."""

    @property
    def counts_certificates(self) -> bool:
        """Whether the CA counts what it has issued: an order that is never finalised counts for nothing there."""
        return self in (LimitScope.REGISTERED_DOMAIN, LimitScope.NAMES)


class Exemption(StrEnum):
    """What takes no place; values are those of broker.yml."""

    ARI = "ari"
    """An order that names what it replaces, while the window that the CA suggests for that is open (RFC 9773 5)."""
    SAME_NAMES = "same_names"
    """An order for exactly the names of a certificate that the CA has issued in the last `SAME_NAMES_WITHIN`."""


SAME_NAMES_WITHIN: Final = timedelta(days=120)
"""How far back Let's Encrypt looks for a certificate of the same names (Boulder, `wfe2.NewOrder`)."""

_COUNTED_WITHIN: Final = {
    # Counted when the order is made: within the time that the call takes, and its repetition.
    LimitScope.ACCOUNT: _MINUTE,
    # Counted when the certificate is issued: an order may take that long.
    LimitScope.REGISTERED_DOMAIN: 15 * _MINUTE,
    LimitScope.NAMES: 15 * _MINUTE,
    # Counted when the CA has looked; it is known here a moment later.
    LimitScope.FAILED_VALIDATIONS: timedelta(),
}


@dataclass(frozen=True, slots=True)
class Rate:
    """How a bucket fills.

    Attributes:
        amount: Places of a full bucket.
        interval: After so long another place is there.
        lag: So much later than here the CA may count an order, and so much later a place is there for it. At most one
            interval: of a short limit that is all that caution may cost.
    """

    amount: int
    interval: timedelta
    lag: timedelta


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a CA: at most `amount` in `per`.

    Attributes:
        name: What people call it; of the limits of one CA each has its own.
        scope: What it counts by.
        amount: Places of a full bucket; at least 1.
        per: In this time an empty bucket is full again; at least a second.
        exempt: What takes no place.
    """

    name: str
    scope: LimitScope
    amount: int
    per: timedelta
    exempt: frozenset[Exemption] = frozenset()
    rate: Rate = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Work out how its buckets fill: rounded up, so that never a place too many is there."""
        interval = -(-self.per // self.amount // timedelta.resolution) * timedelta.resolution
        lag = min(_COUNTED_WITHIN[self.scope], interval)
        object.__setattr__(self, "rate", Rate(self.amount, interval, lag))

    @property
    def text(self) -> str:
        """For people: `5 per 168h`."""
        return f"{self.amount} per {span_text(self.per)}"


def span_text(span: timedelta) -> str:
    """A span as broker.yml has it: whole hours, else minutes, else seconds."""
    for unit, letter in ((_HOUR, "h"), (_MINUTE, "m")):
        if span >= unit and not span % unit:
            return f"{span // unit}{letter}"
    return f"{span.total_seconds():g}s"


@dataclass(frozen=True, slots=True)
class IssuerLimits:
    """The limits of one configured issuer.

    Attributes:
        issuer: Its name in the configuration: one account at one CA.
        directory_url: The CA.
        source: Where the limits come from: `letsencrypt`, `none` or `configuration`.
        limits: In the order of the configuration; none: nothing is counted for it.
    """

    issuer: str
    directory_url: str
    source: str
    limits: tuple[Limit, ...] = ()


class BucketKey(NamedTuple):
    """Which bucket. What a CA counts for all accounts is one bucket, however many issuers of ours are that CA.

    Attributes:
        directory_url: The CA.
        account: The issuer's name where the CA counts by account; else empty.
        limit: The limit's name.
        subject: The registered domain, the name, or SHA-256 of the set of names; empty of an account.
    """

    directory_url: str
    account: str
    limit: str
    subject: str

    @property
    def digest(self) -> str:
        """The bucket in rows: SHA-256 in hex, as short for a long URL."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Level:
    """How full a bucket is; `gcra` reads and changes it.

    Attributes:
        since: When the first place was taken since the bucket was full for the last time.
        full_time: When all places are there again, had the CA counted each order at once.
    """

    since: datetime
    full_time: datetime


FULL: Final = Level(datetime.fromtimestamp(0, UTC), datetime.fromtimestamp(0, UTC))
"""Of a bucket of which nothing was ever taken."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of which places are taken; one that isn't known is full.

    Attributes:
        key: Which one.
        label: Its subject for people: the registered domain, the name, or the names, joined by commas and cut at 200
            characters; empty of an account.
        level: How full it is.
        told_until: When the CA, which has refused an order, said that it has a place again; None: what is computed
            was never corrected.
    """

    key: BucketKey
    label: str
    level: Level
    told_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Need:
    """One bucket that an order needs a place in.

    Attributes:
        key: Which one.
        label: As in `Bucket`.
        limit: Its limit.
        takes: Whether the order takes a place; else one has to be there, and one more, since only a failed validation
            takes one and the last must not be met.
        unless_known: Whether it is not needed where the CA has issued for the same names (`SAME_NAMES`).
    """

    key: BucketKey
    label: str
    limit: Limit
    takes: bool = True
    unless_known: bool = False


class Urgency(NamedTuple):
    """Who goes first: the lesser one.

    Attributes:
        rank: 0 of what replaces a certificate in use; 1 of a first issue.
        expire_time: When the certificate in use ends (or was revoked); of a first issue, when it was asked for.
        order_id: Of two that are alike, always the same one.
    """

    rank: int
    expire_time: datetime
    order_id: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What an order needs of its issuer's ledger.

    Attributes:
        issuer: Its name in the configuration.
        names_sha256: Of the order's names.
        needs: The buckets; none: it needs nothing, and the ledger isn't asked.
        urgency: Who goes first among those that wait.
    """

    issuer: str
    names_sha256: str
    needs: tuple[Need, ...]
    urgency: Urgency


@dataclass(frozen=True, slots=True)
class Waiter:
    """An open order that waits for places: of a living broker, and not made at the CA yet.

    Attributes:
        order_id: Which one; its row says the rest.
        issuer: At which issuer.
        keys: The buckets of which it needs a place.
        urgency: Who goes first.
        free_time: Not before then it can go, as was found when it asked last; others may go first.
    """

    order_id: str
    issuer: str
    keys: tuple[BucketKey, ...]
    urgency: Urgency
    free_time: datetime


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why an order has no place.

    Attributes:
        limit: The limit that is the last to have one.
        key: Its bucket.
        label: As in `Bucket`.
        free_time: When there is one at the earliest. The past: there is one, which is kept for more urgent orders.
        ahead: Orders that go first there.
        told: Whether the CA has said the time.
    """

    limit: Limit
    key: BucketKey
    label: str
    free_time: datetime
    ahead: int = 0
    told: bool = False

    @property
    def expected_time(self) -> datetime:
        """When the order can go, if nobody more urgent comes."""
        return self.free_time + self.ahead * self.limit.rate.interval

    def text(self, now: datetime) -> str:
        """For people: `budget: 5 per 168h for these names; free at 2026-11-29T02:00:00Z`."""
        whose = {
            LimitScope.ACCOUNT: "for the account",
            LimitScope.REGISTERED_DOMAIN: f"for {self.label}",
            LimitScope.NAMES: "for these names",
            LimitScope.FAILED_VALIDATIONS: f"for failed validations of {self.label}",
        }[self.limit.scope]
        said = ", as the CA says" if self.told else ""
        queue = f" after {self.ahead} more urgent" if self.ahead else ""
        free = max(self.expected_time, now)
        return f"budget: {self.limit.text} {whose}; free at {free:%Y-%m-%dT%H:%M:%SZ}{queue}{said}"


@dataclass(frozen=True, slots=True)
class LedgerState:
    """What is taken, and who waits, of some CAs.

    Attributes:
        time: When it was so.
        buckets: Those of which places are taken.
        waiters: The orders that wait, the most urgent first.
    """

    time: datetime
    buckets: Mapping[BucketKey, Bucket]
    waiters: Sequence[Waiter]
