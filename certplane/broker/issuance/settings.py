"""The numbers that issuance goes by, and why they are what they are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta

from certplane.broker.ports import DurableLimits
from certplane.runtime.backoff import Backoff

_STEP_RETRY = Backoff(timedelta(seconds=2), timedelta(minutes=1), floor=timedelta(seconds=1))
_STORE_RETRY = Backoff(timedelta(milliseconds=200), timedelta(seconds=15), floor=timedelta(milliseconds=50))


@dataclass(frozen=True, slots=True)
class IssuanceSettings:
    """Limits and times of issuance; the defaults are meant to be right for a public CA."""

    limits: DurableLimits = field(default_factory=DurableLimits)
    account_keys_sha256: Collection[str] = frozenset()
    """Hashes of the ACME accounts' public keys, which no certificate may have. Grows when an account's key changes."""

    parallel_orders: int = 256
    """ACME orders under way at once, some 50 KB each. Nearly all of an order's time is waiting until the DNS has spread
    its records, which the CA doesn't notice: what it does is bounded by an issuer's workers and by `orders_asked_for`.
    A few hundred new orders in hours are what a public CA allows an account (Let's Encrypt: 300 in three)."""

    orders_asked_for: int = 4
    """Of these, so many ask one CA for a new order at once. The rest hear of a rate limit without having met it."""

    order_time_limit: timedelta = timedelta(minutes=10)
    """From an order's turn until it must be ready to be finalised: covers slow DNS and a CA's short outage."""

    approving_issuers: Collection[str] = frozenset()
    """Issuers to which nothing is proved: their orders wait for what the CA does by itself, or its people."""

    approval_time_limit: timedelta = timedelta(minutes=30)
    """In the place of `order_time_limit` for those: CAs that look names up in an account's contract take 20 minutes."""

    call_timeout: timedelta = timedelta(seconds=60)
    """One step at the CA."""

    failover_after: timedelta = timedelta(seconds=30)
    """How long an issuer must be out of reach before an order goes to another: a lost connection moves nobody."""

    chain_patience: timedelta = timedelta(minutes=10)
    """How long an issued certificate is fetched again whose chain can't be used."""

    unusable_chain_pause: timedelta = timedelta(days=1)
    """After that, before another order: it would bring the same chain, and cost one more certificate of a week's five.
    At most half of what is left of the life of the one in use."""

    preflight_timeout: timedelta = timedelta(seconds=10)
    """For what can be known before an order is spent; without an answer by then the order goes on."""

    dns_timeout: timedelta = timedelta(seconds=60)
    """Writing or removing an order's records."""

    propagation_timeout: timedelta = timedelta(minutes=3)
    """Until every authoritative server that answers has the records; providers are usually done within one minute."""

    revocation_timeout: timedelta = timedelta(seconds=30)

    retry: Backoff = _STEP_RETRY
    """Between tries of one order's step."""

    store_retry: Backoff = _STORE_RETRY
    """Between tries of a journal write; these have no limit, since what the CA issued must be stored."""

    longest_wait: timedelta = timedelta(minutes=10)
    """A caller's `wait` is cut to it."""

    parking_grace: timedelta = timedelta(seconds=10)
    """How long a stopping broker lets the storing of an issued certificate go on after its time is up."""

    csr_cache_size: int = 4096
    """Verified CSRs, some 2 KB each, and as many of what they say; 32 MB at most."""

    order_cache_size: int = 4096
    """Ended orders, which never change again, about 2 KB each."""

    def time_limit(self, issuer: str) -> timedelta:
        """From an order's turn at `issuer` until it must be ready to be finalised."""
        return self.approval_time_limit if issuer in self.approving_issuers else self.order_time_limit
