"""Both programs through many renewals of certificates that live for seconds: steady, killed at random, in an incident.

`scripts/soak MINUTES` takes that long, with longer lives, and shows what it measures; `CERTPLANE_SOAK_SEED` chooses the
moments of the kills.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from certplane.sandbox.parts import PEBBLE_SET_RENEWAL_INFO
from tests.support.parts import need_part
from tests.support.soak import CALM, SHORT_LIVED, Figures, Soak, soak
from tests.support.waiting import until

MINUTES = float(os.environ.get("CERTPLANE_SOAK_MINUTES", "0"))
SEED = int(os.environ.get("CERTPLANE_SOAK_SEED", "7"))
LONG = MINUTES > 0
LIFE = timedelta(seconds=45 if LONG else 20)
IDENTITY_LIFE = timedelta(minutes=4 if LONG else 2)
RENEWALS = 15
KEPT_VERSIONS = 5
MEGABYTE = 1 << 20
INCIDENT = "https://ca.example/incident-7"

_FIGURES = logging.getLogger("soak")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(MINUTES * 60 + 240),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Soak]:
    if not need_part("pebble").can(PEBBLE_SET_RENEWAL_INFO):
        pytest.skip("this Pebble has neither profiles nor a renewal-info control")
    nginx = need_part("nginx")
    async with soak(tmp_path_factory.mktemp("soak"), nginx, life=LIFE, identity_life=IDENTITY_LIFE) as made:
        yield made


async def test_many_renewals_and_nothing_drifts(world: Soak) -> None:
    """Each certificate is reported, installed, loaded and seen served, has a key of its own, and leaves nothing behind."""
    await world.settle()
    before = len(world.issued())
    if LONG:
        figures = await world.run(timedelta(minutes=MINUTES / 2), sample=timedelta(seconds=5))
    else:
        figures = [world.figures()]
        await until(lambda: len(world.issued()) >= before + RENEWALS, poll=0.5, what="so many renewals")
    await world.settle()
    figures.append(world.figures())
    await world.assert_served_and_paired()
    await world.assert_one_order_a_key()

    made = world.issued()[before:]
    in_flight = set(made[-2 * len(SHORT_LIVED) :])  # made while this was looked at
    served = await world.reported("serving")
    loaded = {name: world.reloads(name).read_text().split() for name in SHORT_LIVED}
    told = Counter(serial for serials in served.values() for serial in serials)
    assert set(made) - in_flight <= set(told), "not every certificate was reported as served"
    assert all(told[serial] == 1 for serial in set(made) - in_flight), "a report was doubled"
    assert set(made) - in_flight <= {serial for serials in loaded.values() for serial in serials}
    assert all(len(set(loaded[name])) > 1 for name in SHORT_LIVED)
    assert_steady(figures)


def assert_steady(figures: list[Figures]) -> None:
    """Nothing grows with the number of renewals. The first quarter is for what is made once, at first use."""
    early, late = figures[len(figures) // 4], figures[-1]
    _FIGURES.info("%s", early)
    _FIGURES.info("%s", late)
    for program in ("broker", "agent"):
        first, last = getattr(early, program), getattr(late, program)
        assert last.descriptors - first.descriptors <= 12, program
        assert last.threads - first.threads <= 12, program
        assert last.resident - first.resident < 12 * MEGABYTE, program
    assert late.versions <= KEPT_VERSIONS + 1  # one may be on its way
    assert late.spooled <= len(SHORT_LIVED) + 3  # the other certificate's, the identity's, and the counting


async def test_killed_at_random_moments(world: Soak) -> None:
    """In the end everything served is valid and pairs, each key had one order, no record is left, no report is lost."""
    await world.settle()
    rng = random.Random(SEED)
    span, pause = (timedelta(minutes=MINUTES / 2), (2.0, 12.0)) if LONG else (timedelta(seconds=16), (0.5, 4.0))
    killed = await world.run_killing(span, rng, pause=pause)
    _FIGURES.info("killed: %s, certificates: %d", dict(killed), len(world.issued()))
    assert set(killed) == {"agent", "broker"}
    await world.settle()
    await world.assert_served_and_paired()
    await world.assert_nothing_is_left()
    await world.assert_one_order_a_key()


async def test_an_incident_at_the_ca_renews_within_seconds(world: Soak) -> None:
    """A window that is past reaches the running agent through its stream; both sides say why, with the CA's URL."""
    await world.settle()
    before = (await world.status())[CALM]
    await world.deployment.stop_broker()
    await world.incident(CALM, INCIDENT)
    await world.deployment.start_broker()

    told = f"the CA asks for it now: {INCIDENT}"

    async def shown() -> bool:
        status, known = await asyncio.gather(world.status(), world.known())
        return told == status[CALM]["renew_reason"] and told == known[CALM]["renewReason"]

    # The records take their time to be seen, so that there is a while in which the reason can be read.
    cloudflare = world.deployment.cloudflare
    cloudflare.spread_time = timedelta(minutes=10)
    await until(shown, poll=0.1, what="the reason, here and there,")
    cloudflare.spread_time = timedelta()
    await cloudflare.spread(hurry=True)
    await until(lambda: _is_replaced(world, before), poll=0.5, what="the renewal")
    await world.settle()
    assert told in world.agent.log_text()


async def test_a_revoked_certificate_is_replaced_within_seconds(world: Soak) -> None:
    """Revoked by a command beside the broker, it is replaced by the running agent, which says why."""
    await world.settle()
    before = (await world.status())[CALM]
    revoked = await world.deployment.run_broker("certs", "revoke", before["certificate_id"])
    assert revoked.status == 0, revoked.stderr
    await until(lambda: _is_replaced(world, before), poll=0.5, what="the renewal")
    await world.settle()
    await world.assert_served_and_paired()
    assert f"{CALM}: requesting a certificate: it was revoked" in world.agent.log_text()


async def _is_replaced(world: Soak, before: dict[str, Any]) -> bool:
    return bool((await world.status())[CALM]["certificate_id"] != before["certificate_id"])
