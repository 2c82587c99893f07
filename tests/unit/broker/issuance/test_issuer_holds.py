"""What the issuers are not to be asked for: by what the CA said, for how long, for whom, and at which brokers."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from certplane.broker.issuance.holds import IssuerHolds
from certplane.broker.issuance.queue import Lane
from certplane.broker.model import Scope, ScopeKind
from certplane.errors import ProblemDocument, Reason, Refusal
from tests.fakes.clock import ManualClock
from tests.support.memory_store import MemoryDatabase, MemoryStores

LANE = Lane("ca", "", ("shop.test",))
NOW = ManualClock().now()
HOUR = timedelta(hours=1)
ACCOUNT = [Scope(ScopeKind.ACCOUNT)]
LIMITED = Refusal(Reason.ISSUER_RATE_LIMITED, "later")
AWAY = Refusal(Reason.ISSUER_UNAVAILABLE, "no answer")
AWAY_TOLD = Refusal(Reason.ISSUER_UNAVAILABLE, "maintenance", retry_after=HOUR)
TERMS = Refusal(
    Reason.ISSUER_REJECTED,
    "new terms",
    problems=(ProblemDocument("urn:ietf:params:acme:error:userActionRequired", "agree", 403),),
)


class Brokers:
    """The holds of brokers that share a database and a retry epoch."""

    def __init__(self) -> None:
        self.epoch = "one"
        self.database = MemoryDatabase(ManualClock())

    def holds(self, directory_url: str = "https://ca.test/dir") -> IssuerHolds:
        return IssuerHolds(MemoryStores.over(self.database).holds, {"ca": directory_url}, lambda: self.epoch)

    async def started(self) -> IssuerHolds:
        holds = self.holds()
        await holds.reread(NOW)
        return holds


@pytest.fixture
def brokers() -> Brokers:
    return Brokers()


@pytest.fixture
def holds(brokers: Brokers) -> IssuerHolds:
    return brokers.holds()


def test_a_hold_ends_by_itself(holds: IssuerHolds) -> None:
    """Until its time the lane is held with what the CA said; other lanes aren't."""
    names = [Scope(ScopeKind.NAME_SET)]
    assert holds.hold(LANE, names, NOW + HOUR, LIMITED, NOW)

    assert holds.held(LANE, NOW) == (NOW + HOUR, LIMITED)
    assert holds.held(LANE._replace(issuer="other"), NOW) is None
    assert holds.held(LANE._replace(acme_profile="other"), NOW) is not None
    assert not holds.hold(LANE, names, NOW + timedelta(minutes=59), LIMITED, NOW)
    assert holds.held(LANE, NOW + timedelta(minutes=59)) is not None
    assert holds.held(LANE, NOW + HOUR) is None
    holds.hold(LANE._replace(dns_names=("other.test",)), names, NOW + 2 * HOUR, LIMITED, NOW + HOUR)
    assert len(holds._holds) == 1


@pytest.mark.parametrize(
    ("scope", "held"),
    [
        pytest.param("name_set", {"set"}, id="the very set"),
        pytest.param("name:www.shop.test", {"set", "one", "wild"}, id="a name, wildcard included"),
        pytest.param("domain:shop.test", {"set", "one", "wild", "apex", "below"}, id="a registered domain"),
        pytest.param("account", {"set", "one", "wild", "apex", "below", "near", "other"}, id="the account"),
    ],
)
def test_a_blocked_scope_blocks_only_itself(holds: IssuerHolds, scope: str, held: set[str]) -> None:
    """Whoever asks for something under the scope waits, whoever doesn't may ask."""
    sets = {
        "set": ("shop.test", "www.shop.test"),
        "one": ("www.shop.test",),
        "wild": ("*.www.shop.test",),
        "apex": ("shop.test",),
        "below": ("a.b.shop.test", "other.test"),
        "near": ("workshop.test",),
        "other": ("other.test",),
    }
    lanes = {name: Lane("ca", "", names) for name, names in sets.items()}
    parsed = Scope.parse(scope)
    assert parsed is not None
    assert str(parsed) == scope
    holds.hold(lanes["set"], [parsed], NOW + HOUR, LIMITED, NOW)

    assert {name for name, lane in lanes.items() if holds.held(lane, NOW)} == held
    assert not any(holds.held(lane._replace(issuer="another"), NOW) for lane in lanes.values())


def test_a_hold_of_a_clock_that_was_set_back_is_none(holds: IssuerHolds) -> None:
    """It was for an hour, and not for a year and an hour; what the CA says by the right clock takes its place."""
    ahead = NOW + timedelta(days=365)
    holds.hold(LANE, ACCOUNT, ahead + HOUR, LIMITED, ahead)
    assert holds.held(LANE, ahead) is not None
    assert holds.held(LANE, NOW) is None
    assert holds.hold(LANE, ACCOUNT, NOW + HOUR, LIMITED, NOW)
    assert holds.held(LANE, NOW) == (NOW + HOUR, LIMITED)


def test_the_longest_of_several_holds_counts(holds: IssuerHolds) -> None:
    """An order that falls under two limits waits for the later end, and is told that one's words."""
    short, long = Refusal(Reason.ISSUER_RATE_LIMITED, "short"), Refusal(Reason.ISSUER_RATE_LIMITED, "long")
    holds.hold(LANE, ACCOUNT, NOW + timedelta(minutes=1), short, NOW)
    holds.hold(LANE, [Scope(ScopeKind.NAME, "shop.test")], NOW + HOUR, long, NOW)

    assert holds.held(LANE, NOW) == (NOW + HOUR, long)
    assert holds.held(LANE._replace(dns_names=("other.test",)), NOW) == (NOW + timedelta(minutes=1), short)


@pytest.mark.parametrize("text", ["", "issuer", "domain", "domain:", "name_set:a", "account:x", "frequency:a"])
def test_other_words_are_no_scope(text: str) -> None:
    """What another version or another limit wrote as its subject is not taken for a scope."""
    assert Scope.parse(text) is None


@pytest.mark.parametrize(
    ("refusal", "stands"),
    [
        pytest.param(LIMITED, True, id="a limit: the CA's word"),
        pytest.param(TERMS, False, id="new terms: a guess of ours"),
    ],
)
def test_a_guess_ends_with_the_retry_epoch(brokers: Brokers, refusal: Refusal, stands: bool) -> None:
    """The cause may be mended; where it isn't, the next refusal holds for as long as it says, be it shorter."""
    holds = brokers.holds()
    holds.hold(LANE, ACCOUNT, NOW + HOUR, refusal, NOW)
    brokers.epoch = "two"
    assert (holds.held(LANE, NOW) is not None) is stands
    assert holds.hold(LANE, ACCOUNT, NOW + HOUR / 2, refusal, NOW) is not stands
    assert holds.held(LANE, NOW) == (NOW + (HOUR if stands else HOUR / 2), refusal)


def test_a_suspicion_lasts_as_long_as_the_issuer_said_or_a_while(holds: IssuerHolds) -> None:
    """Orders that have no other issuer may ask it all the same: it is no hold."""
    holds.suspect("ca", NOW, AWAY)
    assert holds.suspected("ca", NOW) == (NOW + timedelta(minutes=5), AWAY)
    assert holds.held(LANE, NOW) is None
    assert holds.suspected("other", NOW) is None
    assert holds.suspected("ca", NOW + timedelta(minutes=5)) is None
    holds.suspect("ca", NOW, AWAY_TOLD)
    assert holds.suspected("ca", NOW) == (NOW + HOUR, AWAY_TOLD)
    holds.works("ca")
    assert holds.suspected("ca", NOW) is None


@pytest.mark.parametrize(("refusal", "stands"), [(AWAY, False), (AWAY_TOLD, True)], ids=["a guess", "told"])
def test_a_suspicion_that_is_a_guess_ends_with_the_retry_epoch(
    brokers: Brokers, refusal: Refusal, stands: bool
) -> None:
    """What the issuer said of its absence stands."""
    holds = brokers.holds()
    holds.suspect("ca", NOW, refusal)
    brokers.epoch = "two"
    assert (holds.suspected("ca", NOW) is not None) is stands


async def test_a_broker_that_starts_knows_what_others_were_told(brokers: Brokers) -> None:
    """No CA says it twice: not to another broker, and not after a restart."""
    holds = brokers.holds()
    holds.hold(
        LANE, [*ACCOUNT, Scope(ScopeKind.NAME_SET), Scope(ScopeKind.DOMAIN, "shop.test")], NOW + HOUR, TERMS, NOW
    )
    holds.suspect("other", NOW, AWAY_TOLD)
    await holds.save(NOW)
    started = await brokers.started()
    assert started.held(LANE, NOW) == holds.held(LANE, NOW) == (NOW + HOUR, TERMS)
    assert started.suspected("other", NOW) == holds.suspected("other", NOW)
    assert started._holds == holds._holds


async def test_a_broker_that_hears_of_a_change_takes_in_that_alone(brokers: Brokers) -> None:
    """A hold that comes, one that grows, a suspicion that comes and goes; what it has heard of twice is the same."""
    holds, other = brokers.holds(), await brokers.started()
    holds.hold(LANE, [Scope(ScopeKind.NAME_SET)], NOW + HOUR, LIMITED, NOW)
    holds.suspect("ca", NOW, AWAY)
    await holds.save(NOW)
    keys = [" ".join(key) for key in holds._holds]
    for _ in range(2):
        await other.changed(keys)
        assert other._holds == holds._holds
    holds.works("ca")
    holds.hold(LANE, [Scope(ScopeKind.NAME_SET)], NOW + 2 * HOUR, LIMITED, NOW)
    await holds.save(NOW)
    await other.changed(keys)
    assert other.suspected("ca", NOW) is None
    assert other.held(LANE, NOW) == (NOW + 2 * HOUR, LIMITED)


async def test_of_two_that_were_told_at_once_the_longer_one_stands(brokers: Brokers) -> None:
    """Whichever is written last; and its broker has it too once it has heard of it."""
    long, short = brokers.holds(), brokers.holds()
    long.hold(LANE, ACCOUNT, NOW + HOUR, LIMITED, NOW)
    short.hold(LANE, ACCOUNT, NOW + HOUR / 2, LIMITED, NOW)
    await long.save(NOW)
    await short.save(NOW)
    await short.changed(["ca https://ca.test/dir account "])
    for each in (long, short, await brokers.started()):
        assert each.held(LANE, NOW) == (NOW + HOUR, LIMITED)


async def test_a_certificate_at_any_broker_ends_a_suspicion_but_no_newer_one(brokers: Brokers) -> None:
    """A broker that hasn't heard of the newer one yet leaves its row alone."""
    first, second = brokers.holds(), brokers.holds()
    first.suspect("ca", NOW, AWAY)
    await first.save(NOW)
    await second.reread(NOW)
    first.suspect("ca", NOW + timedelta(minutes=1), AWAY)
    await first.save(NOW)
    second.works("ca")
    await second.save(NOW)
    assert (await brokers.started()).suspected("ca", NOW) is not None
    await second.changed(["ca https://ca.test/dir out_of_reach "])
    second.works("ca")
    await second.save(NOW)
    assert (await brokers.started()).suspected("ca", NOW) is None


async def test_what_the_store_does_not_take_holds_here_and_is_written_later(
    brokers: Brokers, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost by a database that is away for a while, and it is said once."""
    holds = brokers.holds()
    brokers.database.down = True
    holds.hold(LANE, ACCOUNT, NOW + HOUR, LIMITED, NOW)
    for _ in range(3):
        await holds.save(NOW)
    assert holds.held(LANE, NOW) is not None
    assert len([record for record in caplog.records if "could not be stored" in record.message]) == 1
    brokers.database.down = False
    await holds.reread(NOW)  # as after each gap
    assert holds.held(LANE, NOW) is not None
    await holds.save(NOW)
    assert (await brokers.started()).held(LANE, NOW) is not None
    commits = brokers.database.commits
    await holds.save(NOW)
    assert brokers.database.commits == commits


async def test_a_reading_that_was_overtaken_hides_nothing(brokers: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of before a save are read again: else what was just told would be forgotten here, and asked for again."""
    holds = brokers.holds()
    reading, go_on = asyncio.Event(), asyncio.Event()
    read = holds._store.holds

    async def read_slowly() -> object:
        rows = await read()
        reading.set()
        await go_on.wait()
        return rows

    monkeypatch.setattr(holds._store, "holds", read_slowly)
    rereading = asyncio.create_task(holds.reread(NOW))
    await reading.wait()
    holds.hold(LANE, ACCOUNT, NOW + HOUR, LIMITED, NOW)
    await holds.save(NOW)
    go_on.set()
    await rereading
    assert holds.held(LANE, NOW) is not None


async def test_what_a_staging_ca_said_holds_up_nobody_at_another(brokers: Brokers) -> None:
    """An issuer whose directory was corrected since keeps its name, and not what was said to it."""
    staging = brokers.holds("https://staging.test/dir")
    staging.hold(LANE, ACCOUNT, NOW + HOUR, LIMITED, NOW)
    staging.suspect("ca", NOW, AWAY_TOLD)
    await staging.save(NOW)
    production = await brokers.started()
    assert production.held(LANE, NOW) is None
    assert production.suspected("ca", NOW) is None
    production.works("ca")
    production.hold(LANE, ACCOUNT, NOW + HOUR / 2, LIMITED, NOW)
    await production.save(NOW)
    again = brokers.holds("https://staging.test/dir")
    await again.reread(NOW)
    assert again.held(LANE, NOW) == (NOW + HOUR, LIMITED)
    assert again.suspected("ca", NOW) is not None
