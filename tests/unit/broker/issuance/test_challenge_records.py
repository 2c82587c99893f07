"""Which records orders under way need: counted, whatever order they come and go in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.issuance.validation import ChallengeRecords
from certplane.broker.members.ports import LastingLease
from certplane.broker.model import TxtRecord

RECORDS = [TxtRecord("", f"_acme-challenge.{label}.test", value) for label in "ab" for value in "xy"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["one", "two", "three"]), st.none() | st.sets(st.sampled_from(range(4)))), max_size=30
    )
)
async def test_what_nobody_needs_is_removed_and_nothing_else(steps: list[tuple[str, set[int] | None]]) -> None:
    """As a look at every order under way would say, for each record and after each change."""

    class Solver:
        async def remove(self, records: list[TxtRecord], _timeout: object) -> list[TxtRecord]:
            removed.update(records)
            return []

    removed: set[TxtRecord] = set()
    needed: dict[str, set[TxtRecord]] = {}
    records = ChallengeRecords(
        cast("Any", SimpleNamespace(solver=Solver(), lease=LastingLease())),
        cast("Any", SimpleNamespace(dns_timeout=None)),
    )
    for order_id, wanted in steps:
        if wanted is None:
            records.release(order_id)
            needed.pop(order_id, None)
        else:
            needed[order_id] = {RECORDS[index] for index in wanted}
            records.need(order_id, needed[order_id])
        removed.clear()
        ended = SimpleNamespace(order_id="an order that has ended", txt_records=tuple(RECORDS))
        assert await records.remove(cast("Any", SimpleNamespace(order=ended))) == ()
        assert removed == set(RECORDS).difference(*needed.values())
    for order_id in list(needed):
        records.release(order_id)
    assert not records._users
    assert not records._needed
