"""Secrets that change while something waits for them."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta

import pytest

from certplane.broker.ports import KeepsSecrets
from certplane.broker.secrets.watch import WatchedSecrets, watched
from certplane.errors import RefusalError
from tests.fakes.clock import ManualClock
from tests.fakes.secrets import FakeSecretSource


class KeepingSource(FakeSecretSource):
    """Keeps what it has read until it is told to forget."""

    def __init__(self, secrets: dict[str, str]) -> None:
        super().__init__(secrets)
        self.kept: dict[str, str] = {}
        self.generation = 0

    async def read(self, name: str) -> str:
        if name not in self.kept:
            self.kept[name] = await super().read(name)
        return self.kept[name]

    def forget(self, _generation: int) -> bool:
        self.kept.clear()
        self.generation += 1
        return True


@pytest.fixture(params=[FakeSecretSource, KeepingSource])
def source(request: pytest.FixtureRequest) -> FakeSecretSource:
    made: FakeSecretSource = request.param({"token": "wrong", "other": "x"})
    return made


@pytest.fixture
def changed() -> list[str]:
    return []


@pytest.fixture
def secrets(source: FakeSecretSource, changed: list[str]) -> WatchedSecrets:
    return watched(source, changed.append)


async def look(secrets: WatchedSecrets, *, in_trouble: bool) -> None:
    clock = ManualClock()
    task = asyncio.create_task(secrets.watch(clock, lambda: in_trouble))
    await asyncio.sleep(0)
    clock.advance(timedelta(seconds=15))
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_secret_that_was_mended_is_noticed(
    secrets: WatchedSecrets, source: FakeSecretSource, changed: list[str]
) -> None:
    """Nobody reads it meanwhile; what stayed is no news, and neither is what was never read."""
    assert await secrets.read("token") == "wrong"
    source.secrets |= {"token": "right", "other": "y"}
    await look(secrets, in_trouble=True)
    assert changed == ["token"]
    await look(secrets, in_trouble=True)
    assert changed == ["token"]
    assert await secrets.read("token") == "right"


async def test_a_secret_that_was_missing_is_noticed_when_it_comes(
    secrets: WatchedSecrets, source: FakeSecretSource, changed: list[str]
) -> None:
    """And one that goes is not: who needs it says so."""
    with pytest.raises(RefusalError):
        await secrets.read("new")
    source.secrets["new"] = "there"
    await look(secrets, in_trouble=True)
    assert changed == ["new"]
    del source.secrets["new"]
    await look(secrets, in_trouble=True)
    assert changed == ["new"]


async def test_while_all_is_well_nothing_is_read(
    secrets: WatchedSecrets, source: FakeSecretSource, changed: list[str]
) -> None:
    """No vault is asked every quarter of a minute for what nobody waits for."""
    await secrets.read("token")
    source.secrets["token"] = "right"
    reads = source.faults.count("read")
    await look(secrets, in_trouble=False)
    assert (source.faults.count("read"), changed) == (reads, [])


async def test_it_keeps_secrets_where_its_source_does(secrets: WatchedSecrets, source: FakeSecretSource) -> None:
    """So that who was refused with a kept one may have it forgotten."""
    assert isinstance(secrets, KeepsSecrets) is isinstance(source, KeepsSecrets)
    if isinstance(secrets, KeepsSecrets):
        await secrets.read("token")  # type: ignore[attr-defined]  # it is both
        assert secrets.forget(secrets.generation)
        assert secrets.generation == 1


async def test_no_secret_is_kept_a_second_time(secrets: WatchedSecrets) -> None:
    """What is remembered is a hash with a key of this process."""
    await secrets.read("token")
    assert "wrong" not in repr(vars(secrets))
    assert b"wrong" not in b"".join(secrets._seen.values())
