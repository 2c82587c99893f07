"""A broker that is killed at each step of an incident goes on where it was: one incident, one rollout, all audited once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.parts import PEBBLE_SET_RENEWAL_INFO
from tests.support.called_back import call_back, execute
from tests.support.killing import KILLED, ended, events, killing_at, settle_on_a_port
from tests.support.parts import need_part
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

_HOST = "web1.certplane.test"
_NAMES = ["www.certplane.test"]
_POLICY: dict[str, Any] = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": _NAMES}},
    "hosts": {"web1": {"identity": _HOST, "profiles": ["web"]}},
    "rollouts": {"rings": [{"name": "rest", "rest": True}]},
    "incidents": {"at_least": 1, "rollout": "rings"},
}


async def test_an_incident_survives_its_broker_at_each_step(tmp_path: Path) -> None:
    """Seen, written, given to a rollout, and over: its broker is killed around each of it."""
    if not need_part("pebble").can(PEBBLE_SET_RENEWAL_INFO):
        pytest.skip("this Pebble has no renewal-info control")
    async with Deployment(tmp_path, DeploymentOptions(_POLICY)) as deployment:
        settle_on_a_port(deployment)

        async def killed(failpoint: str) -> None:
            await deployment.start_broker(killing_at(failpoint))
            assert await ended(deployment.broker_process) == KILLED

        host = deployment.add_host(_HOST, [{"name": "web", "profile": "web", "dns_names": _NAMES}])
        await deployment.start_broker()
        assert (await host.run("enroll")).status == 0
        assert (await host.run("run", "--once")).status == 0
        old = host.output("web", "cert").read_text()
        await deployment.stop_broker()
        await call_back(deployment, [host], "web")
        await killed("incident.open.before")
        await killed("incident.open.after")
        # No other certificate came for minutes: its rollout begins at once.
        execute(deployment, "UPDATE moved_windows SET move_time = move_time - 300000000")
        await killed("incident.rollout.before")
        await killed("incident.rollout.after")
        await deployment.start_broker(killing_at("incident.close.before"))
        await host.start()
        assert await ended(deployment.broker_process) == KILLED
        assert host.output("web", "cert").read_text() != old
        await deployment.start_broker()

        async def closed() -> bool:
            return bool(await events(deployment, event_type="incident_closed"))

        await until(closed, poll=0.5, what="the end of the incident")
        for event_type in ("incident_opened", "incident_closed", "rollout_created"):
            assert len(await events(deployment, event_type=event_type)) == 1, event_type
