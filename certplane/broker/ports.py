"""Interfaces that the issuance core depends on. The comments are contracts; adapters and fakes keep them.

Rules for every port: only `RefusalError` of the named reasons (and cancellation) escapes; "durable" means that
a power cut can not undo it once the method returns; methods may be called concurrently from the event loop; a cancelled
wait never undoes or tears what was begun.

| port | adapter | fake |
|---|---|---|
| orders, certificates, keys, deny-list, identities, reports, `AuditLog` | `store`, `audit` | tests/fakes |
| `Issuer`, `Revoker` | `issuers.acme` | tests/fakes |
| `ChallengeSolver` | `issuers.dns` | tests/fakes |
| `OrderPreflight` | `issuers.dns` | `NoPreflight` |
| `CaaIdentitySource` | `issuers.caa_identity` | - |
| `PolicySource` | `policy` | - |
| `SecretSource` | `secrets` | tests/fakes |
| `DenialRecorder`, `EventRecorder` | `audit` | tests/fakes |
| `AuditFallback` | `audit` | - |
| `AuditImport`, `RepeatCounts`, `Upkeep` | `store` | tests/fakes |
| `RenewalTimes` | `renewal.plans` | `StoredRenewalTimes` |
| `Meter` | `app` | `NullMeter`, tests/fakes |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol, runtime_checkable

from typing_extensions import override

from certplane.broker.event_filter import EventFilter
from certplane.broker.events import AuditEvent, AuditEventType, EventKind
from certplane.broker.metrics import Counter, Gauge, Histogram, Table
from certplane.broker.model import (
    CertificateRecord,
    ChangeKind,
    DenyEntry,
    DnsChallenge,
    EnrollmentReport,
    Grant,
    IdentityUse,
    IssuerOrder,
    KeyUse,
    KnownIdentity,
    Order,
    OrderCause,
    OrderDraft,
    OrderState,
    Profile,
    RevocationReason,
    TxtRecord,
)
from certplane.broker.standing_rules import IncidentRules, RolloutRules
from certplane.errors import Refusal


@dataclass(frozen=True, slots=True)
class DurableLimits:
    """Limits counted over order rows (design, fixed decision 12); None is no limit.

    The windows slide. Which order has to keep which, and what each counts, is `certplane.broker.policy.limits`'.
    """

    per_identity_per_hour: int | None = None
    per_identity_profile_per_hour: int | None = None
    new_keys_per_identity_profile_per_day: int | None = None
    certificates_per_identity_profile_per_day: int | None = None
    early_renewals_per_identity_profile_per_day: int | None = None
    certificates_per_name_set_per_week: int | None = None
    asked_for_per_identity_profile_per_hour: int | None = None


@dataclass(frozen=True, slots=True)
class OpenedOrder:
    """What `open_order` found or made: `created` False means that an equal one was joined.

    A joined order may be FAILED with its `retry_time` ahead: the caller gets that one again.
    """

    order: Order
    created: bool


@dataclass(frozen=True, slots=True)
class CacheLook:
    """What a caller has found in the cache before it opens an order: the newest of these issuers, empty for none."""

    issuers: tuple[str, ...]
    certificate_id: str


@dataclass(frozen=True, slots=True)
class OrderChange:
    """What to write on an order; None leaves a field as it is."""

    state: OrderState | None = None
    issuer: str | None = None
    """Another issuer; together with an empty `acme_order_url`, and never after FINALIZING."""
    acme_order_url: str | None = None
    txt_records: tuple[TxtRecord, ...] | None = None
    error: Refusal | None = None
    retry_time: datetime | None = None
    block_key: bool = False
    """Also block the order's key for every caller, in the same transaction: the CA may have issued for it what isn't
    stored here."""


class OrderStore(Protocol):
    """Orders. Writes are durable and carry their audit events in the same transaction.

    How events fail is the audit mode's: under `fail_closed` the write fails with AUDIT_UNAVAILABLE and nothing is
    changed; under `fail_open` the events go to the log and the spill file and the write stands. When the write itself
    fails: STORE_UNAVAILABLE, nothing changed.
    """

    holder: str
    """This broker, as orders name who runs them."""

    async def open_order(
        self,
        draft: OrderDraft,
        limits: DurableLimits,
        events: Sequence[AuditEvent],
        *,
        look: CacheLook | None = None,
    ) -> OpenedOrder | None:
        """Join the open (or failed and not yet retryable) order of the same key, else check limits and make one.

        One transaction: two callers at once, of two brokers too, get one order. None, and nothing is done, if the cache
        has had a certificate for the key since the caller's `look`: look again. Events are written only when an order
        is created; those that name no order get its id. What was asked for once is taken once: if another order, open
        or finalised, has taken it already, the new one is ORDINARY. That is one of the same `replaces_certificate_id`,
        or, without it, one of the same identity and profile since `ask_time`; one without it takes the newest
        certificate. Times further ahead than `policy.limits.AHEAD` are of a clock that was set back, and count for
        nothing.
        CERTIFICATE_AUTHORIZED gets the order's cause.

        Raises:
            RefusalError: RATE_LIMITED with the limit's name as violation and the time until the window frees a place;
                nothing is written then. KEY_REUSED when the key belongs to another identity, is blocked, or is spent.
        """
        ...

    async def change_order(self, order: Order, change: OrderChange, events: Sequence[AuditEvent] = ()) -> Order:
        """Write `change` on an open order and return it as it is now.

        An ended order takes a change of `txt_records` alone, since records are removed after the end.

        Args:
            order: As who runs it knows it; its id and its epoch count.
            change: What to write.
            events: Go with it.

        Raises:
            RefusalError: ORDER_NOT_FOUND for an unknown order, for one that was taken since (another epoch), and for
                any other change of an ended one.
        """
        ...

    async def finish_order(self, order: Order, certificate: CertificateRecord, events: Sequence[AuditEvent]) -> Order:
        """Store the certificate and set its order ISSUED, in one transaction. Doing it again changes nothing.

        Raises:
            RefusalError: ORDER_NOT_FOUND, as `change_order`.
        """
        ...

    async def take_orders(self, limit: int) -> Sequence[Order]:
        """Take unfinished orders that no living broker holds, the oldest first; their epoch rises, durable.

        Of two brokers that ask at once, each gets others. None is left when fewer than `limit` come back.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def give_back_orders(self, order_ids: Collection[str] | None = None) -> None:
        """Let others take what this broker holds and hasn't finished; None: all of it.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def get_order(self, order_id: str) -> Order | None:
        """The order, whoever's it is."""
        ...

    async def last_ended(self, profile: str) -> Sequence[Order]:
        """The orders of a profile that ended last, whoever's they are, the last first: some dozens at most."""
        ...

    async def unfinished_orders(self) -> Sequence[Order]:
        """Open orders and ended ones that still list TXT records, oldest first, whoever holds them."""
        ...

    async def note_progress(self, orders: Sequence[Order]) -> None:
        """Write what these orders are at, for other brokers and the next start; the epoch and the state count.

        One that was taken, went on or has ended meanwhile is passed over. What an order is at ends with its state.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class LaneTry(NamedTuple):
    """What came of an order's try to have its turn in a lane."""

    order: Order
    """As it is now; it may have ended meanwhile."""
    behind: str
    """The order_id of one that has the lane, or comes first there; empty: the order has its turn, or has ended."""


class SharedOrders(Protocol):
    """What orders of several brokers on one database decide together; who has the database alone needs none of it."""

    async def take_lane(self, order: Order, lane: str) -> LaneTry:
        """Let the order have its turn in a lane, or wait there, durable.

        At most one order of all brokers has its turn in a lane. Of those that wait, one of each living broker at most,
        the oldest is next; a broker's own are in the order in which it asks. A turn ends with the order and its TXT
        records (`OrderStore`), with another issuer, or by `leave_lane`; a broker that takes the order has it with the
        order. An order that has its turn, in whatever lane, keeps it.

        Args:
            order: As who runs it knows it; its id and its epoch count.
            lane: Names what a CA may take for the same order.

        Raises:
            RefusalError: ORDER_NOT_FOUND, as `OrderStore.change_order`; STORE_UNAVAILABLE.
        """
        ...

    async def leave_lane(self, order: Order) -> Order:
        """End the order's turn, or its waiting, durable; errors as `take_lane`."""
        ...

    async def needed_records(self, records: Sequence[TxtRecord], *, but: str = "") -> Collection[tuple[str, str]]:
        """Name and value of those of `records` that an open order of any broker lists, other than the order `but`.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def leaving_records(self, records: Sequence[TxtRecord]) -> Collection[tuple[str, str]]:
        """Name and value of those of `records` that an ended order still lists: its broker may be removing them.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


@dataclass(frozen=True, slots=True)
class CertificateQuery:
    """A page of one identity's certificates, newest first; `after` is the last certificate_id of the page before."""

    identity: str
    profile: str = ""
    usable_at: datetime | None = None
    """Only those that are neither revoked nor expired at this time; None for all."""
    after: str = ""
    limit: int = 50


class CertificateStore(Protocol):
    """Certificates. Reads are of committed rows; writes are durable."""

    async def find_cached(
        self, identity: str, profile_hash: str, issuer: str, public_key_sha256: str
    ) -> CertificateRecord | None:
        """The newest certificate of this key that isn't revoked. Whether it is due is the caller's to decide.

        None too if the key is blocked or another identity's (`KeyLedger.key_use`), so that one read answers a call from
        the cache.
        """
        ...

    async def get_certificate(self, certificate_id: str) -> CertificateRecord | None:
        """The certificate, whoever's it is."""
        ...

    async def list_certificates(self, query: CertificateQuery) -> Sequence[CertificateRecord]:
        """A page."""
        ...

    async def usable_of_key(self, identity: str, public_key_sha256: str, now: datetime) -> Sequence[CertificateRecord]:
        """The identity's certificates of this key that are neither revoked nor expired at `now`, oldest first."""
        ...

    async def undelivered_of_compromised_keys(
        self, since: datetime, now: datetime, limit: int
    ) -> Sequence[CertificateRecord]:
        """Of all identities, certificates of keys that are compromised `since` then (`mark_revoked`), in any order.

        Those that are neither revoked nor expired at `now`, and that nobody was given: nobody is any more.
        """
        ...

    async def mark_delivered(self, certificate_id: str, time: datetime, events: Sequence[AuditEvent]) -> None:
        """Record the first hand-out (later times are ignored) and the events, in one durable transaction.

        Audit failures as in `OrderStore`.
        """
        ...

    async def mark_revoked(
        self,
        certificate_id: str,
        reason: RevocationReason,
        time: datetime,
        events: Sequence[AuditEvent],
        *,
        by_holder: bool = False,
    ) -> CertificateRecord:
        """Record the revocation, which spends the key; KEY_COMPROMISE also blocks it.

        Doing it again keeps the first time; `by_holder`, nobody else has asked for it, holds if it does each time.
        """
        ...


class KeyLedger(Protocol):
    """Which public keys were seen, and whose they are."""

    async def key_use(self, public_key_sha256: str) -> KeyUse | None:
        """What is known of the key; None if it was never in an order and never blocked."""
        ...


class DenyList(Protocol):
    """Identities that an operator has shut out. Readers see a change at most a second after it is durable."""

    def denied(self, name: str, issuer: str, serial_number: str) -> DenyEntry | None:
        """The entry that shuts this identity out, from memory: called on every call.

        Without an issuer (an order of before it was kept) an entry of the serial number alone does.
        """
        ...

    async def deny(self, entry: DenyEntry, events: Sequence[AuditEvent]) -> None:
        """Add an entry, durable, and end the open orders of whom it shuts out, in the same transaction.

        Each such order is FAILED with IDENTITY_REVOKED and has an event of its own. One that is FINALIZING stays open:
        the CA may have issued, and what it has must be known to be revoked.
        """
        ...

    async def allow(self, entry: DenyEntry, events: Sequence[AuditEvent]) -> bool:
        """Remove the entry of the same name, or issuer and serial; False, without the events, if there was none."""
        ...

    async def entries(self) -> Sequence[DenyEntry]:
        """All entries, oldest first."""
        ...


class ChangeFollower(Protocol):
    """Keeps something in step with rows that other programs change.

    Either method may raise: it is logged, and asked for again until it returns.
    """

    async def changed(self, keys: Collection[str]) -> None:
        """Take in what these keys name now; one of them may be gone by now, or be told again."""
        ...

    async def reread(self, since: datetime) -> None:
        """Take in everything that may have changed `since` then: at the start, or when changes may have been missed."""
        ...


class ChangeFeed(Protocol):
    """The one place that hears of other programs' changes: of commands beside the broker, of other brokers.

    A change is told at most half a second after it is durable. What this program changes itself is not told.
    """

    def follow(self, kind: ChangeKind, follower: ChangeFollower, *, what: str, vital: bool = False) -> None:
        """Tell `follower` of changes of this kind, beginning with `reread`.

        Args:
            kind: What is followed.
            follower: Called by the event loop, one call at a time.
            what: The followed thing as the log is to name it when it can't be read: "the deny-list".
            vital: Whether the broker isn't ready while it can't be read.
        """
        ...


class IdentityTrust(Protocol):
    """The internal CAs whose certificates are identities, as they are now."""

    def trusts(self, anchor: str) -> bool:
        """Whether the CA is still one of them; `anchor` as `Caller.anchor` has it. From memory."""
        ...


class IdentityLedger(Protocol):
    """Which certificate of each host's identity is in use (design, fixed decision 11).

    Who is retired and who contests is `certplane.broker.identity.first_use`'s to say. Every write asks it again inside
    its transaction, about the committed row, so that two calls at once, or two brokers, make one activation with one
    event. Readers see a change at most a second after it is durable; the writer sees its own at once.
    """

    def known(self, name: str) -> KnownIdentity | None:
        """What is known of the identity, from memory: called on every call of a host.

        Raises:
            RefusalError: STORE_UNAVAILABLE: something is, but can't be read.
        """
        ...

    async def activate(self, name: str, use: IdentityUse, events: Sequence[AuditEvent]) -> KnownIdentity:
        """Make the certificate the active one if it still is to be, durable with its events.

        Returns the identity as it is then. Nothing is written if another was faster: the answer may say that `use` is
        retired by now.

        Raises:
            RefusalError: STORE_UNAVAILABLE, or AUDIT_UNAVAILABLE under `fail_closed`.
        """
        ...

    async def contest(self, name: str, use: IdentityUse, events: Sequence[AuditEvent]) -> KnownIdentity:
        """Record that the use of a retired certificate makes the identity contested, once; errors as `activate`."""
        ...

    async def count_displacement(self, name: str, time: datetime) -> None:
        """Count a status stream that displaced another one of the same certificate, durable.

        An identity that was never active is passed over.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class EnrollmentStore(Protocol):
    """The latest report of each identity."""

    async def record_report(self, report: EnrollmentReport, events: Sequence[AuditEvent]) -> None:
        """Replace the identity's report, durable."""
        ...


class AuditLog(Protocol):
    """The audit log on its own, for what isn't part of a store's transaction."""

    async def append(self, events: Sequence[AuditEvent]) -> None:
        """Return when the events are durable, or, under `fail_open`, logged, spilled and counted.

        Raises:
            RefusalError: AUDIT_UNAVAILABLE under `fail_closed`.
        """
        ...

    async def tail(self, limit: int) -> Sequence[dict[str, object]]:
        """The records of the last `limit` events, oldest first."""
        ...


class AuditReader(Protocol):
    """The audit log of all brokers of the database, as those read it who show it."""

    async def page(
        self, wanted: EventFilter, *, after: int | None = None, limit: int, oldest_first: bool = False
    ) -> EventPage:
        """Events that are picked, the newest first, or the oldest.

        A bounded number of rows is read for a page: it may be short, or empty, and not the last one.

        Args:
            wanted: Which.
            after: The place after which a page goes on; None for the first one.
            limit: How many at most.
            oldest_first: The other way round.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def follow(self) -> AuditTail:
        """What comes from now on.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def place_of(self, time: datetime) -> int:
        """A place before which no event is of this time or later, as far as the brokers' clocks agree.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def recent(self, types: Collection[AuditEventType], *, since: datetime, limit: int) -> Sequence[AuditEvent]:
        """The newest events of these types, the newest first; events of releases before 0014's schema are not found.

        Args:
            types: Among `CHANGE_EVENTS`, which are found without reading the others.
            since: Earlier ones are left out.
            limit: How many at most.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
            ValueError: a type is none of `CHANGE_EVENTS`.
        """
        ...


class AuditGate(Protocol):
    """Holds up decisions whose events would not get where they have to."""

    def check(self, events: Sequence[AuditEvent]) -> None:
        """Let these be recorded. From any thread, never waits.

        Raises:
            RefusalError: AUDIT_UNAVAILABLE: what they tell of must not be decided now.
        """
        ...


class ShownEvent(NamedTuple):
    """An event as people see it: its place in the log, and the public format."""

    sequence: int
    time: datetime
    record: dict[str, Any]


class EventPage(NamedTuple):
    """Some events, and after which place to go on; None where there are no others."""

    events: Sequence[ShownEvent]
    after: int | None


class AuditTail(Protocol):
    """Follows the log from where it was made."""

    async def new(self) -> Sequence[ShownEvent]:
        """What has become durable since it was asked last, of all brokers; each event once.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class AuditFallback(Protocol):
    """What the audit settings make of events; the store asks it while it writes them.

    Records are JSON objects, one line each. Called from any thread, never from the event loop; may wait for a disk,
    never raises.
    """

    @property
    def fail_open(self) -> bool:
        """Whether a change stands when its events can't be written."""
        ...

    @property
    def mirrors(self) -> bool:
        """Whether `written` wants to be told."""
        ...

    @property
    def rescued(self) -> int:
        """How many events the database did not take since the start."""
        return 0

    def rescue(self, records: Sequence[str], cause: Exception) -> None:
        """Log, spill and count what the database did not take; called before the change itself is committed."""
        ...

    def written(self, records: Sequence[str]) -> None:
        """These are durable in the database, and who waited for them has been told: the place to mirror them."""
        ...


class AuditImport(Protocol):
    """Takes back the records that an `AuditFallback` spilled."""

    async def import_records(self, records: Sequence[str]) -> int:
        """Add those that the log lacks (by `event_id`), durable, all or none; returns how many were new.

        Raises:
            RefusalError: STORE_UNAVAILABLE, in either failure mode.
        """
        ...


class DenialRecorder(Protocol):
    """Where refused requests are audited; repeats of one denial may be counted together instead of written each."""

    async def record(self, event: AuditEvent) -> None:
        """Return when the denial is durable, or counted into one that will be.

        Raises:
            RefusalError: AUDIT_UNAVAILABLE under `fail_closed`.
        """
        ...


class EventRecorder(Protocol):
    """Audits what a caller may do again and again; repeats of one kind may be counted together instead of written each.

    A count is as durable as an event: it is on the disk before the method returns. Of a kind's events nothing is lost
    that is equal in all of them, nor their number, nor what the last one said.
    """

    async def record(self, kind: EventKind, events: Sequence[AuditEvent]) -> None:
        """Return when the events are durable; or, the kind being repeated, when the last of them is counted.

        Raises:
            RefusalError: AUDIT_UNAVAILABLE under `fail_closed`.
        """
        ...

    def begin(self, kind: EventKind, event: AuditEvent) -> bool:
        """Whether the event is the first of its kind, for whoever makes it durable with a change.

        True: it is to be written, and whatever comes meanwhile is a repeat of it; `withdraw` it if it wasn't written.
        False: `record` it, it will be counted.
        """
        ...

    def withdraw(self, kind: EventKind, event: AuditEvent) -> None:
        """A first event was not written after all: the next one of its kind is the first."""
        ...


class RepeatCounts(Protocol):
    """Keeps the counts of an `EventRecorder` while they grow: each is the event that it will be, by its `event_id`."""

    async def keep(self, summaries: Sequence[AuditEvent]) -> None:
        """Put these in the place of what was kept of them before, durable. They aren't events yet.

        Raises:
            RefusalError: AUDIT_UNAVAILABLE under `fail_closed`. Under `fail_open` what can't be kept is logged.
        """
        ...

    async def close(self, summaries: Sequence[AuditEvent]) -> None:
        """Make events of these, and keep them no longer, in one durable transaction.

        Raises:
            RefusalError: AUDIT_UNAVAILABLE or STORE_UNAVAILABLE; what was kept stays kept.
        """
        ...

    async def recover(self) -> int:
        """Make events of all that is kept of brokers that have ended without closing it. Returns how many.

        One that only stood still may close, or keep, the same counts later: what it says then takes the place of that.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


@dataclass(frozen=True, slots=True)
class PruneBefore:
    """What may go: events, and what has ended, before these times; None keeps them for good."""

    now: datetime
    audit: datetime | None = None
    ended: datetime | None = None


class Upkeep(Protocol):
    """Keeps the store from growing for ever."""

    async def prune(self, before: PruneBefore, most: int) -> Mapping[str, int]:
        """Remove some of what may go, durable: rows removed by table.

        At most `most` certificates, orders without one, events, hosts that were last heard, enrollment reports and
        renewal requests; a table of which fewer were removed has no more. Never removed: open orders, those with TXT
        records, those of the last eight days, which limits count, and those that a call may still join; certificates
        that are valid, and those whose order replaced a valid one; keys, deny-list, identities.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def size(self) -> int:
        """Octets that the database takes, its log of what was written last included.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class Soundness(Protocol):
    """Whether the database is whole."""

    async def damage(self) -> Sequence[str]:
        """What is damaged, a line each, some twenty at most; nothing if all can be read that the database holds.

        Takes minutes where the database is large, and disturbs no other use of it. Cancellation stops the waiting; the
        look itself ends when the store is closed.

        Raises:
            RefusalError: STORE_UNAVAILABLE: it could not be told.
        """
        ...


class Meter(Protocol):
    """Counts and times what `certplane.broker.metrics` declares, with exactly its labels. Never raises, never waits."""

    def count(self, counter: Counter, **labels: str) -> None:
        """Add one to a counter."""
        ...

    def observe(self, histogram: Histogram, span: timedelta, **labels: str) -> None:
        """Record how long something took."""
        ...

    def level(self, gauge: Gauge, value: float, **labels: str) -> None:
        """Set what now is."""
        ...

    def table(self, table: Table, rows: Mapping[tuple[str, ...], float]) -> None:
        """Show these rows, by the values of their labels in the table's order, and no others."""
        ...

    def forget(self, gauge: Gauge) -> None:
        """Show the gauge no more, whatever its labels, until it is set again: another broker tells it."""
        ...

    def watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Ask `read`, from any thread, what now is whenever somebody looks: for a gauge that every call moves.

        The gauge has no labels.
        """
        ...


class NullMeter(Meter):
    """A `Meter` that nobody reads."""

    @override
    def count(self, counter: Counter, **labels: str) -> None:
        pass

    @override
    def observe(self, histogram: Histogram, span: timedelta, **labels: str) -> None:
        pass

    @override
    def level(self, gauge: Gauge, value: float, **labels: str) -> None:
        pass

    @override
    def table(self, table: Table, rows: Mapping[tuple[str, ...], float]) -> None:
        pass

    @override
    def forget(self, gauge: Gauge) -> None:
        pass

    @override
    def watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        pass


class Policy(Protocol):
    """One loaded policy, immutable."""

    @property
    def hash(self) -> str:
        """SHA-256 of the file's bytes."""
        ...

    def find_grant(self, identity: str) -> Grant | None:
        """What the policy gives to the identity of this name (a SAN: canonical DNS name or URI as written)."""
        ...

    def find_profile(self, name: str) -> Profile | None:
        """The profile of this name as it is written: what it says of issuers, keys and times.

        Its names may have placeholders: those of a certificate are `granted`'s.
        """
        ...

    def granted(self, identity: str, profile: str) -> Profile | None:
        """The profile with the names that this identity gets by it; None if the policy doesn't give it to it."""
        ...

    @property
    def rollouts(self) -> RolloutRules:
        """What it says of rollouts."""
        ...

    @property
    def incidents(self) -> IncidentRules:
        """What it says of incidents."""
        ...

    def find_host(self, label: str) -> Grant | None:
        """What the policy gives to the host of this label."""
        ...

    def hosts_with(self, labels: Iterable[str]) -> frozenset[str]:
        """The identities of the hosts that have one of these labels, as KEY=VALUE."""
        ...

    def identities_of(self, name_or_label: str) -> frozenset[str]:
        """The identities that are called so: by their name, or a host, a service and an operator by their label."""
        ...

    @property
    def host_names(self) -> Sequence[str]:
        """The identity names of all its hosts, sorted."""
        ...

    @property
    def service_names(self) -> Sequence[str]:
        """The identity names of all its services, sorted."""
        ...


class PolicySource(Protocol):
    """The policy in force."""

    @property
    def current(self) -> Policy:
        """An immutable snapshot; a reload makes another.

        Raises:
            RefusalError: POLICY_UNAVAILABLE when none was ever loaded.
        """
        ...


class Issuer(Protocol):
    """A public CA's order machinery (RFC 8555 7.4), a step a method, so that each step is journalled before the next.

    Every method ends within `timeout` (of monotonic time). It repeats what is safe to repeat (badNonce, 5xx, lost
    connections) within that time, and nothing else.

    Raises (all methods):
        RefusalError: ISSUER_UNAVAILABLE (try again, retry_after if the CA said), ISSUER_RATE_LIMITED (with
            retry_after), ISSUER_REJECTED (the CA's problem documents).
    """

    @property
    def name(self) -> str:
        """The issuer's name in the configuration, part of the cache's key."""
        ...

    @property
    def directory(self) -> str:
        """The ACME directory's URL."""
        ...

    async def create_order(
        self, csr_der: bytes, profile: Profile, timeout: timedelta, *, replaces: str = ""
    ) -> IssuerOrder:
        """Ask the CA for an order of the CSR's names. The CA may hand back a pending one of the same names.

        `replaces` is the certificate (PEM, the leaf alone) of this issuer whose renewal it is; the CA is told of it
        where it takes that (RFC 9773 5), and no order fails because of it.

        A failure after the CA has made it is the order's `trouble`, so that the order isn't lost and made again.
        """
        ...

    async def get_order(self, url: str, timeout: timedelta) -> IssuerOrder:
        """The order as it is at the CA now. ISSUER_REJECTED if the CA doesn't know it (any more)."""
        ...

    async def answer_challenges(self, order: IssuerOrder, timeout: timedelta) -> IssuerOrder:
        """Tell the CA that the TXT records stand, wait until the order is ready or has failed.

        An order that the CA is still validating when time is up is returned, pending, with its Retry-After.
        """
        ...

    async def finalize(self, order: IssuerOrder, csr_der: bytes, timeout: timedelta) -> IssuerOrder:
        """Send the CSR once. A lost answer is ISSUER_UNAVAILABLE: look with `get_order`, never finalise blindly."""
        ...

    async def download(self, order: IssuerOrder, timeout: timedelta) -> str:
        """Wait until the order is valid and return the chain, PEM, leaf first, the preferred chain if configured."""
        ...


class Revoker(Protocol):
    """Revocation at the CA (RFC 8555 7.6)."""

    async def revoke(self, certificate_pem: str, reason: RevocationReason, timeout: timedelta) -> None:
        """Revoke; already revoked is success. Errors as `Issuer`'s."""
        ...


class ChallengeSolver(Protocol):
    """Makes the world see the TXT records of dns-01 challenges.

    Records are added beside what stands there, never replaced: a wildcard and its apex share a name.

    Raises (plan, present, wait_until_visible):
        RefusalError: DNS_UNAVAILABLE (try again), DNS_REJECTED (credentials, zone, permission: a person's job).
    """

    async def plan(
        self, challenges: Sequence[DnsChallenge], profile: Profile, timeout: timedelta
    ) -> Sequence[TxtRecord]:
        """The records to journal before anything is written: `zone` and `record_id` may be empty.

        Follows CNAMEs: a planned record stands where it will be written, so that what is journalled is what a restart
        removes. Asks the DNS, writes nothing.
        """
        ...

    async def present(self, records: Sequence[TxtRecord], timeout: timedelta) -> Sequence[TxtRecord]:
        """Write the records; returns them with zone and provider's id. A record that stands already is adopted."""
        ...

    async def wait_until_visible(
        self, records: Sequence[TxtRecord], timeout: timedelta, tell: Callable[[str], object] | None = None
    ) -> Sequence[str]:
        """Return when every authoritative server of each record's zone that answers shows its value.

        Returns what was wrong with the servers that gave no answer, a line each, for people: a CA's resolver passes
        over them. `tell` hears meanwhile, once for each name, what a long wait is for. DNS_UNAVAILABLE names a server
        that answered without the record; or none gave an answer.
        """
        ...

    async def remove(self, records: Sequence[TxtRecord], timeout: timedelta) -> Sequence[TxtRecord]:
        """Remove exactly these records (by id, else name and value); returns those still standing. Never raises."""
        ...


class Wanted(NamedTuple):
    """Why a certificate is to be renewed by now, since when, and by which request or rollout of operators, if by one.

    `to_issuer` is the issuer that a rollout moves it to; empty for any.
    """

    cause: OrderCause
    since: datetime
    renewal_request_id: str = ""
    rollout_id: str = ""
    to_issuer: str = ""


class RenewalTimes(Protocol):
    """When certificates should be renewed as the broker knows now: not always the time that they were stored with.

    From memory: asked for each certificate that is handed out. Never raises.
    """

    def renew_time(self, certificate: CertificateRecord) -> datetime:
        """When it should be renewed; past, it is due."""
        ...

    async def wanted(self, certificate: CertificateRecord, now: datetime) -> Wanted | None:
        """Who wants it renewed by now, and since when: OPERATOR, ISSUER or DUE; None if nobody does yet.

        From the committed plans, also those of another broker. Not for a revoked one.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def in_window(self, certificate: CertificateRecord, now: datetime) -> bool:
        """Whether the window that its CA suggests is open at `now`: begun and not over (RFC 9773 4.2).

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    def note_issued(self, certificate: CertificateRecord) -> None:
        """It was issued just now, and is durable."""
        ...

    def note_revoked(self, certificate: CertificateRecord) -> None:
        """It was revoked just now, and that is durable."""
        ...


class StoredRenewalTimes(RenewalTimes):
    """`RenewalTimes` that knows nothing better than what was stored."""

    @override
    def renew_time(self, certificate: CertificateRecord) -> datetime:
        return certificate.renew_time

    @override
    async def wanted(self, certificate: CertificateRecord, now: datetime) -> Wanted | None:
        return Wanted(OrderCause.DUE, certificate.renew_time) if certificate.renew_time <= now else None

    @override
    async def in_window(self, certificate: CertificateRecord, now: datetime) -> bool:
        return False

    @override
    def note_issued(self, certificate: CertificateRecord) -> None:
        pass

    @override
    def note_revoked(self, certificate: CertificateRecord) -> None:
        pass


@dataclass(frozen=True, slots=True)
class CaaIdentity:
    """What CAA records may say of a CA: its names (RFC 8555 7.1.1 caaIdentities) and our account (RFC 8657).

    Empty where the CA doesn't say, or isn't asked. `method` is how names are proved to it, as `validationmethods` names
    it (RFC 8657 4); empty if only the CA knows.
    """

    names: tuple[str, ...] = ()
    account_url: str = ""
    method: str = "dns-01"


class CaaIdentitySource(Protocol):
    """A CA that says what it is called in CAA records."""

    async def caa_identity(self, timeout: timedelta) -> CaaIdentity:
        """Names and account. Errors as `Issuer`'s."""
        ...


class OrderPreflight(Protocol):
    """A look at what an order will need, before it is spent at a CA."""

    async def check_order(self, dns_names: Sequence[str], issuer: str, timeout: timedelta) -> None:
        """Return unless the order is sure to fail. A CA or a DNS that can't be asked is no reason.

        Raises:
            RefusalError: DNS_REJECTED: CAA forbids the issuer, a challenge name leads where nothing may be written, or
                a standing record that the CA will look for isn't there.
        """
        ...


class NoPreflight(OrderPreflight):
    """An `OrderPreflight` that looks at nothing."""

    @override
    async def check_order(self, dns_names: Sequence[str], issuer: str, timeout: timedelta) -> None:
        pass


class SecretSource(Protocol):
    """Secrets by name, read at use and never logged."""

    async def read(self, name: str) -> str:
        """The secret, without a trailing newline.

        Raises:
            RefusalError: names the secret, never its value: DNS_REJECTED when there is none or it can't be read,
                DNS_UNAVAILABLE when what keeps it doesn't answer.
        """
        ...


@runtime_checkable
class KeepsSecrets(Protocol):
    """A `SecretSource` that keeps secrets for a while, and so may hand out one that has been replaced."""

    @property
    def generation(self) -> int:
        """How often something was forgotten: look at it before a secret is read for use."""
        ...

    def forget(self, generation: int) -> bool:
        """Whether another try may do for whoever was refused with a secret that was read since `generation`.

        Every secret that was read more than a moment ago is forgotten. If there is one, or another caller forgot some
        since `generation`, the next try reads others. Those of just now stay: many who are refused at once don't have
        each secret read again by each of them.
        """
        ...
