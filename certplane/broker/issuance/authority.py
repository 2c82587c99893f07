"""`RegistrationAuthority`: what callers may ask about certificates, and the order of rules that serves each call.

    CSR, policy, key, replaced certificate -> cache -> join -> contest, limits -> order -> wait -> policy -> hand out
    `---------------- a refusal is an error, audited ------------------------'     `- a failed order is an answer -'

- The events that authorise are durable before the CA is contacted (they are part of the order's creation), the one that
  issues before anybody learns of the certificate, and the one that hands out before it is given.
- Errors come only before an order exists, or when a hand-out is refused. A failed order is an answer.
- Equal requests share one order: the store's unique index decides, and in this process nobody looks at the cache before
  an order ended and opens one after it did.
- Waiting is all that a cancelled call stops.

Who the caller is, and whether it may call at all, was decided before (`certplane.broker.services`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace
from datetime import timedelta

from certplane.broker import metrics
from certplane.broker.events import AuditTrail
from certplane.broker.issuance.authorisation import AuthorisedRequest, CallAuthorisation
from certplane.broker.issuance.caching import answers, answers_again
from certplane.broker.issuance.commands import IssueCommand, IssueResult
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.delivery import Delivery
from certplane.broker.issuance.dispatch import OrderDispatcher
from certplane.broker.issuance.events import CallEvents, EventFactory
from certplane.broker.issuance.flights import Flight
from certplane.broker.issuance.listing import OrderListing
from certplane.broker.issuance.overview import OrdersView, PlacesLeft
from certplane.broker.issuance.refusals import draining_refusal, leaseless_refusal
from certplane.broker.issuance.revocation import Revocation, RevokedByOperator
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.issuance.waiting import within
from certplane.broker.issuance.wants import LimitsTold, Wants
from certplane.broker.members.model import Member
from certplane.broker.model import Caller, CertificateRecord, Order, OrderDraft, OrderState, RevocationReason
from certplane.broker.ports import CacheLook, CertificateQuery, ChangeFeed, DenialRecorder, DurableLimits
from certplane.errors import Reason, RefusalError

_NO_DECISION = frozenset(
    {
        Reason.STORE_UNAVAILABLE,
        Reason.AUDIT_UNAVAILABLE,
        Reason.POLICY_UNAVAILABLE,
        Reason.DRAINING,
        Reason.ISSUER_UNAVAILABLE,
        Reason.ISSUER_RATE_LIMITED,
    }
)
"""Nothing was decided about the caller; asking again may succeed. All other refusals are audited."""


class _AuditedRefusals:
    """Records a refusal of its block before it goes on to the caller; if that can't be done, says that instead.

    A class, since a generator with `asynccontextmanager` costs a call from the cache 2 % of its time.
    """

    __slots__ = ("_certificate_id", "_denials", "_events", "_order_id")

    def __init__(self, denials: DenialRecorder, events: CallEvents, order_id: str, certificate_id: str) -> None:
        self._denials = denials
        self._events = events
        self._order_id = order_id
        self._certificate_id = certificate_id

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, RefusalError) and error.refusal.reason not in _NO_DECISION:
            denial = self._events.denied(error.refusal, order_id=self._order_id, certificate_id=self._certificate_id)
            await self._denials.record(denial)


class RegistrationAuthority:
    """Issues, renews, shows and revokes certificates for authenticated callers."""

    def __init__(self, ports: IssuancePorts, settings: IssuanceSettings) -> None:
        self._ports = ports
        self._settings = settings
        self._events = EventFactory(
            AuditTrail(ports.clock, ports.new_id), {name: issuer.directory for name, issuer in ports.issuers.items()}
        )
        self._authorisation = CallAuthorisation(ports, settings)
        self._delivery = Delivery(ports, self._authorisation)
        self._wants = Wants(ports)
        self._revocation = Revocation(ports, settings, self._authorisation)
        self._dispatcher = OrderDispatcher(ports, settings, self._events)
        self._limits_told = LimitsTold(ports.meter)
        self._issued_orders: OrderedDict[str, Order] = OrderedDict()

    def blocked(self, profiles: Collection[str]) -> Collection[str]:
        """Which of these profiles can't have certificates until a person has acted, as far as is known."""
        return self._dispatcher.condition.blocked(profiles)

    def follow_others(self, feed: ChangeFeed) -> None:
        """Hear of the other brokers of the database."""
        self._dispatcher.follow_others(feed)

    def overview(
        self,
        listing: OrderListing,
        find_member: Callable[[str], Member | None],
        *,
        name: str,
        left: PlacesLeft | None = None,
    ) -> OrdersView:
        """The orders of all brokers as operators see them.

        `find_member` knows the other brokers, `left` says what the CAs' limits leave, `name` is this machine's.
        """
        ports = self._ports
        return OrdersView(
            self._dispatcher,
            listing,
            ports.policies,
            find_member,
            ports.clock,
            holder=ports.orders.holder,
            name=name,
            left=left,
        )

    @property
    def in_trouble(self) -> bool:
        """Whether some profile or issuer has failed and not worked since."""
        return self._dispatcher.condition.in_trouble

    async def start(self, profiles: Sequence[str] = ()) -> None:
        """Resume unfinished orders, remember which of `profiles` are blocked, and serve calls that need an order.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        await self._dispatcher.start(profiles)

    @property
    def limits(self) -> DurableLimits:
        """The durable limits in force."""
        return self._dispatcher.limits

    def take_limits(self, limits: DurableLimits) -> None:
        """Keep these durable limits from now on."""
        self._dispatcher.limits = limits

    async def rest(self) -> None:
        """Open and take no order until `resume`: those that wait are for other brokers, what has begun ends here."""
        await self._dispatcher.rest()

    def resume(self) -> None:
        """Open and take orders again."""
        self._dispatcher.resume()

    @property
    def running_count(self) -> int:
        """How many orders run here."""
        return len(self._dispatcher.flights)

    async def drain(self, timeout: timedelta) -> None:
        """Refuse new orders, give running ones `timeout` to end, then park them: the next start goes on."""
        await self._dispatcher.drain(timeout)

    async def issue(self, caller: Caller, command: IssueCommand) -> IssueResult:
        """A certificate for the CSR's key: from the cache, or by an order that is made or joined and waited for.

        Raises:
            RefusalError: CSR_INVALID, KEY_WEAK, PROFILE_NOT_ALLOWED, NAMES_NOT_ALLOWED, KEY_REUSED,
                CERTIFICATE_NOT_FOUND (what it replaces), IDENTITY_CONTESTED (it would be a new order), RATE_LIMITED,
                DRAINING, AUDIT_UNAVAILABLE, STORE_UNAVAILABLE or POLICY_UNAVAILABLE.
        """
        events = self._events.of_call(caller, command.request_id, command.profile)
        granted = ""
        try:
            async with self._audited_refusals(events):
                asked = await self._authorisation.authorise(caller, command, events)
                granted = asked.profile.name
                found = await self._find_or_open(caller, command, asked, events)
        except RefusalError as error:
            self._ports.meter.count(metrics.REQUESTS, profile=granted, result=error.refusal.reason.value)
            if granted and error.refusal.reason is Reason.RATE_LIMITED:
                self._limits_told.tell(caller, granted, error.refusal)
            raise
        if isinstance(found, IssueResult):
            return found
        await within(self._ports.clock, min(command.wait, self._settings.longest_wait), found.landed)
        return await self._result(caller, found.order, events)

    async def get_order(self, caller: Caller, request_id: str, order_id: str) -> IssueResult:
        """An order of the caller, with its certificate when it is ISSUED.

        Raises:
            RefusalError: ORDER_NOT_FOUND, or what forbids the hand-out.
        """
        events = self._events.of_call(caller, request_id)
        order = await self._own_order(caller, order_id, events)
        return await self._result(caller, order, events)

    async def watch_order(self, caller: Caller, request_id: str, order_id: str) -> AsyncIterator[IssueResult]:
        """An order of the caller now and after each change of state; ends after ISSUED or FAILED.

        Raises:
            RefusalError: ORDER_NOT_FOUND, what forbids the hand-out, or DRAINING when the order was parked.
        """
        events = self._events.of_call(caller, request_id)
        order = await self._own_order(caller, order_id, events)
        flight = self._dispatcher.find(order_id)
        if flight is None and order.state.is_open:
            flight = self._dispatcher.see(order)
        if flight is None:
            yield await self._result(caller, order, events)
            return
        async for state in flight.follow():
            yield await self._result(caller, state, events)
        if flight.order.state.is_open:
            raise draining_refusal() if self._dispatcher.draining else leaseless_refusal()

    async def get_certificate(self, caller: Caller, request_id: str, certificate_id: str) -> CertificateRecord:
        """A certificate of the caller.

        Raises:
            RefusalError: CERTIFICATE_NOT_FOUND, or what forbids the hand-out.
        """
        events = self._events.of_call(caller, request_id)
        async with self._audited_refusals(events, certificate_id=certificate_id):
            record = await self._authorisation.own_certificate(caller, certificate_id)
            await self._delivery.of_certificate(caller, record, events)
        return record

    async def list_certificates(self, caller: Caller, query: CertificateQuery) -> Sequence[CertificateRecord]:
        """A page of the caller's own certificates, whatever identity the query names. No hand-out: show no PEM of it.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        return await self._ports.certificates.list_certificates(replace(query, identity=caller.name))

    async def revoke(
        self, caller: Caller, request_id: str, certificate_id: str, reason: RevocationReason
    ) -> CertificateRecord:
        """Revoke a certificate of the caller; a cancelled call doesn't stop it half way.

        Raises:
            RefusalError: see `Revocation.revoke`; DRAINING.
        """
        events = self._events.of_call(caller, request_id)
        async with self._audited_refusals(events, certificate_id=certificate_id):
            return await self._dispatcher.protect(self._revocation.revoke(caller, certificate_id, reason, events))

    async def revoke_of_anybody(
        self, caller: Caller, request_id: str, certificate_id: str, reason: RevocationReason, why: str
    ) -> RevokedByOperator:
        """Revoke whoever's certificate for an operator who says `why`; a cancelled call doesn't stop it half way.

        Raises:
            RefusalError: see `Revocation.revoke_of_anybody`; DRAINING.
        """
        events = self._events.of_call(caller, request_id)
        async with self._audited_refusals(events, certificate_id=certificate_id):
            work = self._revocation.revoke_of_anybody(certificate_id, reason, why, events)
            return await self._dispatcher.protect(work)

    async def revoke_replaced(
        self, rollout_id: str, operator: str, certificate_id: str, reason: RevocationReason, why: str
    ) -> CertificateRecord:
        """Revoke what a rollout of this `operator` has replaced; whoever asks is cancelled, it isn't stopped half way.

        Raises:
            RefusalError: see `Revocation.revoke_replaced`; DRAINING.
        """
        events = self._events.of_rollout(rollout_id, operator)
        work = self._revocation.revoke_replaced(certificate_id, reason, why, events)
        return await self._dispatcher.protect(work)

    async def revoke_undelivered(self, record: CertificateRecord) -> None:
        """Revoke what a CA has issued of a key that was compromised meanwhile; else as `revoke_replaced`."""
        work = self._revocation.revoke_undelivered(record.certificate_id, self._events.of_left(record.identity))
        await self._dispatcher.protect(work)

    async def _find_or_open(
        self, caller: Caller, command: IssueCommand, asked: AuthorisedRequest, events: CallEvents
    ) -> IssueResult | Flight:
        """The answer if there is one by now, else the order to wait for."""
        while True:
            look, cached = await self._find_cached(caller, asked)
            if cached is not None:
                record, order = cached
                await self._delivery.from_cache(caller, asked, record, events)
                self._count(asked, "cache")
                return IssueResult(order, record, "cache")
            # The cache had no answer for a key that fails this either.
            await self._authorisation.check_new_key(caller, asked.request)
            draft = self._draft(caller, command, asked)
            flight = self._dispatcher.find_open(draft.key)
            if flight is not None:
                order = flight.order
                break
            self._authorisation.check_uncontested(caller)
            claim = await self._wants.claim(draft, asked.replaced)
            authorised = (events.received(), events.authorized("miss", claim.draft.issuer))
            try:
                result = await self._dispatcher.open(claim.draft, authorised, look)
            except RefusalError as error:
                raise self._wants.hasten(error, claim) from None
            if result is None:  # an order has brought a certificate since the cache was asked
                continue
            opened, flight = result
            if opened.created and flight is not None:
                self._count(asked, "opened")
                self._ports.meter.count(metrics.ORDERS_OPENED, cause=opened.order.cause.value)
                return flight
            order = opened.order
            break
        joined = events.authorized("joined", order.issuer)
        await self._ports.repeats.record(events.joining(order, joined), (events.received(), joined))
        self._count(asked, "joined")
        return flight if flight is not None else IssueResult(order)

    def _draft(self, caller: Caller, command: IssueCommand, asked: AuthorisedRequest) -> OrderDraft:
        return OrderDraft(
            identity=caller.name,
            profile=asked.profile.name,
            profile_hash=asked.profile.hash,
            dns_names=asked.request.dns_names,
            public_key_sha256=asked.request.public_key_sha256,
            csr_der=asked.request.der,
            issuer=self._dispatcher.choose_issuer(asked.profile),
            request_id=command.request_id,
            identity_serial=caller.serial_number,
            identity_issuer=caller.issuer,
            identity_anchor=caller.anchor,
            replaces_certificate_id=command.replaces_certificate_id,
            retry_epoch=self._ports.epoch.current,
        )

    async def _find_cached(
        self, caller: Caller, asked: AuthorisedRequest
    ) -> tuple[CacheLook, tuple[CertificateRecord, Order] | None]:
        """What was found in the cache, and what of it answers the request."""
        record = None
        issuers = self._ports.issuers_of(asked.profile)
        for issuer in issuers:
            found = await self._ports.certificates.find_cached(
                caller.name, asked.profile.hash, issuer, asked.request.public_key_sha256
            )
            # The newest, whoever issued it: an older one of the first issuer must not hide what a later one has made.
            if found is not None and (record is None or found.create_time > record.create_time):
                record = found
        if record is None:
            return CacheLook(issuers, ""), None
        look = CacheLook(issuers, record.certificate_id)
        now, replaced = self._ports.clock.now(), asked.replaces_certificate_id
        fresh = answers(record, now, self._ports.renewals.renew_time(record), replaced)
        if not fresh and not replaced:
            return look, None
        order = await self._issued_order(record.order_id)
        return look, (record, order) if fresh or answers_again(record, order, now, replaced) else None

    async def _issued_order(self, order_id: str) -> Order:
        """The order that brought a certificate; an ISSUED order never changes again, so it is kept."""
        order = self._issued_orders.get(order_id)
        if order is None:
            order = await self._ports.orders.get_order(order_id)
            if order is None:
                raise RuntimeError(f"there is a certificate of order {order_id}, but no such order")
            self._issued_orders[order_id] = order
            if len(self._issued_orders) > self._settings.order_cache_size:
                self._issued_orders.popitem(last=False)
        else:
            self._issued_orders.move_to_end(order_id)
        return order

    async def _own_order(self, caller: Caller, order_id: str, events: CallEvents) -> Order:
        async with self._audited_refusals(events, order_id=order_id):
            flight = self._dispatcher.find(order_id)
            order = flight.order if flight is not None else await self._ports.orders.get_order(order_id)
            if order is None or order.identity != caller.name:
                raise RefusalError(Reason.ORDER_NOT_FOUND, "you have no such order")
            return order

    async def _result(self, caller: Caller, order: Order, events: CallEvents) -> IssueResult:
        if order.state is not OrderState.ISSUED:
            return IssueResult(order)
        async with self._audited_refusals(events, order_id=order.order_id, certificate_id=order.certificate_id):
            return IssueResult(order, await self._delivery.of_order(caller, order, events), "order")

    def _audited_refusals(
        self, events: CallEvents, *, order_id: str = "", certificate_id: str = ""
    ) -> _AuditedRefusals:
        return _AuditedRefusals(self._ports.denials, events, order_id, certificate_id)

    def _count(self, asked: AuthorisedRequest, result: str) -> None:
        self._ports.meter.count(metrics.REQUESTS, profile=asked.profile.name, result=result)
