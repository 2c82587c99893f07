"""The values of rollouts. Frozen; times are aware UTC. The words are those of proto/certplane/v1/rollout.proto."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from certplane.broker.model import RevocationReason
from certplane.broker.renewal.model import Selection


class RolloutAction(StrEnum):
    """What becomes of a certificate; values are stored."""

    RENEW = "renew"
    REKEY = "rekey"
    MOVE = "move"


class Success(StrEnum):
    """When a host counts as done; values are stored."""

    SERVED = "served"
    """Seen served, where the host verifies; else installed."""
    INSTALLED = "installed"


class Revoke(StrEnum):
    """Whether what is replaced is revoked; values are stored."""

    NEVER = "never"
    AFTER_SERVED = "after_served"


class Finish(StrEnum):
    """An operator's word that ends a rollout whose last hosts don't come; values are stored."""

    NONE = ""
    PLAIN = "plain"
    REVOKE = "revoke"
    """With what it still has to revoke, in use or not."""


class RolloutState(StrEnum):
    """Where a rollout is; values are stored and shown."""

    AWAITING_APPROVAL = "awaiting_approval"
    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    FINISHING = "finishing"
    COMPLETED = "completed"
    ABORTED = "aborted"

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes of it."""
        return self in (RolloutState.COMPLETED, RolloutState.ABORTED)

    @property
    def releases(self) -> bool:
        """Whether hosts are told and released in it, and what they replaced is revoked."""
        return self in (RolloutState.RUNNING, RolloutState.FINISHING)


class RingState(StrEnum):
    """Where a ring is; values are stored and shown."""

    WAITING = "waiting"
    RELEASED = "released"
    BAKING = "baking"
    DONE = "done"
    FAILED = "failed"
    """It halted the rollout."""


class ItemState(StrEnum):
    """How far a certificate is, in the order in which a person wants to see them; values are stored and shown."""

    FAILED = "failed"
    SILENT = "silent"
    RELEASED = "released"
    REQUESTED = "requested"
    HELD = "held"
    WAITING = "waiting"
    SKIPPED = "skipped"
    DONE = "done"

    @property
    def place(self) -> int:
        """Its place in lists."""
        return _PLACES[self]


_PLACES: Final = {state: place for place, state in enumerate(ItemState)}


@dataclass(frozen=True, slots=True)
class Halt:
    """When a rollout halts by itself; zero of a failure bound is without that bound."""

    failed_hosts: int = 1
    failed_percent: int = 0
    silent_after: timedelta = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class RingSpec:
    """Picks hosts of a rollout: by all of `labels` (KEY=VALUE), as `percent` of all of its hosts, or all the `rest`."""

    name: str
    labels: tuple[str, ...] = ()
    percent: int = 0
    rest: bool = False
    bake: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """What a rollout does; it never changes.

    Attributes:
        selection: Which certificates.
        reason: Why, for the hosts' logs and the audit log.
        action: What becomes of each.
        issuer: Of a MOVE, by its name in the configuration.
        rings: In their order; none is one ring of all.
        success: When a host counts as done.
        max_percent_of_name: So many percent of the hosts of one name activate at a time; 0 is without a bound.
        halt: When it halts by itself.
        deadline: By then all should be done; bake times are cut for it.
        revoke: Whether what is replaced is revoked.
        revocation_reason: What the CA is told then.
    """

    selection: Selection
    reason: str
    action: RolloutAction = RolloutAction.RENEW
    issuer: str = ""
    rings: tuple[RingSpec, ...] = ()
    success: Success = Success.SERVED
    max_percent_of_name: int = 0
    halt: Halt = Halt()
    deadline: datetime | None = None
    revoke: Revoke = Revoke.NEVER
    revocation_reason: RevocationReason = RevocationReason.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class StateCount:
    """How many certificates are in a state."""

    state: ItemState
    count: int


@dataclass(frozen=True, slots=True)
class Ring:
    """How far a ring is.

    Attributes:
        name: As in its spec.
        state: Where it is.
        host_count: Its hosts.
        counts: Its certificates by state, those that there are.
        release_time: When it was released.
        done_time: When the last of its hosts that are there was done.
        bake_until: Until when it is watched.
        bake_cut: By how much that is shorter than its spec says, for the deadline.
    """

    name: str
    state: RingState = RingState.WAITING
    host_count: int = 0
    counts: tuple[StateCount, ...] = ()
    release_time: datetime | None = None
    done_time: datetime | None = None
    bake_until: datetime | None = None
    bake_cut: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout as it is durable.

    Attributes:
        rollout_id: Short enough to be typed.
        created_by: An identity; of one that an incident began, `incident ID`.
        request_id: Chosen by whoever created it; with `created_by` it is there once.
        spec: What it does.
        create_time: When it was created.
        update_time: When its state last changed.
        version: Rises by one with each write.
        state: Where it is.
        state_reason: Why it is there, for people.
        rings: In the order of the spec; one even where that has none.
        attempt: How often an operator had what failed tried again.
        finish: The operator's word that ends it.
        host_count: Its hosts.
        certificate_count: Its certificates.
        revoked_count: Of those that it is to revoke, how many are.
        unrevoked_count: How many aren't, and haven't expired.
        approved_by: Who let it begin; empty if nobody had to.
        incident_id: What it answers; empty without.
        start_time: When it was let begin.
        end_time: When it ended.
        expected_end_time: When the last ring is baked if all goes well; None if that can't be told.
    """

    rollout_id: str
    created_by: str
    request_id: str
    spec: RolloutSpec
    create_time: datetime
    update_time: datetime
    version: int = 1
    state: RolloutState = RolloutState.RUNNING
    state_reason: str = ""
    rings: tuple[Ring, ...] = ()
    attempt: int = 0
    finish: Finish = Finish.NONE
    host_count: int = 0
    certificate_count: int = 0
    revoked_count: int = 0
    unrevoked_count: int = 0
    approved_by: str = ""
    incident_id: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    expected_end_time: datetime | None = None

    @property
    def ring_specs(self) -> tuple[RingSpec, ...]:
        """Those of `rings`."""
        return self.spec.rings or ONE_RING


ONE_RING: Final = (RingSpec("all", rest=True),)
"""The rings of a rollout that names none."""


@dataclass(frozen=True, slots=True)
class RolloutItem:
    """A certificate that a rollout replaces.

    The first nine fields are written when it is created and never change. `release_time` is set where its host may
    activate: for one whose agent can't hold a certificate back, and for one that is tried again, before anything is
    issued.

    Attributes:
        rollout_id: Its rollout.
        certificate_id: The certificate that is replaced.
        host: Its holder.
        profile: Of the policy.
        issuer: That the replaced one is from.
        dns_names: Its names.
        not_after: When the replaced one ends.
        ring: The ring's place, from 0.
        certificate_name: In the host's configuration; empty where that isn't known.
        state: How far it is.
        reason: What failed or what it waits for, for people.
        attempt: The rollout's, when it failed last, or was last tried.
        new_certificate_id: The new one; empty before it is issued.
        failure_mark: Of the last failure that was seen (`ItemFacts`).
        release_time: When its host was let activate.
        done_time: When it was done.
        revoke_time: When the replaced one was revoked.
        excused: It had failed before an operator resumed the rollout: that it fails at the same again halts nobody.
    """

    rollout_id: str
    certificate_id: str
    host: str
    profile: str
    issuer: str
    dns_names: tuple[str, ...]
    not_after: datetime
    ring: int
    certificate_name: str = ""
    state: ItemState = ItemState.WAITING
    reason: str = ""
    attempt: int = 0
    new_certificate_id: str = ""
    failure_mark: str = ""
    release_time: datetime | None = None
    done_time: datetime | None = None
    revoke_time: datetime | None = None
    excused: bool = False


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """What is known of a certificate of a rollout and of its host, now.

    Attributes:
        is_there: The host has a stream; of one whose agent is started by a timer: it came as often as it should.
        can_be_told: It is told to renew; a service isn't, and comes when it comes: nobody waits for it.
        can_hold: Its agent can hold a certificate back (feature `rollout`).
        heard_time: When it was heard last.
        interval: How often it comes where it has no stream: so much longer may it be silent.
        new_certificate_id: What was issued in the certificate's place, and is what the action asks for; else empty.
        installed: That one is in use, and its reload has ended well.
        served: It was seen served; None where the host doesn't look.
        failure: What failed, for good until somebody acts or the host tries again: its own or the CA's words.
        failure_mark: Differs between two failures of one certificate, however alike they are; opaque.
        is_final: Another try would change nothing: something else than what the rollout is for was issued already.
        gone: Why there is nothing to do any more; empty if there is. Another rollout that is newer is such a reason.
        revoke_time: When the replaced certificate was revoked, by whomever.
    """

    is_there: bool = False
    can_be_told: bool = True
    can_hold: bool = True
    heard_time: datetime | None = None
    interval: timedelta = timedelta()
    new_certificate_id: str = ""
    installed: bool = False
    served: bool | None = None
    failure: str = ""
    failure_mark: str = ""
    is_final: bool = False
    gone: str = ""
    revoke_time: datetime | None = None

    @property
    def in_use(self) -> bool:
        """Whether the new one is in use, as far as the host can see."""
        return self.installed and self.served is not False


class Happened(StrEnum):
    """A step of a rollout that is told and audited."""

    RING_RELEASED = "ring_released"
    RING_BAKING = "ring_baking"
    RING_DONE = "ring_done"
    HALTED = "halted"
    FINISHING = "finishing"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class Happening:
    """One such step; `ring` is its name where it is of one, `detail` is for people."""

    what: Happened
    ring: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """What comes of a rollout now.

    `items` are those that changed. Of them `told` are to be renewed (their `release_time` says whether the new one is
    held) and their plans are written *before* this step is; `released` may be activated, and are told *after* it is. A
    crash in between then repeats what may be repeated.

    Attributes:
        rollout: As it is now; the same object if nothing of it changed.
        items: Those that changed.
        told: Their hosts are to renew them.
        released: Their hosts may use what they hold.
        revoke: The certificates that they replace may be revoked now; each stays here until `ItemFacts.revoke_time`.
        happened: What is to be told.
        next_time: When time alone may change something; None if it can't.
    """

    rollout: Rollout
    items: tuple[RolloutItem, ...] = ()
    told: tuple[RolloutItem, ...] = ()
    released: tuple[RolloutItem, ...] = ()
    revoke: tuple[RolloutItem, ...] = ()
    happened: tuple[Happening, ...] = ()
    next_time: datetime | None = None
    changed: bool = False
    """Whether there is anything to be written."""
