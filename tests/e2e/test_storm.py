"""Many orders at once over the running broker while CA, DNS API and DNS all misbehave: none is lost, none is doubled.

`scripts/bench orders` runs the same with two hundred.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.sandbox.pebble import PebbleOptions
from tests.support.parts import need_part
from tests.support.storm import AtCa, Storm, records_left, trouble

pytestmark = pytest.mark.e2e

ORDERS = 30
QUICK = {"issuer": {"acme": {"propagation": {"interval": "500ms"}}}}


async def test_a_storm_of_orders_over_a_bad_day(tmp_path: Path) -> None:
    """Nonces rejected, calls answered 503, slow DNS: all end ISSUED, one order and one CSR each, and no record is left."""
    need_part("pebble")
    storm = Storm(ORDERS)
    async with storm.deployed(tmp_path, pebble=PebbleOptions(nonce_rejects=20), broker=QUICK) as broker:
        broker.deployment.cloudflare.spread_time = timedelta(seconds=2)
        trouble(broker)
        ended = await storm.issue(broker, time_limit=60)
        assert Counter((one.state, one.message) for one in ended) == {("ISSUED", ""): ORDERS}

        proxy = broker.deployment.proxy
        assert proxy is not None
        refused = Counter(e.told.status for e in proxy.seen() if e.told is not None and e.told.status >= 400)
        assert refused[400], "no nonce was rejected: the day was too good"
        assert refused[503], "no call was answered 503: the day was too good"

        at_ca, log = AtCa.served(proxy), broker.deployment.pebble.log
        assert len(set(at_ca.orders)) == len(at_ca.orders) == len(log.orders) == ORDERS
        assert len(set(at_ca.finalized)) == len(at_ca.finalized) == ORDERS
        assert len(set(log.finalizations)) == len(log.finalizations) == len(log.issued) == ORDERS

        await broker.settle()
        assert await records_left(broker, storm.challenge_names) == []
        assert broker.deployment.cloudflare.records("certplane.test") == []
