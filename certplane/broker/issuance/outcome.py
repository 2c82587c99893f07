"""What a failure means for an order: try the step again, or end the order, and when a new one may follow. Pure.

Every failure is classified here and nowhere else (`classify`):

| consequence | failures | what follows |
|---|---|---|
| RETRY_CALL | an issuer, DNS provider or store that can't be reached | the step again, within the order's time |
| RETRY_ORDER | a challenge failed, the CA gave the order up, and whatever nobody foresaw | a new order, after a pause |
| WAIT | a CA's rate limit | nobody asks for what the limit is about (`scopes_of`) before its time; others do |
| ASK_PERSON | new terms of service, a missing binding or CAA record, a name that no CA certifies | a person is called |

A rate limit that ends soon is waited out in the order. What a CA, a DNS provider or policy has refused stays refused.
Nothing is asked sooner than the CA said.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from certplane.broker.model import Order, OrderDraft, Scope, ScopeKind
from certplane.errors import Reason, Refusal
from certplane.pki.der import DerError, read_element, read_sequence
from certplane.runtime.backoff import Backoff

SHORT_RATE_LIMIT = timedelta(minutes=1)
"""A rate limit that ends within it is waited out in the order; a longer one would hold up the name set."""

_PASSING = frozenset(
    {
        Reason.ISSUER_UNAVAILABLE,
        Reason.DNS_UNAVAILABLE,
        Reason.STORE_UNAVAILABLE,
        Reason.AUDIT_UNAVAILABLE,
        Reason.POLICY_UNAVAILABLE,
    }
)

_SHORTEST_PAUSE = timedelta(minutes=1)
"""So much is always waited, however little of a life is left."""

_PAUSES = {
    # Five failed validations per name and hour lock a name (Let's Encrypt), one more is free every 12 minutes.
    Reason.ISSUER_REJECTED: timedelta(minutes=15),
    # A CA that limits without saying for how long: its shortest windows are of an hour or more.
    Reason.ISSUER_RATE_LIMITED: timedelta(hours=1),
    Reason.ISSUER_UNAVAILABLE: timedelta(minutes=5),
    Reason.DNS_UNAVAILABLE: timedelta(minutes=5),
    # A person has to mend it; nothing is spent at the CA by trying.
    Reason.DNS_REJECTED: timedelta(minutes=5),
    Reason.INTERNAL: timedelta(minutes=5),
}


_URN = "urn:ietf:params:acme:error:"

_ACCOUNT_PROBLEMS = frozenset({f"{_URN}userActionRequired", f"{_URN}externalAccountRequired"})
"""The CA wants something of whoever owns the account (RFC 8555 7.3.3, 7.3.4): no order of the account gets further."""

_PERSONS_PROBLEMS = _ACCOUNT_PROBLEMS | {
    # The CSR or its key, names that the CA certifies for nobody, and records that only the domain's owner changes.
    f"{_URN}{name}"
    for name in ("badCSR", "badPublicKey", "caa", "invalidProfile", "rejectedIdentifier", "unsupportedIdentifier")
}


class Consequence(StrEnum):
    """What a failure asks for."""

    RETRY_CALL = "retry_call"
    RETRY_ORDER = "retry_order"
    WAIT = "wait"
    ASK_PERSON = "ask_person"


def classify(refusal: Refusal) -> Consequence:
    """The one place that says what a failure asks for."""
    if refusal.reason in _PASSING:
        return Consequence.RETRY_CALL
    if refusal.reason is Reason.ISSUER_RATE_LIMITED:
        return Consequence.WAIT
    asks = any(problem.type in _PERSONS_PROBLEMS for problem in refusal.problems)
    if refusal.reason is Reason.DNS_REJECTED or (refusal.reason is Reason.ISSUER_REJECTED and asks):
        return Consequence.ASK_PERSON
    return Consequence.RETRY_ORDER


def scopes_of(refusal: Refusal) -> tuple[Scope, ...]:
    """What must not be asked of the issuer meanwhile; empty if only the order itself is concerned."""
    if classify(refusal) is Consequence.WAIT:
        told = [Scope.parse(violation.subject) for violation in refusal.violations]
        return tuple(scope for scope in told if scope is not None) or (Scope(ScopeKind.NAME_SET),)
    if any(problem.type in _ACCOUNT_PROBLEMS for problem in refusal.problems):
        return (Scope(ScopeKind.ACCOUNT),)
    return ()


def fails_over(refusal: Refusal) -> bool:
    """Whether another issuer may do better: this one can't be reached, limits us, or wants a person for its account.

    What it says of names, keys or records it would be wrong to ask elsewhere: the next CA would find the same, or
    certify what a person should have looked at.
    """
    if refusal.reason in (Reason.ISSUER_UNAVAILABLE, Reason.ISSUER_RATE_LIMITED):
        return True
    return Scope(ScopeKind.ACCOUNT) in scopes_of(refusal)


@dataclass(frozen=True, slots=True)
class TryAgain:
    """The step may succeed after `wait`."""

    wait: timedelta


@dataclass(frozen=True, slots=True)
class End:
    """The order is over; a new one may be asked for after `pause`."""

    refusal: Refusal
    pause: timedelta


def conclude(
    refusal: Refusal, *, failures: int, time_left: timedelta, backoff: Backoff, rng: random.Random
) -> TryAgain | End:
    """What to do after a step failed.

    Args:
        refusal: Why it failed.
        failures: Failed steps in a row, this one included.
        time_left: What is left of the order's time.
        backoff: The waits between tries.
        rng: Spreads them.
    """
    said = refusal.retry_after or timedelta()
    consequence = classify(refusal)
    passing = consequence is Consequence.RETRY_CALL or (
        consequence is Consequence.WAIT and timedelta() < said <= SHORT_RATE_LIMIT
    )
    wait = max(backoff.wait(failures, rng), said)
    if passing and wait < time_left:
        return TryAgain(wait)
    return End(refusal, pause_before_new_order(refusal))


def still_answers(failed: Order, draft: OrderDraft) -> bool:
    """Whether a failed order, whose retry time is ahead, is the answer to who asks with the same key.

    What the CA said stands for everybody. A time of our own does not once anything may be another than it was: another
    retry epoch, another CSR of the key, or somebody else (an operator, a revocation) who wants it since.
    """
    if failed.error is not None and is_told(failed.error):
        return True
    if draft.ask_time is not None and draft.ask_time > failed.update_time:
        return False
    return failed.retry_epoch == draft.retry_epoch and _request(failed.csr_der) == _request(draft.csr_der)


def is_told(refusal: Refusal) -> bool:
    """Whether a CA, or a DNS provider, said when to come back: else the wait is a guess of ours."""
    if refusal.reason is Reason.ISSUER_RATE_LIMITED:
        return True
    told = refusal.reason in (Reason.ISSUER_UNAVAILABLE, Reason.ISSUER_REJECTED, Reason.DNS_UNAVAILABLE)
    return told and refusal.retry_after is not None


def _request(csr_der: bytes) -> bytes:
    """A CSR without its signature, which is another one each time that the same is signed (RFC 2986 4.2)."""
    try:
        *request, _ = read_sequence(read_element(csr_der))
    except (DerError, ValueError):
        return csr_der
    return b"".join(part.encoded for part in request)


def cap_pause(pause: timedelta, left: timedelta | None) -> timedelta:
    """A guess of ours, but at most half of what is `left` of the life of the certificate in use, if there is one.

    What has ended already is asked for again as what is about to.
    """
    return pause if left is None else min(pause, max(left / 2, _SHORTEST_PAUSE))


def pause_before_new_order(refusal: Refusal) -> timedelta:
    """How long the failed order answers for a new one; what the CA said wins. Policy's refusals hold nothing up."""
    if refusal.retry_after is not None:
        return max(refusal.retry_after, timedelta())
    return _PAUSES.get(refusal.reason, timedelta())
