"""What public CAs do to their clients, row by row of the fault table: the real issuer and execution behind the proxy.

Whatever happens, no order is finalised twice, nobody is asked sooner than the CA said, and the agent is told why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.broker.events import AuditSeverity
from certplane.broker.issuers.acme_connection import LARGEST_BODY
from certplane.broker.model import OrderState, Profile
from certplane.errors import ProblemDocument, Reason, RefusalError
from certplane.pki.csr import parse_csr
from certplane.runtime.backoff import Backoff
from certplane.sandbox import faults
from certplane.sandbox.acme_endpoints import (
    AUTHORIZATION,
    CERTIFICATE,
    CHALLENGE,
    DIRECTORY,
    FINALIZE,
    NEW_ACCOUNT,
    NEW_NONCE,
    NEW_ORDER,
    ORDER,
    OTHER,
)
from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.exchange import Reply
from certplane.sandbox.fault_proxy import Action, Call
from certplane.sandbox.pebble import Pebble, PebbleOptions
from certplane.sandbox.ports import DnsServer
from tests.support.moods import SETTINGS, Moody, moody, told
from tests.support.parts import need_part
from tests.support.waiting import HANG

pytestmark = [pytest.mark.integration]

ENDPOINTS = (DIRECTORY, NEW_NONCE, NEW_ACCOUNT, NEW_ORDER, ORDER, AUTHORIZATION, CHALLENGE, FINALIZE, CERTIFICATE)
URN = "urn:ietf:params:acme:error:"
HOUR = timedelta(hours=1)


@pytest_asyncio.fixture
async def world(tmp_path: Path, trusting_pebble: Pebble) -> AsyncIterator[Moody]:
    async with moody(tmp_path, trusting_pebble) as world:
        yield world


async def at_every_endpoint(
    folder: Path, pebble: Pebble, own_name: str, action: Callable[[], Action]
) -> dict[str, tuple[str, tuple[int, int], Moody]]:
    """One order for each kind of endpoint whose first answer is `action`'s: how it ended, and what the CA saw."""
    async with AsyncExitStack() as stack:
        worlds = {}
        for kind in ENDPOINTS:
            worlds[kind] = await stack.enter_async_context(moody(folder / kind, pebble))
            worlds[kind].proxy.add(action(), kind)
        orders = await asyncio.gather(*(world.issue(f"{kind.lower()}.{own_name}") for kind, world in worlds.items()))
        return {
            kind: (order.state.value, world.at_ca, world)
            for (kind, world), order in zip(worlds.items(), orders, strict=True)
        }


def waited(world: Moody, kind: str) -> float:
    """Seconds between the first two requests of a kind."""
    first, second, *_ = world.proxy.seen(kind)
    return second.at - first.at


# Row 1


async def test_row_1_bad_nonces_are_tried_five_times_then_waited_out(
    world: Moody, own_name: str, tmp_path: Path
) -> None:
    """A storm of badNonce costs at most five requests in a row, then a pause; the order comes out all the same."""
    world.proxy.add(faults.bad_nonce(), NEW_ORDER, times=7)
    world.proxy.add(faults.bad_nonce(), FINALIZE, times=6)
    order = await world.issue(own_name)
    assert order.state is OrderState.ISSUED
    assert (world.proxy.count(NEW_ORDER), world.proxy.count(FINALIZE)) == (8, 7)
    assert world.at_ca == (1, 1)
    patient = Backoff(HOUR, HOUR, floor=HOUR)
    async with moody(tmp_path / "patient", world.pebble, repeat_waits=patient) as waiting:
        waiting.proxy.add(faults.bad_nonce(), NEW_ORDER, times=None)
        csr_der = parse_csr(waiting.request(own_name).csr_pem).der
        with pytest.raises(RefusalError) as caught:
            await waiting.issuer.create_order(csr_der, Profile("p", "mixed", (own_name,), "h"), timedelta(seconds=20))
        assert caught.value.refusal.reason is Reason.ISSUER_UNAVAILABLE
        assert waiting.proxy.count(NEW_ORDER) == 5


async def test_rows_1_and_3_a_bad_day(world: Moody, own_name: str) -> None:
    """Every fifth nonce refused and every twentieth call answered 503: orders in parallel all end, none doubled."""
    world.proxy.add(faults.bad_nonce(), *set(ENDPOINTS) - {DIRECTORY, NEW_NONCE}, times=None, probability=0.2)
    world.proxy.add(faults.answer(503, b"busy", "text/plain"), times=None, probability=0.05)
    orders = await asyncio.gather(*(world.issue(f"n{n}.{own_name}", host=f"h{n}.test") for n in range(24)))
    assert {order.state for order in orders} == {OrderState.ISSUED}
    assert world.at_ca == (24, 24)
    await world.until_tidy()


# Replicas that lag


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("kind", ["malformed", "unauthorized", "about:blank"])
async def test_a_404_on_what_the_ca_has_named_passes(
    tmp_path: Path, trusting_pebble: Pebble, own_name: str, kind: str, times: int
) -> None:
    """Whatever the CA named and doesn't know for a moment is asked for again; one order, one CSR, one certificate."""
    named = (ORDER, AUTHORIZATION, CHALLENGE, FINALIZE, CERTIFICATE)
    async with AsyncExitStack() as stack:
        worlds = {}
        for where in named:
            worlds[where] = await stack.enter_async_context(moody(tmp_path / where, trusting_pebble))
            worlds[where].proxy.add(faults.problem(kind, "No such thing for this ID", status=404), where, times=times)
        orders = await asyncio.gather(*(world.issue(f"{where.lower()}.{own_name}") for where, world in worlds.items()))
        ended = {
            where: (order.state, world.at_ca) for (where, world), order in zip(worlds.items(), orders, strict=True)
        }
    assert ended == dict.fromkeys(named, (OrderState.ISSUED, (1, 1)))


async def test_order_that_the_ca_has_lost(world: Moody, own_name: str) -> None:
    """An order that stays unknown is given up after a while, and another one made."""
    world.proxy.add(faults.problem("malformed", "No such order", status=404), AUTHORIZATION, times=None)
    order = await world.issue(own_name, wait=40)
    assert order.state is OrderState.FAILED
    assert order.error is not None
    assert "has not known it for 5 s" in order.error.message


# Row 2


async def test_row_2_a_429_on_every_endpoint_is_waited_out(
    tmp_path: Path, trusting_pebble: Pebble, own_name: str
) -> None:
    """Retry-After in seconds is honoured wherever it comes from, and the order goes on."""

    def limited() -> Action:
        return faults.problem("rateLimited", "slow down", status=429, retry_after=timedelta(seconds=1))

    ended = await at_every_endpoint(tmp_path, trusting_pebble, own_name, limited)
    assert {kind: found[:2] for kind, found in ended.items()} == dict.fromkeys(ENDPOINTS, ("ISSUED", (1, 1)))
    assert {kind for kind, (_, _, world) in ended.items() if waited(world, kind) < 1} == set()


@pytest.mark.parametrize(
    ("detail", "scope", "blocked"),
    [
        pytest.param(
            "too many new orders (300) from this account in the last 3h0m0s",
            "account",
            {"same": True, "sibling": True, "other": True},
            id="the account",
        ),
        pytest.param(
            'too many certificates (50) already issued for "{domain}" in the last 168h0m0s',
            "domain:{domain}",
            {"same": True, "sibling": True, "other": False},
            id="a registered domain",
        ),
        pytest.param(
            'too many failed authorizations (5) for "{name}" in the last 1h0m0s',
            "name:{name}",
            {"same": True, "sibling": False, "other": False},
            id="a name",
        ),
        pytest.param(
            "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s",
            "name_set",
            {"same": True, "sibling": False, "other": False},
            id="the exact set of names",
        ),
        pytest.param("no", "name_set", {"same": True, "sibling": False, "other": False}, id="who knows"),
    ],
)
async def test_row_2_a_limit_blocks_its_scope_only(
    world: Moody, own_name: str, detail: str, scope: str, blocked: dict[str, bool]
) -> None:
    """Orders under the limit fail with its end as their retry time, without asking; all others are issued."""
    name = f"www.{own_name}"
    said = detail.format(domain=own_name, name=name)
    end = datetime.now(UTC) + HOUR
    world.proxy.add(faults.problem("rateLimited", said, status=429, retry_after=end), NEW_ORDER)

    first = await world.issue(name)
    assert first.state is OrderState.FAILED
    refusal = told(first)
    assert (refusal.reason, refusal.problems[0].type) == (Reason.ISSUER_RATE_LIMITED, f"{URN}rateLimited")
    assert (refusal.problems[0].detail, refusal.problems[0].status) == (said, 429)
    assert [violation.subject for violation in refusal.violations] == [scope.format(domain=own_name, name=name)]
    assert refusal.retry_after is not None
    assert first.retry_time is not None
    assert abs(first.retry_time - end) < timedelta(seconds=HANG)

    asked = {"same": (name,), "sibling": (f"mail.{own_name}",), "other": (f"other-{own_name}",)}
    orders = {which: await world.issue(*names, host="web2.test") for which, names in asked.items()}
    assert {which: order.state is OrderState.FAILED for which, order in orders.items()} == blocked
    waiting = [order for order in orders.values() if order.state is OrderState.FAILED]
    assert all(
        order.retry_time is not None and abs(order.retry_time - end) < timedelta(seconds=HANG) for order in waiting
    )
    assert {told(order).problems[0].detail for order in waiting} == {said}
    assert world.proxy.count(NEW_ORDER) == 1 + list(blocked.values()).count(False)


# Row 3


@pytest.mark.parametrize(
    "action",
    [
        pytest.param(lambda: faults.problem("serverInternal", status=500), id="500"),
        pytest.param(lambda: faults.answer(503, b"busy", "text/plain"), id="503"),
        pytest.param(faults.html, id="a page of HTML"),
        pytest.param(lambda: faults.html(200), id="a page of HTML with status 200"),
        pytest.param(lambda: faults.answer(200, b"{" * 5000), id="nonsense"),
        pytest.param(faults.cut, id="the connection cut"),
    ],
)
async def test_row_3_a_ca_that_stumbles(
    tmp_path: Path, trusting_pebble: Pebble, own_name: str, action: Callable[[], Action]
) -> None:
    """One such answer at any endpoint costs a repeat: the order is issued, by one order and one CSR at the CA."""
    ended = await at_every_endpoint(tmp_path, trusting_pebble, own_name, action)
    assert {kind: found[:2] for kind, found in ended.items()} == dict.fromkeys(ENDPOINTS, ("ISSUED", (1, 1)))


async def test_row_3_a_503_says_when_to_come_back(world: Moody, own_name: str) -> None:
    """Retry-After of a CA that is too busy is honoured, too."""
    world.proxy.add(faults.answer(503, b"", headers=(("Retry-After", "1"),)), NEW_ORDER)
    assert (await world.issue(own_name)).state is OrderState.ISSUED
    assert waited(world, NEW_ORDER) >= 1


async def test_redirects_are_not_followed(tmp_path: Path, trusting_pebble: Pebble, own_name: str) -> None:
    """A redirect at any endpoint, to the CA's own host, is a CA that stumbles; where it points to is not asked."""
    ended = await at_every_endpoint(tmp_path, trusting_pebble, own_name, lambda: faults.redirect("/elsewhere"))
    assert {kind: found[:2] for kind, found in ended.items()} == dict.fromkeys(ENDPOINTS, ("ISSUED", (1, 1)))
    assert {kind: world.proxy.count(OTHER) for kind, (_, _, world) in ended.items()} == dict.fromkeys(ENDPOINTS, 0)


async def test_oversized_bodies_are_not_read(tmp_path: Path, trusting_pebble: Pebble, own_name: str) -> None:
    """A body beyond the cap is no answer, good JSON or not: what it was the answer to is looked for."""
    ended = await at_every_endpoint(
        tmp_path, trusting_pebble, own_name, lambda: faults.oversized(LARGEST_BODY + 1_000_000)
    )
    # HEAD has no body; newOrder and finalize had their effect: the one leaves an order behind, the other never two CSRs.
    expected = dict.fromkeys(ENDPOINTS, ("ISSUED", (1, 1))) | {NEW_ORDER: ("ISSUED", (2, 1))}
    assert {kind: found[:2] for kind, found in ended.items()} == expected


# Rows 4 and 5


async def test_row_4_an_order_whose_answer_was_lost_is_adopted(world: Moody, own_name: str) -> None:
    """The CA made the order, its answer was lost: asked again it hands back the same one, as Boulder does."""
    reuse = faults.PendingOrderReuse()
    world.proxy.add(faults.swallowed(), NEW_ORDER)
    world.proxy.add(reuse, NEW_ORDER, ORDER, times=None)
    order = await world.issue(own_name)
    assert order.state is OrderState.ISSUED
    assert (world.at_ca, reuse.reused) == ((1, 1), 1)


async def test_row_4_a_lost_new_order_elsewhere_is_asked_for_again(world: Moody, own_name: str) -> None:
    """A CA that makes a second order, as Pebble does, has one that nobody finishes, and one CSR."""
    world.proxy.add(faults.swallowed(), NEW_ORDER)
    order = await world.issue(own_name)
    assert order.state is OrderState.ISSUED
    assert world.at_ca == (2, 1)


@pytest.mark.parametrize("times", [1, 2])
async def test_row_5_a_lost_finalisation_is_never_sent_again(
    tmp_path: Path, trusting_pebble: Pebble, own_name: str, times: int
) -> None:
    """The CA took the CSR and its answer never came: its order is looked at, and the certificate fetched."""
    settings = replace(SETTINGS, call_timeout=timedelta(seconds=2.5))
    async with moody(tmp_path, trusting_pebble, settings=settings) as world:
        hold = timedelta(seconds=4) if times == 1 else timedelta()
        world.proxy.add(faults.swallowed(hold), FINALIZE, times=None)
        world.proxy.add(faults.cut(), ORDER, skip=2, times=times - 1)
        order = await world.issue(own_name)
        assert order.state is OrderState.ISSUED
        assert (world.at_ca, world.proxy.count(FINALIZE)) == ((1, 1), 1)


# Row 6


async def test_row_6_an_order_that_turned_invalid(world: Moody, own_name: str) -> None:
    """The order fails with the CA's problem and its subproblems, and rests; asking again asks nobody."""
    subproblems = [
        {"type": f"{URN}dns", "detail": "SERVFAIL", "identifier": {"type": "dns", "value": own_name}},
        {"type": f"{URN}caa", "detail": "forbidden", "identifier": {"type": "dns", "value": f"www.{own_name}"}},
    ]
    error = {"type": f"{URN}unauthorized", "detail": "no\x1b[31m", "status": 403, "subproblems": subproblems}
    world.proxy.add(faults.with_status("invalid", error=error), ORDER, times=None)
    command = world.request(own_name, f"www.{own_name}")
    order = await world.ask(command)
    assert order.state is OrderState.FAILED
    refusal = told(order)
    assert refusal.reason is Reason.ISSUER_REJECTED
    assert refusal.problems[:3] == (
        ProblemDocument(f"{URN}unauthorized", "no[31m", 403),
        ProblemDocument(f"{URN}dns", "SERVFAIL", None, own_name),
        ProblemDocument(f"{URN}caa", "forbidden", None, f"www.{own_name}"),
    )
    before = world.proxy.count()
    again = await world.ask(command)
    assert (again.order_id, world.proxy.count(), world.at_ca[1]) == (order.order_id, before, 0)


async def test_row_6_an_invalid_authorization_tells_why(world: Moody, own_name: str) -> None:
    """Where the order itself has no problem, that of its authorization is told, with its name."""

    def failed(body: dict[str, object]) -> dict[str, object]:
        error = {"type": f"{URN}unauthorized", "detail": "Incorrect TXT record found", "status": 403}
        return {
            **body,
            "status": "invalid",
            "challenges": [{"type": "dns-01", "url": "x", "token": "y" * 43, "error": error}],
        }

    world.proxy.add(faults.with_status("invalid"), ORDER, times=None)
    world.proxy.add(faults.altered(failed), AUTHORIZATION, skip=1, times=None)
    refusal = told(await world.issue(own_name))
    assert refusal.problems == (ProblemDocument(f"{URN}unauthorized", "Incorrect TXT record found", 403, own_name),)


# Row 7


async def test_row_7_order_not_ready(world: Moody, own_name: str) -> None:
    """A replica that lags says orderNotReady: the order's status decides, and the CSR is sent once it is ready."""
    world.proxy.add(faults.problem("orderNotReady", status=403), FINALIZE, times=2)
    order = await world.issue(own_name)
    assert order.state is OrderState.ISSUED
    assert (world.at_ca, world.proxy.count(FINALIZE)) == ((1, 1), 3)


async def test_row_7_processing_is_polled_as_the_ca_says(world: Moody, own_name: str) -> None:
    """An order that is processing is looked at again, no sooner than Retry-After, until it is valid."""
    slow = faults.with_status("processing", certificate=None)
    world.proxy.add(slow, FINALIZE)
    world.proxy.add(
        lambda call: call.forward().with_header("Retry-After", "1"), ORDER, when=lambda _: bool(world.at_ca[1])
    )
    world.proxy.add(slow, ORDER, times=2, when=lambda _: bool(world.at_ca[1]))
    order = await world.issue(own_name)
    assert order.state is OrderState.ISSUED
    looks = [seen.at for seen in world.proxy.seen(ORDER) if seen.at > world.proxy.seen(FINALIZE)[0].at]
    assert looks[1] - looks[0] >= 1
    assert world.at_ca == (1, 1)


async def test_row_7_stuck_in_processing_holds_up_nobody(
    tmp_path: Path, trusting_pebble: Pebble, own_name: str
) -> None:
    """An order that the CA doesn't end stays open beyond its time; others go on; it ends as the CA ends it."""
    settings = replace(
        SETTINGS, call_timeout=timedelta(seconds=1.5), order_time_limit=timedelta(seconds=3), parallel_orders=1
    )
    async with moody(tmp_path, trusting_pebble, settings=settings) as world:
        stuck = faults.with_status("processing", certificate=None)
        world.proxy.add(stuck, FINALIZE, ORDER, times=None, when=lambda _: bool(world.at_ca[1]))
        order = await world.issue(own_name, wait=4)
        assert order.state is OrderState.FINALIZING
        world.proxy.clear()
        world.proxy.add(
            stuck, ORDER, times=None, when=lambda seen: seen.path == order.acme_order_url.partition("/my")[2]
        )
        assert (await world.issue(f"www.{own_name}")).state is OrderState.ISSUED
        await world.until(order, OrderState.ISSUED)
        assert world.at_ca == (2, 2)


# Row 8


async def test_row_8_a_chain_for_another_key(world: Moody, own_name: str) -> None:
    """What isn't for the CSR's key and names is not handed out: the key is spent, and an alarm is in the audit log."""
    foreign = CertificateAuthority.root("Elsewhere").intermediate("Elsewhere Intermediate").issue("x", [own_name])
    world.proxy.add(faults.replaced_body(foreign.chain_pem), CERTIFICATE)
    command = world.request(own_name)
    order = await world.ask(command)
    assert (order.state, told(order).reason) == (OrderState.FAILED, Reason.ISSUER_REJECTED)
    failed = [event for event in world.database.events if event.event_type.value == "certificate_issue_failed"]
    assert [event.severity for event in failed] == [AuditSeverity.ERROR]
    assert world.database.keys[order.public_key_sha256].blocked
    assert world.at_ca == (1, 1)


@pytest.mark.parametrize("times", [2, 40])
async def test_row_8_a_chain_that_leads_nowhere(world: Moody, own_name: str, times: int) -> None:
    """Its certificate is fetched again, by the same order, and is the only one; who waits is told why."""
    stranger = CertificateAuthority.root("Elsewhere").intermediate("Elsewhere Intermediate").issue("x", ["x.test"])
    issuers = stranger.chain_pem[stranger.chain_pem.index(b"-----BEGIN", 1) :]

    def with_another_issuer(call: Call) -> Reply:
        reply = call.forward()
        leaf = reply.body.partition(b"-----END CERTIFICATE-----\n")
        return Reply(reply.status, reply.headers, leaf[0] + leaf[1] + issuers)

    world.proxy.add(with_another_issuer, CERTIFICATE, times=times)
    command = world.request(own_name)
    order = await world.ask(command, wait=1 if times > 9 else 20)
    if times > 9:
        assert (order.state, order.error) == (OrderState.FINALIZING, None)
        assert "its answer can't be used" in order.trouble
        world.proxy.clear()
        order = await world.ask(command)
    assert order.state is OrderState.ISSUED
    assert world.at_ca == (1, 1)


# Orders and authorizations that are handed back


async def test_a_pending_order_handed_back_for_another_key(world: Moody, own_name: str) -> None:
    """Two hosts of the same names behind a CA that hands pending orders back: two certificates, each of its key."""
    reuse = faults.PendingOrderReuse()
    world.proxy.add(reuse, NEW_ORDER, ORDER, times=None)
    # Given up before it was finalised, so that the CA has a pending order when the others ask.
    world.proxy.add(faults.problem("rateLimited", status=429, retry_after=HOUR), AUTHORIZATION)
    given_up = await world.issue(own_name)
    assert given_up.state is OrderState.FAILED
    world.authority._dispatcher.holds._holds.clear()  # the hour is over

    orders = await asyncio.gather(*(world.issue(own_name, host=f"web{number}.test") for number in (2, 3)))
    assert [order.state for order in orders] == [OrderState.ISSUED, OrderState.ISSUED]
    assert reuse.reused == 1
    urls = {order.acme_order_url for order in orders}
    assert (len(urls), given_up.acme_order_url in urls) == (2, True)
    assert world.at_ca == (2, 2)


async def test_authorizations_that_are_still_valid(tmp_path: Path, dns_server: DnsServer, own_name: str) -> None:
    """A CA that reuses authorizations gets no second answer to a challenge, and no record is written for it."""
    options = PebbleOptions(always_valid=True, authorization_reuse=100)
    async with (
        Pebble(tmp_path / "pebble", dns_server.endpoint.host_port, options, part=need_part("pebble")) as pebble,
        moody(tmp_path / "world", pebble) as world,
    ):
        await world.issue(own_name)
        written = world.dns.written
        order = await world.issue(own_name, f"www.{own_name}", host="web2.test")
        assert order.state is OrderState.ISSUED
        assert world.proxy.count(CHALLENGE) == 2
        assert world.dns.written - written == 1


# What only a person can do


async def test_new_terms_of_service_are_a_persons_job(
    world: Moody, own_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The problem userActionRequired names the page in error, log and audit; the whole account waits, once is asked."""
    page = "https://ca.test/agreement/2027"
    required = faults.problem("userActionRequired", "Terms of service have changed", status=403, instance=page)
    world.proxy.add(required, NEW_ORDER, times=None)
    with caplog.at_level(logging.ERROR, "certplane.broker.issuance"):
        order = await world.issue(own_name)
        other = await world.issue(f"other-{own_name}", host="web2.test")
    assert (order.state, other.state) == (OrderState.FAILED, OrderState.FAILED)
    for ended in (order, other):
        refusal = told(ended)
        assert (refusal.reason, refusal.problems[0].type) == (Reason.ISSUER_REJECTED, f"{URN}userActionRequired")
        assert page in refusal.message
    assert page in caplog.text
    failed = [event for event in world.database.events if event.event_type.value == "certificate_issue_failed"]
    assert all(page in event.reason and event.severity is AuditSeverity.ERROR for event in failed)
    assert world.proxy.count(NEW_ORDER) == 1
