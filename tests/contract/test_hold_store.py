"""What `HoldStore` promises, asked of each kind of store."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from certplane.broker.issuance.holds import IssuerHold
from certplane.broker.model import ChangeKind
from certplane.errors import ProblemDocument, Reason, Refusal, Violation
from tests.fakes.clock import ManualClock
from tests.support.stores import StoreHarness

NOW = ManualClock().now()
HOUR = timedelta(hours=1)
REFUSAL = Refusal(
    Reason.ISSUER_RATE_LIMITED,
    "too many certificates: \N{SNOWMAN}",
    retry_after=HOUR,
    problems=(ProblemDocument("urn:ietf:params:acme:error:rateLimited", "later", 429),),
    violations=(Violation("domain:shop.test", "too many"),),
)
HOLD = IssuerHold("a ca", "https://ca.test/dir", "domain:shop.test", "", NOW + HOUR, REFUSAL, "")
GUESS = replace(HOLD, scope="account", retry_epoch="one")


async def test_what_was_written_is_found(store: StoreHarness) -> None:
    """Whole, by its key and among all; of the same scope for two sets of names there are two."""
    holds = store.stores.holds
    sets = [replace(HOLD, scope="name_set", names_sha256=digest) for digest in ("aa", "bb")]
    await holds.write_holds([HOLD, GUESS, *sets], [], NOW)
    assert {hold.key: hold for hold in await holds.holds()} == {hold.key: hold for hold in (HOLD, GUESS, *sets)}
    assert await holds.find_hold(HOLD.key) == HOLD
    assert await holds.find_hold(("a ca", "https://ca.test/dir", "name_set", "cc")) is None


async def test_a_longer_one_takes_its_place_and_a_shorter_one_does_not(store: StoreHarness) -> None:
    """Whoever is last to write: brokers are told at about the same time."""
    holds = store.stores.holds
    longer, shorter = replace(HOLD, until=NOW + 2 * HOUR), replace(HOLD, until=NOW + HOUR / 2)
    await holds.write_holds([HOLD], [], NOW)
    await holds.write_holds([longer], [], NOW)
    for other in (HOLD, shorter):
        await holds.write_holds([other], [], NOW)
        assert await holds.holds() == [longer]


async def test_a_guess_of_another_epoch_has_ended(store: StoreHarness) -> None:
    """What comes after it stands, though it ends sooner; what the issuer said doesn't end so."""
    holds = store.stores.holds
    await holds.write_holds([GUESS, HOLD], [], NOW)
    later = [replace(hold, until=NOW + HOUR / 2, retry_epoch="two") for hold in (GUESS, HOLD)]
    await holds.write_holds(later, [], NOW)
    assert await holds.find_hold(GUESS.key) == later[0]
    assert await holds.find_hold(HOLD.key) == HOLD
    await holds.write_holds([replace(later[0], until=NOW + HOUR / 4)], [], NOW)
    assert await holds.find_hold(GUESS.key) == later[0]


async def test_one_of_a_clock_that_was_set_back_gives_way(store: StoreHarness) -> None:
    """It would keep out what the CA says by the right clock for as long as the clock was wrong."""
    holds = store.stores.holds
    await holds.write_holds([replace(HOLD, until=NOW + timedelta(days=365))], [], NOW + timedelta(days=365))
    await holds.write_holds([HOLD], [], NOW)
    assert await holds.holds() == [HOLD]


async def test_one_that_has_ended_is_removed_but_not_what_has_taken_its_place(store: StoreHarness) -> None:
    """A broker that knows only of the older one ends no other."""
    holds = store.stores.holds
    newer = replace(HOLD, until=NOW + 2 * HOUR)
    await holds.write_holds([newer], [], NOW)
    await holds.write_holds([], [HOLD], NOW)
    assert await holds.holds() == [newer]
    for _ in range(2):
        await holds.write_holds([], [newer], NOW)
        assert await holds.holds() == []


async def test_what_has_ended_by_itself_goes_with_the_next_one(store: StoreHarness) -> None:
    """The table is as long as what stands."""
    holds = store.stores.holds
    old = [replace(HOLD, scope="name_set", names_sha256=f"{number}") for number in range(20)]
    await holds.write_holds(old, [], NOW)
    await holds.write_holds([replace(GUESS, until=NOW + 2 * HOUR)], [], NOW + HOUR)
    assert [hold.scope for hold in await holds.holds()] == ["account"]


async def test_other_brokers_are_told_of_what_has_changed(store: StoreHarness) -> None:
    """Of each, and of nothing that stayed as it was; where there can be no other broker, nothing is written."""
    holds = store.stores.holds
    await holds.write_holds([HOLD, GUESS], [], NOW)
    await holds.write_holds([HOLD], [], NOW)
    await holds.write_holds([], [GUESS], NOW)
    await holds.write_holds([], [GUESS], NOW)
    if store.place.kind == "memory":
        return
    told = store.place.query(f"SELECT key FROM changes WHERE kind = '{ChangeKind.HOLD}' ORDER BY number")  # noqa: S608 - an enum's
    expected = [HOLD.key, GUESS.key, GUESS.key] if store.place.kind == "postgresql" else []
    assert [key for (key,) in told] == [" ".join(key) for key in expected]
