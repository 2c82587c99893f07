"""Rollouts as a broker tells of them."""

from __future__ import annotations

from datetime import datetime, timedelta

from certplane.v1 import rollout_pb2
from tests.support.watched_fleet import NOW

Rollout = rollout_pb2.Rollout
Item = rollout_pb2.RolloutItem
Ring = Rollout.Ring


def counts(**numbers: int) -> list[Rollout.ItemCount]:
    """Certificates by state, such as `done=3`."""
    return [
        Rollout.ItemCount(state=Item.State.Value(f"STATE_{word.upper()}"), certificate_count=number)  # type: ignore[arg-type]  # by name
        for word, number in numbers.items()
    ]


def a_rollout(state: int = Rollout.STATE_RUNNING, reason: str = "", now: datetime = NOW, **numbers: int) -> Rollout:
    """Three rings of new keys: the first baking, the second released, the third held."""
    hour = timedelta(hours=1)
    made = Rollout(rollout_id="r-7f3a", state=state, state_reason=reason, host_count=20, created_by="alice.example")  # type: ignore[arg-type]  # an open enum
    made.spec.selection.issuers.append("letsencrypt")
    made.spec.action = rollout_pb2.RolloutSpec.ACTION_REKEY
    made.spec.revoke = rollout_pb2.RolloutSpec.REVOKE_AFTER_SERVED
    made.spec.reason = "ticket 4711"
    made.spec.rings.add(name="canary", labels=["ring=canary"])
    made.spec.rings.add(name="10-percent", percent=10)
    made.spec.rings.add(name="rest", rest=True)
    made.spec.rings[0].bake_duration.FromTimedelta(hour)
    first = made.rings.add(name="canary", state=Ring.STATE_BAKING, host_count=2, item_counts=counts(done=2))
    first.bake_until_time.FromDatetime(now + hour / 2)
    first.bake_cut.FromTimedelta(hour / 4)
    made.rings.add(name="10-percent", state=Ring.STATE_RELEASED, host_count=2, item_counts=counts(done=1, released=1))
    made.rings.add(name="rest", state=Ring.STATE_WAITING, host_count=16, item_counts=counts(held=10, requested=6))
    made.item_counts.extend(counts(**(numbers or {"done": 3, "released": 1, "held": 10, "requested": 6})))
    made.create_time.FromDatetime(now - hour)
    made.update_time.FromDatetime(now - hour / 2)
    made.expected_end_time.FromDatetime(now + 5 * hour)
    made.forecast.order_count = 20
    made.forecast.bound_by = "new_orders_per_account of letsencrypt: 300 per 3h"
    made.forecast.last_order_time.FromDatetime(now + 2 * hour)
    made.unrevoked_count = 20
    return made


def halted(now: datetime = NOW) -> Rollout:
    """The same, after a reload that failed in the first ring."""
    made = a_rollout(Rollout.STATE_HALTED, "1 host of ring canary failed", now, done=1, failed=1, held=12, requested=6)
    made.rings[0].state = Ring.STATE_FAILED
    del made.rings[0].item_counts[:]
    made.rings[0].item_counts.extend(counts(done=1, failed=1))
    made.failed.append(a_failure())
    return made


def a_failure(host: str = "web7.example.test", reason: str = "reload: nginx: configuration test failed") -> Item:
    """A certificate whose reload failed."""
    return Item(
        host=host,
        certificate_id=f"c-{host}",
        certificate_name="web",
        ring="canary",
        state=Item.STATE_FAILED,
        reason=reason,
    )
