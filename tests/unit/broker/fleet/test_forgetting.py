"""Hosts that can't be forgotten, and what an operator is told to do first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from certplane.broker.events import AuditTrail
from certplane.broker.fleet.forgetting import HostForgetting, HostStaysError
from certplane.broker.fleet.model import StreamBroker
from certplane.broker.fleet.view import HostNotFoundError
from certplane.broker.fleet.watching import Watchers
from certplane.broker.model import Grant, IdentityKind
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.fakes.policy import FakePolicy, FakePolicySource
from tests.support.callers import caller

HERE = StreamBroker("b1", "machine-1", "[::]:8443")


def desk(*, stream: object = "a stream", broker: StreamBroker | None = None, removed: bool = True) -> HostForgetting:
    """Of a fleet whose policy has one host, and one that is gone."""
    clock = ManualClock()
    view: Any = SimpleNamespace(record=SimpleNamespace(stream=stream), broker=broker)
    return HostForgetting(
        view=SimpleNamespace(last_known=AsyncMock(return_value=view)),  # type: ignore[arg-type]  # all that is asked
        store=SimpleNamespace(forget_host=AsyncMock(return_value=removed)),
        plans=SimpleNamespace(in_force=AsyncMock(return_value=[])),  # type: ignore[arg-type]  # likewise
        policy=FakePolicySource(FakePolicy.of([Grant("web1.example", IdentityKind.HOST, "web1")])),
        watchers=Watchers(1, FakeMeter()),
        clock=clock,
        trail=AuditTrail(clock),
    )


@pytest.mark.parametrize(
    ("name", "state", "told"),
    [
        pytest.param("web1.example", {}, "remove it from policy.yml", id="expected"),
        pytest.param("web1", {}, "remove it from policy.yml", id="expected-by-its-label"),
        pytest.param("old.example", {"broker": HERE}, r"at machine-1, \[::\]:8443.*stop its certplane-agent", id="connected"),
        pytest.param("old.example", {"removed": False}, "has come back just now", id="came-back"),
    ],
)  # fmt: skip
async def test_a_host_that_stays(name: str, state: dict[str, Any], told: str) -> None:
    """Each refusal says what has to be done first."""
    with pytest.raises(HostStaysError, match=told):
        await desk(**state).forget(caller(name="admin.test"), "r-1", name, "gone")


async def test_a_host_that_nobody_knows() -> None:
    """A mistyped name is told."""
    with pytest.raises(HostNotFoundError):
        await desk(stream=None).forget(caller(name="admin.test"), "r-1", "old.example", "gone")
