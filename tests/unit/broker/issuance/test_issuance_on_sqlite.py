"""The story on the real store: killed at every step with the database file as it is found on disk."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from certplane.broker.audit import SpillFallback
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.epoch import RetryEpoch
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.issuance.steps import FAILPOINTS
from certplane.broker.model import OrderState
from certplane.broker.ports import NullMeter
from certplane.broker.store import Stores, open_stores
from certplane.runtime.clock import SystemClock
from certplane.runtime.ids import TimeOrderedIds
from tests.fakes.audit import FakeDenialRecorder, FakeEventRecorder
from tests.fakes.dns import FakeChallengeSolver, FakeDns
from tests.fakes.issuer import FakeCa, FakeIssuer, FakeRevoker
from tests.fakes.policy import FakePolicySource
from tests.support.issuance import World, caller, issue, policy

SOON = timedelta(seconds=10)


@asynccontextmanager
async def broker(folder: Path, ca: FakeCa) -> AsyncIterator[tuple[RegistrationAuthority, Stores]]:
    """A registration authority on the SQLite file in `folder`, drained at the end."""
    clock = SystemClock()
    audit = SpillFallback("fail_closed", folder / "spill", mirror_to_log=False, meter=NullMeter())
    async with open_stores(path=folder / "broker.db", audit=audit, clock=clock) as stores:
        authority = RegistrationAuthority(
            IssuancePorts(
                policies=FakePolicySource(policy()),
                orders=stores.orders,
                shared_orders=stores.shared_orders,
                certificates=stores.certificates,
                keys=stores.keys,
                identities=stores.identities,
                deny_list=stores.deny_list,
                trust=World(),
                audit=stores.audit,
                denials=FakeDenialRecorder(stores.audit),
                repeats=FakeEventRecorder(stores.audit),
                issuers={"fake-ca": FakeIssuer(ca)},
                revokers={"fake-ca": FakeRevoker(ca)},
                solver=FakeChallengeSolver(ca.dns),
                holds=stores.holds,
                ledger=stores.budget,
                conditions=stores.conditions,
                epoch=RetryEpoch(clock, TimeOrderedIds(clock)),
                clock=clock,
                new_id=TimeOrderedIds(clock),
                rng=random.Random(1),
            ),
            IssuanceSettings(),
        )
        await authority.start()
        try:
            yield authority, stores
        finally:
            await authority.drain(SOON)


async def test_killed_at_any_step_the_database_file_says_how_to_go_on(tmp_path: Path) -> None:
    """Whatever is in the file and its log at a step, a start on it ends the order with one certificate, all logged."""
    first = tmp_path / "first"
    first.mkdir()
    ca = FakeCa(SystemClock(), FakeDns())
    found: dict[str, FakeCa] = {}

    def kill(name: str) -> None:
        if name not in found:
            folder = tmp_path / name
            folder.mkdir()
            for file in ("broker.db", "broker.db-wal"):
                if (first / file).exists():
                    shutil.copyfile(first / file, folder / file)
            found[name] = ca.fork(ca.dns.fork())

    with World().at_failpoints(kill):
        async with broker(first, ca) as (authority, _):
            result = await authority.issue(caller(), issue())
            assert result.certificate is not None
    assert tuple(found) == FAILPOINTS

    for name, ca_then in found.items():
        async with broker(tmp_path / name, ca_then) as (authority, stores):
            again = await authority.issue(caller(), issue(wait=SOON))
            assert again.order.state is OrderState.ISSUED, name
            assert again.certificate is not None
            authorised = [
                record
                for record in await stores.audit.tail(100)
                if record["event_type"] == "certificate_authorized" and record["cache_result"] == "miss"
            ]
            issued = [r for r in await stores.audit.tail(100) if r["event_type"] == "certificate_issued"]
            assert [len(authorised), len(issued)] == [1, 1], name
        assert ca_then.finalisations == len(ca_then.issued) == 1, name
        assert not ca_then.dns.records, name
        async with broker(tmp_path / name, ca_then) as (_, stores):
            assert list(await stores.orders.unfinished_orders()) == [], name
