"""What `Successors` promises, asked of SQLite and of PostgreSQL."""

from __future__ import annotations

from datetime import timedelta

from certplane.broker.rollouts.facts import Successor
from tests.support.stores import StoreHarness


async def test_the_newest_that_was_issued_in_the_place_of_another(store: StoreHarness) -> None:
    """With whether it has the same key; of what nothing has replaced, none."""
    old, other, alone = [await store.issue(key=f"key-{number}") for number in range(3)]
    store.clock.advance(timedelta(minutes=1))
    await store.issue(key="key-new", replaces_certificate_id=old.certificate_id)
    store.clock.advance(timedelta(minutes=1))
    newest = await store.issue(key="key-newer", replaces_certificate_id=old.certificate_id, issuer="second")
    same = await store.issue(key=other.public_key_sha256, replaces_certificate_id=other.certificate_id)
    await store.open_order(public_key_sha256="key-9", replaces_certificate_id=alone.certificate_id)  # under way

    wanted = [one.certificate_id for one in (old, other, alone)]
    found = await store.stores.successors.successors_of([*wanted, "nothing"])
    assert sorted(found, key=lambda each: wanted.index(each.replaced_id)) == [
        Successor(old.certificate_id, newest.certificate_id, newest.serial_number, "second", same_key=False),
        Successor(other.certificate_id, same.certificate_id, same.serial_number, same.issuer, same_key=True),
    ]
    assert await store.stores.successors.successors_of([]) == []
