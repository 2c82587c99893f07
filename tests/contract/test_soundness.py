"""`Soundness` of a database that is whole, and what a server knows of its own damage."""

from __future__ import annotations

import pytest

from tests.support.stores import StoreHarness, StorePlace

pytestmark = pytest.mark.integration


@pytest.fixture(params=["sqlite", "postgresql"])
def store_place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StorePlace:
    """Where there is something to be damaged."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    return StorePlace(request.param, tmp_path_factory.mktemp("store") / "broker.db", url)


async def test_nothing_is_damaged(store: StoreHarness) -> None:
    """Nothing is said of a database that is whole, with rows in it."""
    await store.issue()
    assert await store.stores.soundness.damage() == []


async def test_an_index_that_the_server_calls_invalid(store: StoreHarness) -> None:
    """As one is that was made beside the work and failed: a unique one holds nothing together then."""
    if store.place.kind != "postgresql":
        pytest.skip("SQLite has no such index")
    store.place.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'uq_orders_open'::regclass")
    assert await store.stores.soundness.damage() == ["the index uq_orders_open is invalid"]
