"""The store that growth is measured on is one that the broker could have made: whole, of this schema, with what it says."""

from __future__ import annotations

import asyncio
import importlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certplane.broker.renewal.model import Selection
from tests.fakes.clock import ManualClock
from tests.support.stores import StorePlace

_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


async def test_a_filled_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker opens it, finds it sound, and answers for each host from its newest certificate."""
    monkeypatch.syspath_prepend(str(_SCRIPTS))
    growth_fill = importlib.import_module("benchmarks.growth_fill")
    place = StorePlace("sqlite", tmp_path / "growth.db")
    size = growth_fill.Size().scaled(20)
    assert str(size) == "20-80-200-400"
    await asyncio.to_thread(growth_fill.fill_sqlite, place.path, size)
    tables = ("orders", "certificates", "keys", "audit_events", "renewal_plans", "identities", "host_streams")  # fmt: skip
    counts = {table: place.query(f"SELECT count(*) FROM {table}")[0][0] for table in tables}  # noqa: S608 - ours
    assert counts == {
        "orders": 200, "certificates": 80, "keys": 200, "audit_events": 400, "renewal_plans": 20, "identities": 20,
        "host_streams": 20,
    }  # fmt: skip
    async with place.open(ManualClock()) as stores:
        assert await stores.soundness.damage() == []
        host, profile = growth_fill.host_name(7), growth_fill.profile_of(7)
        newest = await stores.certificates.find_cached(
            host, growth_fill.sha256(profile), "acme", growth_fill.key_of(7, 3)
        )
        assert newest is not None
        assert newest.dns_names == growth_fill.names_of(7)
        assert stores.identities.known(host).active.source_ip == "10.0.0.7"
        chosen = await stores.renewal_plans.select(Selection(hosts=(host,)), datetime.now(UTC))
        assert [one.certificate_id for one in chosen] == [newest.certificate_id]
        assert (await stores.fleet.get_host(host)).certificates[0].name == "web"
