"""A rollout that is read from its store before each step and written after it, as brokers do that follow each other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from certplane.broker.rollouts.machine import step
from certplane.broker.rollouts.model import ItemState, Revoke, RingState, Rollout, RolloutState
from certplane.broker.rollouts.observed import Moment
from certplane.errors import Reason, RefusalError
from tests.fakes.clock import ManualClock
from tests.support.memory_store import MemoryStores
from tests.support.rollouts import MINUTE, START, Campaign, a_spec

LOST = RefusalError(Reason.STORE_UNAVAILABLE, "the connection was lost")


async def read(stores: MemoryStores, campaign: Campaign) -> Rollout:
    """What a broker reads that has just got the role."""
    rollout = await stores.rollouts.get("r1")
    assert rollout is not None
    campaign.rollout = rollout
    campaign.items = {item.certificate_id: item for item in await stores.rollouts.items("r1")}
    return rollout


async def take_over(writes: Sequence[str]) -> Campaign:
    """Go through a rollout, each step by another broker: whose write comes through, or is lost before or after that."""
    campaign = Campaign.of(2, 3, spec=a_spec(revoke=Revoke.AFTER_SERVED))
    stores = MemoryStores.open(ManualClock(START))
    await stores.rollouts.create(campaign.rollout, [*campaign.items.values()])
    script = iter(writes)
    for _ in range(100):
        before = await read(stores, campaign)
        if before.state.has_ended:
            break
        campaign.now += MINUTE
        made = step(before, [*campaign.items.values()], campaign.facts, Moment(campaign.now, START))
        for item in made.revoke:
            campaign.know(int(item.certificate_id[1:]), revoke_time=campaign.now)
        if made.changed:
            fate = next(script, "comes through")
            if fate == "lost before":
                stores.database.faults.fail("save", LOST)
            elif fate == "lost after":
                stores.database.faults.fail_after("save", LOST)
            try:
                assert await stores.rollouts.save(before, made.rollout, made.items)
            except RefusalError:
                assert fate.startswith("lost")
        await read(stores, campaign)
        campaign.issue()
        campaign.activate()
    return campaign


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["comes through", "lost before", "lost after"]), max_size=30))
def test_whoever_takes_it_over_brings_it_to_the_same_end(writes: list[str]) -> None:
    """Whichever write a broker was killed before or after: nothing is done twice that must not be, and nothing lost."""
    campaign = asyncio.run(take_over(writes))
    assert campaign.is_in(RolloutState.COMPLETED)
    assert campaign.in_state(ItemState.DONE) == [0, 1, 2, 3, 4]
    assert campaign.rollout.revoked_count == 5
    assert campaign.ring_states == [RingState.DONE, RingState.DONE]
