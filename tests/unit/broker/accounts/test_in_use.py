"""Which account keys a broker orders with beside others, and what it hears of theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from certplane.broker.accounts.in_use import AccountPlace, AccountsInUse
from certplane.broker.accounts.model import Account
from certplane.broker.members.model import AccountKey, Member
from certplane.errors import ConfigurationError, Reason, RefusalError
from tests.fakes.accounts import FakeAccounts
from tests.fakes.clock import ManualClock
from tests.support.waiting import until

DIRECTORY = "https://ca.example/directory"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLACE = AccountPlace(DIRECTORY, "issuer.acme.account_key")


class Fleet:
    """Brokers on one database."""

    def __init__(self) -> None:
        self.rows = FakeAccounts()
        self.members: dict[str, Member] = {}
        self.looks: list[str] = []
        self.clock = ManualClock()

    async def living(self) -> Sequence[Member]:
        return list(self.members.values())

    def broker(self, name: str, key: str, *, kept: str = "", in_store: bool = False) -> AccountsInUse:
        """One that orders with `key` and would find `kept` where it looks, and has joined already."""

        async def look(issuer: str) -> str:
            self.looks.append(f"{name} {issuer}")
            if kept == "away":
                raise RefusalError(Reason.ISSUER_UNAVAILABLE, "the process has ended")
            return kept or key

        keys = (AccountKey("default", key),)
        self.members[name] = Member(name, name, ":8443", "1", NOW, "", "", "", account_keys=keys)
        accounts = AccountsInUse(self.rows, {"default": replace(PLACE, in_store=in_store)}, look, self.clock)
        accounts.note("default", key)
        return accounts

    async def change(self, key: str) -> None:
        """What a command beside another broker writes."""
        await self.rows.change(self.rows.rows["default", DIRECTORY], Account("default", DIRECTORY, key))

    async def hear(self, accounts: AccountsInUse, *issuers: str) -> bool:
        """What the feed tells, and what comes of it."""
        await accounts.changed(issuers or ("default",))
        return await accounts.catch_up()

    async def claim(self, accounts: AccountsInUse, name: str) -> None:
        await accounts.claim(name, self.living)

    def recorded(self) -> str:
        return self.rows.rows["default", DIRECTORY].public_key_sha256


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


async def test_the_first_key_is_recorded_and_the_same_one_joins(fleet: Fleet) -> None:
    """Also of two that start at once, whichever is first."""
    for name in ("a", "b"):
        await fleet.claim(fleet.broker(name, "key-1"), name)
    assert fleet.recorded() == "key-1"


async def test_of_two_that_start_at_once_one_is_refused(fleet: Fleet) -> None:
    """Both have joined; whose record comes second finds the first one living."""
    one, other = fleet.broker("a", "key-1"), fleet.broker("b", "key-2")
    await fleet.claim(one, "a")
    with pytest.raises(ConfigurationError, match=r"another account \(key-2\) than the broker on a at :8443.*\(key-1\)"):
        await fleet.claim(other, "b")
    assert fleet.recorded() == "key-1"


async def test_a_record_of_brokers_that_are_gone_is_replaced(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """A single broker may have any key, and says that it is another one."""
    await fleet.claim(fleet.broker("a", "key-1"), "a")
    del fleet.members["a"]
    await fleet.claim(fleet.broker("b", "key-2"), "b")
    assert fleet.recorded() == "key-2"
    assert "another one than brokers of this database had before" in caplog.text


async def test_a_key_that_was_just_changed_is_read_again(fleet: Fleet) -> None:
    """A start in the midst of a change joins with the new key."""
    await fleet.claim(fleet.broker("a", "key-2"), "a")
    late = fleet.broker("b", "key-1", kept="key-2")
    await fleet.claim(late, "b")
    assert late.keys == {"default": "key-2"}
    assert (fleet.recorded(), sorted(late)) == ("key-2", ["key-1", "key-2"])


async def test_a_key_that_the_database_keeps_is_left(fleet: Fleet) -> None:
    """Whether somebody orders with it or not; a broker that has it from there records nothing."""
    stored = Account("default", DIRECTORY, "key-1", b"sealed")
    await fleet.rows.change(None, stored)
    await fleet.claim(fleet.broker("a", "key-1", in_store=True), "a")
    del fleet.members["a"]
    with pytest.raises(ConfigurationError, match=r"the database keeps the key of the account at default \(key-1\)"):
        await fleet.claim(fleet.broker("b", "key-2"), "b")
    assert await fleet.rows.all() == [stored]


async def test_another_brokers_change_is_taken(fleet: Fleet) -> None:
    """Only where the record is another one is the process asked; the old key stays one that no certificate may have."""
    broker = fleet.broker("a", "key-1", kept="key-2")
    await fleet.claim(broker, "a")
    await fleet.hear(broker, "default", "none-of-ours")
    assert fleet.looks == []
    await fleet.change("key-2")
    await fleet.hear(broker)
    assert (fleet.looks, broker.keys) == (["a default"], {"default": "key-2"})
    await broker.reread(NOW)
    await broker.catch_up()
    assert fleet.looks == ["a default"]
    assert "key-1" in broker
    assert "key-2" in broker
    assert len(broker) == 2


async def test_a_key_that_this_broker_does_not_have_is_said_once(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """Its orders will be refused by the CA: the log has both keys and the setting to look at."""
    broker = fleet.broker("a", "key-1")
    await fleet.claim(broker, "a")
    await fleet.change("key-2")
    for _ in range(3):
        await fleet.hear(broker)
    said = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in said] == [
        "another broker has another key for the account: give this one the same, and look at issuer.acme.account_key"
    ]
    assert said[0].__dict__["fields"] == {"issuer": "default", "key_sha256": "key-1", "key_sha256_there": "key-2"}


async def test_a_process_that_has_ended_tells_its_key_by_itself(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """The one that is asked in vain is no reason to say that the key is missing here."""
    broker = fleet.broker("a", "key-1", kept="away")
    await fleet.claim(broker, "a")
    await fleet.change("key-2")
    await fleet.hear(broker)
    assert "another broker has another key" not in caplog.text
    broker.note("default", "key-2")
    await fleet.hear(broker)
    assert broker.keys == {"default": "key-2"}


async def test_news_is_taken_in_beside_the_feed_and_asked_for_again(fleet: Fleet) -> None:
    """The feed doesn't wait for a CA or a vault; a database that is away is asked again, and nothing is forgotten."""
    broker = fleet.broker("a", "key-1", kept="key-2")
    await fleet.claim(broker, "a")
    await fleet.change("key-2")
    fleet.rows.faults.fail("find", RefusalError(Reason.STORE_UNAVAILABLE, "away"), times=2)
    running = asyncio.create_task(broker.run())
    await broker.changed(["default"])
    assert broker.keys == {"default": "key-1"}
    for _ in range(2):
        await until(lambda: fleet.clock.sleepers == 1, what="the pause")
        fleet.clock.advance(timedelta(seconds=1))
        await asyncio.sleep(0)
    await until(lambda: broker.keys == {"default": "key-2"}, what="the new key")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
