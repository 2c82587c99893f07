"""Whether an order has its places, and what the buckets are once it has taken them. Pure.

What the database adds is that this happens for one order at a time, and that somebody more urgent may be left the place
(`certplane.broker.store.budget`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from certplane.broker.budget import gcra
from certplane.broker.budget.model import FULL, Bucket, BucketKey, Need, Shortage


def bucket_of(need: Need, buckets: Mapping[BucketKey, Bucket]) -> Bucket:
    """The bucket of a need: one that isn't known is full."""
    return buckets.get(need.key) or Bucket(need.key, need.label, FULL)


def shortage_of(needs: Iterable[Need], buckets: Mapping[BucketKey, Bucket], now: datetime) -> Shortage | None:
    """Why there is no place for the order: by the bucket that has one last; None if each has one."""
    found: Shortage | None = None
    for need in needs:
        bucket, rate = bucket_of(need, buckets), need.limit.rate
        free = gcra.free_time(bucket.level, rate) if need.takes else gcra.spare_time(bucket.level, rate)
        if free > now and (found is None or free > found.free_time):
            told = bucket.told_until is not None and now < bucket.told_until
            found = Shortage(need.limit, need.key, need.label, free, told=told)
    return found


def taken_needs(needs: Iterable[Need], places: Collection[str]) -> Sequence[Need]:
    """Those of `needs` of which an order has a place (`Order.places`)."""
    return [need for need in needs if need.takes and need.key.digest in places]


def taken(needs: Iterable[Need], buckets: Mapping[BucketKey, Bucket], now: datetime) -> Mapping[BucketKey, Bucket]:
    """The buckets that are changed, with one place less each."""
    changed = {}
    for need in needs:
        if need.takes:
            bucket = bucket_of(need, buckets)
            changed[need.key] = replace(bucket, level=gcra.take(bucket.level, need.limit.rate, now))
    return changed
