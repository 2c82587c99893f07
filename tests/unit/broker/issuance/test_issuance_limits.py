"""The CA's budget belongs to everybody, and nobody whose renewal is due or wanted waits for it: with the defaults."""

from __future__ import annotations

import contextlib
import itertools
import logging
from datetime import timedelta

import pytest

from certplane.broker import metrics
from certplane.broker.events import AuditEventType
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.issuance.commands import IssueCommand
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.model import CertificateRecord, OrderCause, OrderState, Profile, RevocationReason
from certplane.broker.ports import DurableLimits
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.settings import RateLimitSettings
from certplane.errors import Reason, Refusal, RefusalError
from certplane.fleet_report.model import RenewalCause
from tests.support.issuance import World, caller, csr, issue

HOST = "web1.test"
DEFAULTS = RateLimitSettings().durable_limits
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def world_() -> World:
    return World(settings=IssuanceSettings(limits=DEFAULTS))


async def certificate(authority: RegistrationAuthority, command: IssueCommand, host: str = HOST) -> CertificateRecord:
    result = await authority.issue(caller(host), command)
    assert result.order.state is OrderState.ISSUED
    assert result.certificate is not None
    return result.certificate


async def refused(authority: RegistrationAuthority, command: IssueCommand, host: str = HOST) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        await authority.issue(caller(host), command)
    return caught.value.refusal


def names(refusal: Refusal) -> list[str]:
    return [violation.subject for violation in refusal.violations]


async def order_renewal(world: World, record: CertificateRecord, cause: RenewalCause = RenewalCause.OPERATOR) -> None:
    """An operator, or the CA, wants it renewed now."""
    now = world.clock.now()
    window = (now, now + DAY) if cause is RenewalCause.ISSUER else (None, None)
    time = now + timedelta(hours=12) if cause is RenewalCause.ISSUER else now
    await world.plans.set_plans(
        [
            RenewalPlan(
                record.certificate_id,
                HOST,
                time,
                cause,
                window_start=window[0],
                window_end=window[1],
                renewal_request_id="drill-1" if cause is RenewalCause.OPERATOR else "",
            )
        ]
    )


async def revoke_as_operator(world: World, record: CertificateRecord) -> None:
    """As `certplane-broker certs revoke` does it beside the running broker."""
    reason = RevocationReason.KEY_COMPROMISE
    await world.stores.certificates.mark_revoked(record.certificate_id, reason, world.clock.now(), [])


# What must pass


async def test_the_first_minutes_of_a_host() -> None:
    """A first certificate, one by `certplane-agent renew`, one that an operator asks for, each with a new key."""
    world = world_()
    authority = await world.started()
    first = await certificate(authority, issue("one"))
    world.clock.advance(MINUTE)
    second = await certificate(authority, issue("two", replaces=first.certificate_id))
    world.clock.advance(MINUTE)
    await order_renewal(world, second)
    await certificate(authority, issue("three", replaces=second.certificate_id))
    assert [order.cause for order in world.orders] == [OrderCause.ORDINARY, OrderCause.EARLY, OrderCause.OPERATOR]
    assert world.meter.total(metrics.ORDERS_OPENED, cause="operator") == 1
    named = [event for event in world.database.events if event.renewal_request_id]
    assert [(event.event_type, event.renewal_request_id) for event in named] == [
        (AuditEventType.CERTIFICATE_AUTHORIZED, "drill-1"),
        (AuditEventType.CERTIFICATE_ISSUED, "drill-1"),
        (AuditEventType.CERTIFICATE_DELIVERED, "drill-1"),
    ]
    assert {(event.cause, event.replaces_certificate_id) for event in named} == {("operator", second.certificate_id)}


async def at_its_limits(world: World, authority: RegistrationAuthority) -> CertificateRecord:
    """The newest certificate of a host that gets no other by itself."""
    record = await certificate(authority, issue("one"))
    record = await certificate(authority, issue("two", replaces=record.certificate_id))
    refusal = await refused(authority, issue("three", replaces=record.certificate_id))
    assert refusal.reason is Reason.RATE_LIMITED
    return record


@pytest.mark.parametrize("says_what", [True, False], ids=["renewal", "without saying of what"])
@pytest.mark.parametrize("cause", ["revoked", "withdrawn", "operator", "issuer", "due", "due by its clock", "expired"])
async def test_whoever_is_at_its_limits_gets_what_is_wanted_or_due(cause: str, says_what: bool) -> None:
    """An operator's or its own revocation, an operator, the CA's window, its time: once, whatever the limits say."""
    world = world_()
    authority = await world.started()
    record = await at_its_limits(world, authority)
    match cause:
        case "revoked":
            await revoke_as_operator(world, record)
        case "withdrawn":
            await authority.revoke(caller(), "r", record.certificate_id, RevocationReason.KEY_COMPROMISE)
        case "operator":
            await order_renewal(world, record)
        case "issuer":
            await order_renewal(world, record, RenewalCause.ISSUER)
        case "due":
            world.clock.advance(record.renew_time - world.clock.now())
        case "due by its clock":  # which is some minutes ahead
            world.clock.advance(record.renew_time - world.clock.now() - 4 * MINUTE)
        case _:
            world.clock.advance(record.not_after - world.clock.now() + DAY)
    if cause in ("due", "due by its clock", "expired"):  # the day's limits are past: those of that day are reached too
        await _reach_again(world, authority)
    replaces = record.certificate_id if says_what else ""

    await certificate(authority, issue("four", replaces=replaces))

    wanted = OrderCause.DUE if cause in ("due by its clock", "expired") else OrderCause(cause)
    assert world.orders[-1].cause is wanted
    again = await refused(authority, issue("five", replaces=replaces))
    assert again.reason is Reason.RATE_LIMITED


async def _reach_again(world: World, authority: RegistrationAuthority) -> None:
    """Another host has used up the names' week, so that nothing ordinary passes."""
    for number in range(4):
        host = f"other{number}.test"
        world.policies.policy.grants[host] = world.policies.policy.grants[HOST]
        await certificate(authority, issue(f"other-{number}"), host)


async def test_a_re_key_of_everything_passes() -> None:
    """Sixty profiles of one host within a minute, which is more orders an hour than a host gets by itself."""
    world = world_()
    profiles = [Profile(f"p{n:02}", "multi_san", (f"p{n:02}.test",), hash=f"hash-{n}") for n in range(60)]
    policy = world.policies.policy
    for profile in profiles:
        policy.profiles[profile.name] = profile
    grant = policy.grants[HOST]
    policy.grants[HOST] = type(grant)(HOST, grant.kind, grant.label, tuple(profile.name for profile in profiles))
    authority = await world.started()

    def ask(profile: Profile, key: str, replaces: str = "") -> IssueCommand:
        text = csr(f"{key}-{profile.name}", profile.dns_names)
        return issue(profile=profile.name, csr_pem=text, replaces=replaces)

    held = []
    for index, profile in enumerate(profiles):
        if index == 40:
            world.clock.advance(timedelta(hours=1))
        held.append(await certificate(authority, ask(profile, "old")))
    for record in held:
        await order_renewal(world, record)
    for profile, record in zip(profiles, held, strict=True):
        await certificate(authority, ask(profile, "new", record.certificate_id))
    assert len(world.orders) == 120


# What must not


async def test_revoking_and_asking_again_does_not_burn_the_cas_limit() -> None:
    """Attack: issue, revoke as superseded, issue again. With the same key there is none; with others the week's five."""
    world = world_()
    authority = await world.started()
    record = await certificate(authority, issue("one"))
    await authority.revoke(caller(), "r", record.certificate_id, RevocationReason.SUPERSEDED)
    assert (await refused(authority, issue("one"))).reason is Reason.KEY_REUSED
    for number in range(4):
        record = await certificate(authority, issue(f"key-{number}"))
        await authority.revoke(caller(), "r", record.certificate_id, RevocationReason.SUPERSEDED)
        world.clock.advance(MINUTE)
    for number in range(4, 20):
        assert names(await refused(authority, issue(f"key-{number}"))) == ["certificates_per_name_set_per_week"]
    assert len(world.orders) == 5


@pytest.mark.parametrize("keys", [["one"], ["one", "two"]], ids=["same key", "keys in turn"])
@pytest.mark.parametrize("of_the_first", [True, False], ids=["the first again", "each the one before"])
async def test_renewing_what_is_not_due_does_not_burn_the_cas_limit(keys: list[str], of_the_first: bool) -> None:
    """Attack: renew one's own, far from due, again and again for a week: no more than four certificates."""
    world = world_()
    authority = await world.started()
    first = record = await certificate(authority, issue("one"))
    turns = itertools.cycle(keys)
    for _ in range(7):
        for _ in range(10):
            replaced = first if of_the_first else record
            with contextlib.suppress(RefusalError):
                record = await certificate(authority, issue(next(turns), replaces=replaced.certificate_id))
        world.clock.advance(DAY - MINUTE)
    assert len(world.orders) <= 4


async def test_certificates_of_long_ago_are_no_store_of_due_renewals() -> None:
    """Attack: a service never says what it replaces; later each of its old certificates is renewed at once, as due."""
    world = world_()
    authority = await world.started()
    held = [await certificate(authority, issue("key-0"))]
    for number in range(1, 9):
        world.clock.advance(held[-1].renew_time - world.clock.now() + MINUTE)
        held.append(await certificate(authority, issue(f"key-{number}")))
        assert world.orders[-1].cause is OrderCause.DUE
    before = len(world.orders)
    for number, old in enumerate(held[:-1], 9):
        with contextlib.suppress(RefusalError):
            await certificate(authority, issue(f"key-{number}", replaces=old.certificate_id))
    assert {order.cause for order in world.orders[before:]} == {OrderCause.ORDINARY}
    assert len(world.orders) - before <= 2


async def test_several_lineages_of_one_profile_are_each_renewed_when_due() -> None:
    """An RSA and an EC certificate of one profile, say: each is in use, and each renewal is its own."""
    world = world_()
    authority = await world.started()
    held = [await certificate(authority, issue(f"old-{number}")) for number in range(2)]
    for turn in range(4):
        world.clock.advance(held[-1].renew_time - world.clock.now() + MINUTE)
        held = [
            await certificate(authority, issue(f"{turn}-{number}", replaces=old.certificate_id))
            for number, old in enumerate(held)
        ]
        assert [order.cause for order in world.orders[-2:]] == [OrderCause.DUE] * 2


@pytest.mark.parametrize("turn", [HOUR, 3 * DAY, 400 * DAY], ids=["an hour", "some days", "a year"])
async def test_a_clock_that_was_set_back_holds_nobody_up_for_longer_than_twice_the_window(turn: timedelta) -> None:
    """What was counted while it was ahead doesn't lie in the future for good."""
    world = world_()
    authority = await world.started()
    world.clock.advance(turn)
    await at_its_limits(world, authority)
    world.clock.advance(-turn)
    waited = timedelta()
    while waited <= 8 * DAY:
        try:
            await certificate(authority, issue("after"))
            break
        except RefusalError as error:
            wait = error.refusal.retry_after or DAY
        waited += wait
        world.clock.advance(wait)
    assert waited <= 2 * DAY


async def test_nobody_waits_past_the_time_at_which_its_certificate_is_due() -> None:
    """With a short life the week's limit ends later than that: who is refused is told the earlier of the two."""
    world = world_()
    world.ca.lifetime = 6 * DAY
    authority = await world.started()
    record = await certificate(authority, issue("mine"))
    for number in range(3):
        host = f"other{number}.test"
        world.policies.policy.grants[host] = world.policies.policy.grants[HOST]
        await certificate(authority, issue(f"other-{number}"), host)
    refusal = await refused(authority, issue("more"))
    assert names(refusal) == ["certificates_per_name_set_per_week"]
    assert refusal.retry_after == record.renew_time - world.clock.now()
    assert f"this one is due at {record.renew_time:%Y-%m-%dT%H:%M:%SZ}" in refusal.message
    world.clock.advance(refusal.retry_after)
    await certificate(authority, issue("more"))
    assert world.orders[-1].cause is OrderCause.DUE


async def test_a_short_life_is_renewed_more_often_than_the_week_allows() -> None:
    """Certificates of six days, on several hosts of the same names: each due renewal passes for a month."""
    world = world_()
    world.ca.lifetime = 6 * DAY
    authority = await world.started()
    hosts = [f"web{number}.test" for number in range(4)]
    for host in hosts:
        world.policies.policy.grants[host] = world.policies.policy.grants[HOST]
    held = {host: await certificate(authority, issue(f"{host}-0"), host) for host in hosts}
    for turn in range(1, 11):
        world.clock.advance(max(record.renew_time for record in held.values()) - world.clock.now() + MINUTE)
        for host, record in held.items():
            command = issue(f"{host}-{turn}", replaces=record.certificate_id)
            held[host] = await certificate(authority, command, host)
        assert {order.cause for order in world.orders[-4:]} == {OrderCause.DUE}


async def test_limits_may_be_as_high_as_anybody_writes_them() -> None:
    """Beyond what a database takes for a number, too."""
    world = world_()
    authority = await world.started()
    authority.take_limits(DurableLimits(**dict.fromkeys(DurableLimits.__dataclass_fields__, 10**30)))
    await certificate(authority, issue("one"))


async def test_who_is_told_of_the_names_week_is_told_what_it_counts() -> None:
    """Ten hosts of one name set: the fifth hears that they share it, and what to do where the CA allows more."""
    world = world_()
    authority = await world.started()
    await _reach_again(world, authority)
    refusal = await refused(authority, issue("one"))
    assert "exactly these names, whichever hosts have them" in refusal.message
    assert "raise it in broker.yml (0 is no limit) and reload the broker" in refusal.message


async def test_who_renews_too_early_is_told_why_and_who_may() -> None:
    """That it is far from due, which limit that is, until when, and that an operator's wish isn't held up."""
    world = world_()
    authority = await world.started()
    record = await certificate(authority, issue("one"))
    for _ in range(2):
        record = await certificate(authority, issue("one", replaces=record.certificate_id))
    refusal = await refused(authority, issue("one", replaces=record.certificate_id))
    assert refusal.reason is Reason.RATE_LIMITED
    assert refusal.retry_after == DAY
    assert "early_renewals_per_identity_profile_per_day" in names(refusal)
    assert refusal.message.startswith(
        "the certificate is far from due, and the broker's limit is reached: rate_limits."
    )
    assert "certplanectl renew" in refusal.message


async def test_hosts_of_one_name_set_share_the_cas_week() -> None:
    """Four certificates of the same names go to whoever asks; the fifth is left for what must be replaced."""
    world = world_()
    authority = await world.started()
    for number in range(5):
        world.policies.policy.grants[f"web{number}.test"] = world.policies.policy.grants[HOST]
    held = [await certificate(authority, issue(f"key-{n}"), f"web{n}.test") for n in range(4)]
    refusal = await refused(authority, issue("key-4"), "web4.test")
    assert names(refusal) == ["certificates_per_name_set_per_week"]
    await revoke_as_operator(world, held[0])
    await certificate(authority, issue("key-5", replaces=held[0].certificate_id), "web0.test")


async def test_a_limit_is_named_in_log_metric_and_audit(caplog: pytest.LogCaptureFixture) -> None:
    """With its value and its end; in the log once, however often the host asks."""
    world = world_()
    authority = await world.started()
    record = await certificate(authority, issue("one"))
    await certificate(authority, issue("two", replaces=record.certificate_id))
    with caplog.at_level(logging.WARNING, logger="certplane.broker"):
        for _ in range(3):
            refusal = await refused(authority, issue("three", replaces=record.certificate_id))
    text = "rate_limits.new_keys_per_identity_profile_per_day (at most 2 in a day)"
    assert text in refusal.message
    assert f"the next is possible at {world.clock.now() + DAY:%Y-%m-%dT%H:%M:%SZ}" in refusal.message
    assert [text in record.getMessage() for record in caplog.records] == [True]
    assert text in world.database.events[-1].reason
    assert world.meter.total(metrics.LIMITS_REACHED, limit="new_keys_per_identity_profile_per_day") == 3
