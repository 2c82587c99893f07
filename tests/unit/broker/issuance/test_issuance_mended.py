"""What was mended is tried again: a failed order answers for nothing that may be another than it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.broker.issuance.outcome import cap_pause, still_answers
from certplane.broker.model import Order, OrderDraft, OrderState
from certplane.broker.renewal.model import RenewalPlan
from certplane.errors import ProblemDocument, Reason, Refusal, RefusalError
from certplane.fleet_report.model import RenewalCause
from certplane.pki.csr import build_csr
from tests.fakes.clock import ManualClock
from tests.support.issuance import NAMES, World, caller, issue, key, settle

CASES = Path(__file__).parents[3] / "cases" / "F1"
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
NOW = ManualClock().now()
ACCOUNT = ProblemDocument("urn:ietf:params:acme:error:userActionRequired", "new terms", 403)


def der(pem: str) -> bytes:
    return x509.load_pem_x509_csr(pem.encode()).public_bytes(Encoding.DER)


def case(name: str) -> bytes:
    return der((CASES / f"{name}.csr").read_text())


def signed_again() -> bytes:
    """The same request of the same key, and another signature: ECDSA draws one each time."""
    return der(build_csr(key(), sans=NAMES))


def failed(error: Refusal, **facts: object) -> Order:
    values: dict[str, object] = {
        "identity": "web1.test",
        "profile": "shop",
        "profile_hash": "h",
        "dns_names": NAMES,
        "public_key_sha256": "k",
        "csr_der": b"",
        "issuer": "ca",
        "request_id": "r",
        "retry_epoch": "epoch-1",
        **facts,
    }
    return Order(**values, state=OrderState.FAILED, error=error, create_time=NOW, update_time=NOW)  # type: ignore[arg-type]  # fields by name


def asked(order: Order, **facts: object) -> OrderDraft:
    return replace(OrderDraft(**{name: getattr(order, name) for name in OrderDraft.__dataclass_fields__}), **facts)  # type: ignore[arg-type]  # fields by name


DNS = Refusal(Reason.DNS_REJECTED, "no such zone")
REJECTED = Refusal(Reason.ISSUER_REJECTED, "the CSR can't be read")


@pytest.mark.parametrize(
    ("error", "facts", "answers"),
    [
        pytest.param(DNS, {}, True, id="nothing has changed"),
        pytest.param(DNS, {"retry_epoch": "epoch-2"}, False, id="a secret, a limit or DNS may be mended"),
        pytest.param(DNS, {"ask_time": NOW - MINUTE}, True, id="asked for before"),
        pytest.param(DNS, {"ask_time": NOW + MINUTE}, False, id="asked for since"),
        pytest.param(Refusal(Reason.ISSUER_RATE_LIMITED, "slow down"), {"retry_epoch": "2"}, True, id="the CA limits"),
        pytest.param(
            Refusal(Reason.ISSUER_UNAVAILABLE, "maintenance", HOUR),
            {"retry_epoch": "2"},
            True,
            id="the CA's Retry-After",
        ),
        pytest.param(Refusal(Reason.DNS_UNAVAILABLE, "429", HOUR), {"retry_epoch": "2"}, True, id="the DNS API's"),
        pytest.param(Refusal(Reason.ISSUER_UNAVAILABLE, "away"), {"retry_epoch": "2"}, False, id="a guess of ours"),
        pytest.param(
            Refusal(Reason.ISSUER_REJECTED, "terms", problems=(ACCOUNT,)),
            {"retry_epoch": "2"},
            False,
            id="a person's job",
        ),
    ],
)
def test_what_a_failed_order_answers(error: Refusal, facts: dict[str, object], answers: bool) -> None:
    """The CA's time stands; a time of ours does until something may be mended, or somebody else wants it."""
    order = failed(error)
    assert still_answers(order, asked(order, **facts)) is answers


@pytest.mark.parametrize(
    ("before", "after", "answers"),
    [
        pytest.param(lambda: case("nonull-both"), lambda: case("null-both"), False, id="mended parameters"),
        pytest.param(lambda: case("nonull-spki"), lambda: case("null-both"), False, id="mended key"),
        pytest.param(lambda: case("nonull-sig"), lambda: case("null-both"), False, id="mended signature algorithm"),
        pytest.param(lambda: case("null-both"), lambda: case("null-both"), True, id="the same"),
        pytest.param(signed_again, signed_again, True, id="the same, signed again"),
        pytest.param(signed_again, lambda: der(build_csr(key(), sans=NAMES[:1])), False, id="other names"),
    ],
)
def test_a_mended_csr_of_the_same_key_is_another_request(
    before: Callable[[], bytes], after: Callable[[], bytes], answers: bool
) -> None:
    """What was asked decides, not the signature under it."""
    order = failed(REJECTED, csr_der=before())
    assert still_answers(order, asked(order, csr_der=after())) is answers


async def fail_first(world: World, error: RefusalError) -> None:
    world.solver.faults.fail("present", error)
    authority = await world.started()
    result = await authority.issue(caller(), issue())
    assert result.order.state is OrderState.FAILED
    world.clock.advance(MINUTE)
    assert (await authority.issue(caller(), issue())).order.order_id == result.order.order_id


async def test_another_epoch_has_the_same_request_tried_again() -> None:
    """As after a reload: the order that failed is an answer no more, though its time isn't over."""
    world = World()
    await fail_first(world, RefusalError(Reason.DNS_REJECTED, "wrong secret"))
    authority = world.authority()
    await authority.start()
    world.epoch.ask_again("the files were read again")
    assert (await authority.issue(caller(), issue())).order.state is OrderState.ISSUED
    await authority.drain(MINUTE)


async def test_a_restart_has_it_tried_again() -> None:
    """What a broker guessed before it was started again holds nobody up."""
    world = World()
    await fail_first(world, RefusalError(Reason.DNS_REJECTED, "wrong secret"))
    other = world.fork()
    authority = await other.started()
    assert (await authority.issue(caller(), issue())).order.state is OrderState.ISSUED


async def test_a_restart_does_not_go_round_the_cas_time() -> None:
    """A limit of the CA is durable with the order that met it."""
    world = World()
    world.issuer.faults.fail("create_order", RefusalError(Reason.ISSUER_RATE_LIMITED, "slow down", retry_after=HOUR))
    authority = await world.started()
    first = await authority.issue(caller(), issue())
    other = world.fork()
    again = await (await other.started()).issue(caller(), issue())
    assert again.order.order_id == first.order.order_id


async def test_an_operator_has_it_tried_again() -> None:
    """A renewal that an operator asks for after it has failed is a new order with the same key."""
    world = World()
    authority = await world.started()
    first = await authority.issue(caller(), issue())
    assert first.certificate is not None
    world.solver.faults.fail("present", RefusalError(Reason.DNS_REJECTED, "wrong secret"))
    renewal = issue("two", replaces=first.certificate.certificate_id)
    assert (await authority.issue(caller(), renewal)).order.state is OrderState.FAILED
    world.clock.advance(MINUTE)
    assert (await authority.issue(caller(), renewal)).order.state is OrderState.FAILED
    plan = RenewalPlan(first.certificate.certificate_id, "web1.test", world.clock.now(), RenewalCause.OPERATOR)
    await world.plans.set_plans([plan])
    assert (await authority.issue(caller(), renewal)).order.state is OrderState.ISSUED


async def test_an_account_that_was_mended_is_asked_again_at_once() -> None:
    """What the CA wanted of a person holds up everybody for a while of our guess, and no longer than the epoch."""
    world = World()
    terms = RefusalError(Reason.ISSUER_REJECTED, "new terms", problems=[ACCOUNT])
    world.issuer.faults.fail("create_order", terms)
    authority = await world.started()
    assert (await authority.issue(caller(), issue())).order.state is OrderState.FAILED
    calls = world.issuer.faults.count("create_order")
    assert (await authority.issue(caller(), issue("two"))).order.state is OrderState.FAILED
    assert world.issuer.faults.count("create_order") == calls
    world.epoch.ask_again("the files were read again")
    assert (await authority.issue(caller(), issue("two"))).order.state is OrderState.ISSUED


@pytest.mark.parametrize(
    ("left", "capped"),
    [
        pytest.param(None, 15 * MINUTE, id="no certificate"),
        pytest.param(90 * 24 * HOUR, 15 * MINUTE, id="long"),
        pytest.param(6 * MINUTE, 3 * MINUTE, id="half of it"),
        pytest.param(MINUTE, MINUTE, id="never less than a minute"),
        pytest.param(-HOUR, MINUTE, id="ended"),
    ],
)
def test_a_wait_is_at_most_half_of_the_life_that_is_left(left: timedelta | None, capped: timedelta) -> None:
    """A guess of ours doesn't let a certificate end."""
    assert cap_pause(15 * MINUTE, left) == capped


@pytest.mark.parametrize(
    ("told", "wait"), [(None, timedelta(minutes=2)), (HOUR, HOUR)], ids=["a guess", "the CA's time"]
)
async def test_a_failed_renewals_retry_time_minds_the_life_that_is_left(
    told: timedelta | None, wait: timedelta
) -> None:
    """Four minutes before the end the next try is in two; what the CA named stands."""
    world = World()
    authority = await world.started()
    first = await authority.issue(caller(), issue())
    assert first.certificate is not None
    world.clock.advance(first.certificate.not_after - world.clock.now() - 4 * MINUTE)
    world.solver.faults.fail("present", RefusalError(Reason.DNS_REJECTED, "wrong secret", retry_after=None))
    if told is not None:
        world.issuer.faults.fail("create_order", RefusalError(Reason.ISSUER_RATE_LIMITED, "slow", retry_after=told))
    result = await authority.issue(caller(), issue("two", replaces=first.certificate.certificate_id))
    await settle()
    assert result.order.retry_time == world.clock.now() + wait
