"""Rollouts, and a fleet of hosts that do what they are told, for tests of what decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from certplane.broker.renewal.model import Selection
from certplane.broker.rollouts.counts import begun
from certplane.broker.rollouts.machine import step
from certplane.broker.rollouts.model import (
    ItemFacts,
    ItemState,
    RingSpec,
    RingState,
    Rollout,
    RolloutItem,
    RolloutSpec,
    RolloutState,
    Step,
)
from certplane.broker.rollouts.observed import Moment

START: Final = datetime(2026, 11, 29, 2, tzinfo=UTC)
MINUTE: Final = timedelta(minutes=1)
NOT_AFTER: Final = START + timedelta(days=60)
CANARY_THEN_REST: Final = (RingSpec("canary", ("ring=canary",), bake=10 * MINUTE), RingSpec("rest", rest=True))


def a_spec(**changes: Any) -> RolloutSpec:
    """Of all, in two rings, of which the first is watched for ten minutes."""
    return replace(RolloutSpec(Selection(all=True), "ticket 4711", rings=CANARY_THEN_REST), **changes)


def an_item(number: int, ring: int, rollout_id: str = "r1", **changes: Any) -> RolloutItem:
    """The certificate of a host with a name of its own, and one that all have."""
    host = f"web{number:03}"
    names = (f"{host}.example.com", "www.example.com")
    return replace(
        RolloutItem(rollout_id, f"c{number:03}", host, "web", "ca", names, NOT_AFTER, ring, certificate_name="web"),
        **changes,
    )


def a_rollout(
    *sizes: int, rollout_id: str = "r1", spec: RolloutSpec | None = None, **changes: Any
) -> tuple[Rollout, list[RolloutItem]]:
    """One with so many hosts in each ring, begun at `START`."""
    spec = spec or a_spec(rings=CANARY_THEN_REST[: len(sizes)])
    assert len(sizes) == len(spec.rings or (1,))
    rings = [ring for ring, size in enumerate(sizes) for _ in range(size)]
    items = [an_item(number, ring, rollout_id) for number, ring in enumerate(rings)]
    rollout = Rollout(rollout_id, "operator-1", f"request-{rollout_id}", spec, START, START, start_time=START)
    return begun(replace(rollout, **changes), items, START), items


@dataclass
class Campaign:
    """A rollout as it is kept, and what is known of its hosts; `steps` are those that were made."""

    rollout: Rollout
    items: dict[str, RolloutItem]
    facts: dict[str, ItemFacts]
    now: datetime = START
    watched_since: datetime = START
    issued_by: datetime | None = None
    steps: list[Step] = field(default_factory=list)

    @classmethod
    def of(cls, *sizes: int, is_there: bool = True, **changes: Any) -> Campaign:
        """One as `a_rollout`, whose hosts are all there."""
        rollout, items = a_rollout(*sizes, **changes)
        facts = {item.certificate_id: ItemFacts(is_there=is_there, heard_time=START) for item in items}
        return cls(rollout, {item.certificate_id: item for item in items}, facts)

    def step(self, after: timedelta = timedelta()) -> Step:
        """Make one step, so long after the last, and keep what comes of it."""
        self.now += after
        moment = Moment(self.now, self.watched_since)
        made = step(self.rollout, [*self.items.values()], self.facts, moment, self.issued_by)
        self.keep(made)
        return made

    def keep(self, made: Step) -> None:
        """As the store does."""
        self.rollout = made.rollout
        self.items |= {item.certificate_id: item for item in made.items}
        self.steps.append(made)

    def know(self, *numbers: int, **changes: Any) -> None:
        """Change what is known of these certificates; of all if none is named."""
        for certificate_id in [f"c{number:03}" for number in numbers] or [*self.facts]:
            self.facts[certificate_id] = replace(self.facts[certificate_id], **changes)

    def issue(self, *numbers: int) -> None:
        """The CA issues what these, or all, have asked for."""
        for certificate_id in [f"c{number:03}" for number in numbers] or [*self.facts]:
            if self.items[certificate_id].state is ItemState.REQUESTED:
                self.facts[certificate_id] = replace(
                    self.facts[certificate_id], new_certificate_id=f"n-{certificate_id}"
                )

    def activate(self, *numbers: int) -> None:
        """These, or all, activate what they were let activate."""
        for certificate_id in [f"c{number:03}" for number in numbers] or [*self.facts]:
            if self.items[certificate_id].state is ItemState.RELEASED:
                self.facts[certificate_id] = replace(self.facts[certificate_id], installed=True, served=True)

    def run(self, most: int = 100, each: timedelta = MINUTE) -> None:
        """Go on, with hosts and a CA that do what they are to, until it doesn't run any more."""
        for _ in range(most):
            self.step(each)
            self.issue()
            self.activate()
            if not self.rollout.state.releases:
                return
        raise AssertionError(f"{self.rollout.state} after {most} steps: {self.states}")

    @property
    def states(self) -> Mapping[str, ItemState]:
        """Of the items, by certificate."""
        return {certificate_id: item.state for certificate_id, item in self.items.items()}

    @property
    def ring_states(self) -> Sequence[RingState]:
        """Of the rings."""
        return [ring.state for ring in self.rollout.rings]

    def is_in(self, state: RolloutState) -> bool:
        """Whether the rollout is in a state."""
        return self.rollout.state is state

    def in_state(self, state: ItemState) -> list[int]:
        """The numbers of the items in a state."""
        return [int(certificate_id[1:]) for certificate_id, one in self.states.items() if one is state]
