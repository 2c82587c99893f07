"""Orders at the CA (RFC 8555 7.1.3): made, looked at until they change, their challenges answered, their CSR sent.

Each method is a few exchanges within one deadline. What may be repeated is decided here:

- newOrder is safe to repeat: the worst is an order that nobody finishes, which the CA lets expire;
- a CSR is not: one whose answer is lost is never sent again here, and an order that a CSR was sent to is looked at
  before another is sent;
- answering a challenge is safe, because one that is no longer pending takes no second answer.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from certplane.broker.issuers.acme_client import AcmeClient
from certplane.broker.issuers.acme_directory import no_such_profile
from certplane.broker.issuers.acme_errors import AcmeError
from certplane.broker.issuers.acme_exchanges import AcmeExchanges, unsent
from certplane.broker.issuers.acme_resources import MOST_PROBLEMS, AcmeAuthorization, AcmeOrder
from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.challenge_kinds import ChallengeKind
from certplane.broker.model import DnsChallenge, IssuerOrder, IssuerOrderStatus
from certplane.errors import Reason, Refusal

_log = logging.getLogger(__name__)

_FIRST_LOOK = timedelta(milliseconds=250)
_LONGEST_LOOK = timedelta(seconds=5)
_LOOK_GROWTH = 1.6
"""Waits between looks at an order when the CA sends no Retry-After. The first finds a CA that is done at once; the
last keeps a CA that needs minutes at twelve requests each."""

_REPLACES_PROBLEMS = ("alreadyReplaced", "malformed", "unauthorized")
"""What CAs say of an order's `replaces` (RFC 9773 5): it has an order already, they don't know the member or the
certificate, or it is of another account."""

_REPLACES_STUMBLES = 2
"""Faults of the CA's own (serverInternal) after which an order is asked for without `replaces`: one may pass, but a CA
that stumbles over it does so each time. Pebble 2.10 does where the serial number begins with a zero octet."""

_UNFINISHED = frozenset({IssuerOrderStatus.PENDING, IssuerOrderStatus.READY, IssuerOrderStatus.PROCESSING})

_SENT_KEPT = 10_000
"""Orders whose CSR was sent that are remembered: far more than are under way."""


class AcmeOrders:
    """The orders of one account."""

    def __init__(self, exchanges: AcmeExchanges, challenge: ChallengeKind) -> None:
        """Nothing is sent yet; `exchanges` are the account's, and `challenge` is how names are proved."""
        self._exchanges, self._challenge = exchanges, challenge
        self._sent: dict[str, None] = {}
        """URLs of orders that a CSR was sent to, oldest first."""
        self._moved = False
        """The CA didn't know the URL of its directory at which orders are made: it may have another one by now."""

    async def create(self, names: Sequence[str], profile: str, replaces: str, deadline: Deadline) -> AcmeOrder:
        """A new order; `replaces` is the name at the CA of the certificate that it replaces, empty for none."""
        stumbles = 0
        if self._moved:  # its directory was read when the broker started
            await self._exchanges.session(deadline, fresh_directory=True)
            self._moved = False

        async def ask(client: AcmeClient) -> AcmeOrder:
            nonlocal stumbles
            # Some CAs refuse members that they don't know.
            takes = client.directory.renewal_info is not None and stumbles < _REPLACES_STUMBLES
            told = replaces if takes else ""
            try:
                return replace(await client.create_order(names, profile, told), replaces=bool(told))
            except AcmeError as error:
                stumbles += bool(told) and error.is_problem("serverInternal")
                self._moved = self._moved or (error.missing and not told)
                raise

        try:
            return await self._exchanges.call(ask, deadline)
        except AcmeError as error:
            if not replaces or not error.is_problem(*_REPLACES_PROBLEMS):
                raise
            # A limit may apply then that a known renewal is spared; better than no certificate.
            fields = {"replaces": replaces, "dns_names": " ".join(names)}
            _log.warning("the CA takes no order that replaces this: %s", error, extra={"fields": fields})
            return await self._exchanges.call(lambda client: client.create_order(names, profile), deadline)

    async def check_profile(self, name: str, deadline: Deadline) -> None:
        """Ask for no certificate profile that the CA doesn't have; it may have got one since the start."""
        if not name or name in (await self._exchanges.session(deadline)).directory.profiles:
            return
        fresh = await self._exchanges.session(deadline, fresh_directory=True)
        missing = no_such_profile(name, fresh.directory)
        if missing is not None:
            raise AcmeError(missing.reason, missing.message, problems=missing.problems, unsent=True)

    async def fetch(self, url: str, deadline: Deadline) -> AcmeOrder:
        """The order as it is now."""
        return await self._exchanges.call(lambda client: client.fetch_order(url), deadline)

    async def _authorizations(self, order: AcmeOrder, deadline: Deadline) -> list[AcmeAuthorization]:
        async def fetch(url: str) -> AcmeAuthorization:
            return await self._exchanges.call(lambda client: client.fetch_authorization(url), deadline)

        return await all_of(fetch(url) for url in order.authorizations)

    async def with_challenges(self, order: AcmeOrder, deadline: Deadline) -> IssuerOrder:
        """The order with its outstanding challenges: authorizations that are valid already are skipped (7.5)."""
        if order.status is not IssuerOrderStatus.PENDING or self._challenge is ChallengeKind.NONE:
            return shown(order)
        outstanding = [entry for entry in await self._authorizations(order, deadline) if entry.status == "pending"]
        challenges = [entry.challenge for entry in outstanding if entry.challenge is not None]
        if len(challenges) < len(outstanding):
            without = next(entry.domain for entry in outstanding if entry.challenge is None)
            raise AcmeError(Reason.ISSUER_REJECTED, f"it offers no {self._challenge} challenge for {without}")
        return replace(shown(order), challenges=tuple(challenges))

    async def unproved(self, order: AcmeOrder, deadline: Deadline) -> IssuerOrder:
        """An order that is still pending, with what it waits for where nothing is proved to the CA."""
        if self._challenge is not ChallengeKind.NONE or order.status is not IssuerOrderStatus.PENDING:
            return shown(order)
        lacking: list[str] = []
        with contextlib.suppress(AcmeError):
            lacking = [one.domain for one in await self._authorizations(order, deadline) if one.status == "pending"]
        what = ", ".join(lacking[:3]) or "the order's names"
        message = (
            f"the CA has not approved {what} yet, and acme.challenge is none; approve the names for the account at the"
            " CA, or set acme.challenge to the one by which they are to be proved"
        )
        trouble = Refusal(Reason.ISSUER_UNAVAILABLE, message, retry_after=order.retry_after)
        return replace(shown(order), trouble=trouble)

    async def answer(self, challenge: DnsChallenge, deadline: Deadline) -> None:
        """Tell the CA that the challenge's record stands."""
        try:
            await self._exchanges.call(lambda client: client.answer(challenge.challenge_url), deadline)
        except AcmeError as error:
            if error.refusal.reason is not Reason.ISSUER_REJECTED:
                raise
            # It was answered before, by a try whose answer was lost, before a restart, or by the broker that had the
            # order: then it isn't pending now, though the authorization is for as long as the CA validates.
            seen = await self._exchanges.call(
                lambda client: client.fetch_authorization(challenge.authorization_url), deadline
            )
            if seen.status == "pending" and not seen.answered:
                raise

    def was_sent(self, url: str) -> bool:
        """Whether a CSR was sent to the order: what is known of it may be old then."""
        return url in self._sent

    async def send_csr(self, order: IssuerOrder, csr_der: bytes, deadline: Deadline) -> AcmeOrder:
        """Send the CSR, once; the order as the CA shows it then."""
        self._sent[order.url] = None
        while len(self._sent) > _SENT_KEPT:
            del self._sent[next(iter(self._sent))]
        try:
            sent = await self._exchanges.call(
                lambda client: client.send_csr(order.url, order.finalize_url, csr_der), deadline, may_repeat=unsent
            )
        except AcmeError as error:
            if not error.is_problem("orderNotReady"):
                raise
            # It was finalised meanwhile, or a replica doesn't know yet that it is ready: its status tells.
            return await self.fetch(order.url, deadline)
        log_step(order.url, "CSR sent")
        return sent

    async def finished(self, order: IssuerOrder, deadline: Deadline) -> AcmeOrder:
        """Look at a finalised order until it is valid, no sooner than the CA asked when it was last seen."""
        if order.status is IssuerOrderStatus.PROCESSING and order.retry_after:
            await deadline.sleep(order.retry_after)
        # "ready" may be an answer from a replica that lags behind the finalisation.
        seen = await self.look_until(_UNFINISHED, order.url, deadline)
        if seen.status in _UNFINISHED:
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, f"it is still {seen.status}", retry_after=seen.retry_after)
        return seen

    async def look_until(self, unfinished: frozenset[IssuerOrderStatus], url: str, deadline: Deadline) -> AcmeOrder:
        """Look at the order until its status is another or time is up, waiting as the CA asks (Retry-After)."""
        pause = _FIRST_LOOK
        while (seen := await self.fetch(url, deadline)).status in unfinished:
            if not await deadline.sleep(max(pause, seen.retry_after or timedelta())):
                return seen
            pause = min(pause * _LOOK_GROWTH, _LONGEST_LOOK)
        if seen.status is IssuerOrderStatus.INVALID:
            raise await self.invalid(seen, deadline)
        return seen

    async def invalid(self, order: AcmeOrder, deadline: Deadline) -> AcmeError:
        """Why the order is invalid: its own problem, and those of its failed authorizations (7.1.6)."""
        problems = list(order.problems)
        with contextlib.suppress(AcmeError):
            for authorization in await self._authorizations(order, deadline):
                problems += authorization.problems
        said = "; ".join(f"{problem.identifier} {problem.detail}".strip() for problem in problems[:3])
        return AcmeError(Reason.ISSUER_REJECTED, said or "the order is invalid", problems=problems[:MOST_PROBLEMS])


def shown(order: AcmeOrder) -> IssuerOrder:
    """The order as the port has it, without challenges."""
    return IssuerOrder(
        order.url,
        order.status,
        finalize_url=order.finalize,
        certificate_url=order.certificate,
        retry_after=order.retry_after,
        replaces=order.replaces,
    )


def log_step(order_url: str, what: str) -> None:
    """Say in the log what was done."""
    _log.info(what, extra={"fields": {"acme_order_url": order_url}})
