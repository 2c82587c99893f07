"""What `BrokerRequestStore` promises, asked of every kind of store."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from certplane.broker.members.requests import STALE, BrokerAnswer, BrokerCommand, BrokerRequest
from certplane.broker.model import ChangeKind
from tests.support.stores import StoreHarness

ANSWER = BrokerAnswer(done=False, lines=("refused",), confirmation_required=True, streams=3, orders=2, draining=True)


def request(store: StoreHarness, key: str, broker_id: str = "b", **changes: Any) -> BrokerRequest:
    facts: dict[str, Any] = {
        "command": BrokerCommand.RELOAD,
        "asked_by": "the operator alice",
        "confirmed": True,
        "identity": "alice",
        "request_id": "r-1",
        "reason": "upgrade",
        "create_time": store.clock.now(),
        **changes,
    }
    return BrokerRequest(key, broker_id, **facts)


async def test_a_broker_finds_what_is_asked_of_it(store: StoreHarness, other: StoreHarness) -> None:
    """All that was said, the oldest first, until it has answered; and whoever asked finds the answer."""
    requests, theirs = store.stores.broker_requests, other.stores.broker_requests
    first = request(store, "k1")
    store.clock.advance(timedelta(seconds=1))
    second = request(store, "k2", command=BrokerCommand.DRAIN, confirmed=False)
    await requests.ask([second, first, request(store, "k3", "c")])
    assert await theirs.asked_of("b") == [first, second]
    await theirs.answer("k1", ANSWER)
    await theirs.answer("k1", BrokerAnswer(done=True))
    assert await theirs.asked_of("b") == [second]
    assert await requests.answers(["k1", "k2", "none"]) == {"k1": ANSWER}


async def test_what_nobody_waits_for_goes(store: StoreHarness) -> None:
    """With the next that is asked: the table is as long as what was asked in minutes."""
    requests = store.stores.broker_requests
    await requests.ask([request(store, "k1")])
    store.clock.advance(STALE + timedelta(seconds=1))
    await requests.ask([request(store, "k2")])
    assert [each.request_key for each in await requests.asked_of("b")] == ["k2"]


async def test_request_and_answer_are_told(store: StoreHarness) -> None:
    """By the broker, and by the request; nobody else is on SQLite to be told."""
    await store.stores.broker_requests.ask([request(store, "k1")])
    await store.stores.broker_requests.answer("k1", ANSWER)
    if store.place.kind == "postgresql":
        told = store.place.query(f"SELECT key FROM changes WHERE kind = '{ChangeKind.BROKER_REQUEST}' ORDER BY number")  # noqa: S608 - ours
        assert told == [("b",), ("k1",)]
