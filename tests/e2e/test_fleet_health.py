"""A certificate expires while its host is down and its service serves it: seen in the fleet, in a watch, by a monitor."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import KeyPair, channel_credentials
from certplane.runtime.health import HealthWord
from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from certplane.sandbox.loopback import free_port
from certplane.sandbox.operator import Operator
from certplane.v1 import renewal_pb2
from tests.support.parts import need_part
from tests.support.streams import HostStreamClient
from tests.support.waiting import HANG, no_hang

pytestmark = pytest.mark.e2e

_POLICY: dict[str, Any] = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["www.certplane.test"]}},
    "hosts": {"web1": {"identity": "web1.certplane.test", "profiles": ["web"]}},
    "operators": {"alice": {"identity": "alice.certplane.test", "roles": ["viewer"]}},
}


@asynccontextmanager
async def told_by_hand(deployment: Deployment, host: Host, epoch: str, end: datetime) -> AsyncIterator[None]:
    """The host's stream, on which it has said that it serves a certificate until `end`."""
    cert, key = host.identity
    credentials = channel_credentials(
        (deployment.broker_folder / "root.crt").read_bytes(), KeyPair(key.read_bytes(), cert.read_bytes())
    )
    held = renewal_pb2.CertificateStatus.Held(
        serial_number="2a", version=1, not_before_time=datetime.now(UTC) - timedelta(hours=1), not_after_time=end
    )
    async with open_channel(f"https://localhost:{deployment.broker_port}", credentials) as channel:
        client = HostStreamClient(channel, epoch)
        await client.hello("web", agent_mode=renewal_pb2.AGENT_MODE_DAEMON)
        await client.report("web", profile="web", issued=held, installed=held, served=held)
        assert (await client.read()).acknowledgement.sequence
        yield


async def test_expired_and_served_is_an_alarm(tmp_path: Path) -> None:
    """A watch shows the moment, though nobody reports anything; `fleet --check` has it until it is mended."""
    need_part("pebble")
    metrics = f"127.0.0.1:{free_port()}"
    options = DeploymentOptions(_POLICY, broker={"metrics": {"address": metrics}})
    async with Deployment(tmp_path, options) as deployment:
        host = deployment.add_host("web1.certplane.test", [])
        alice = Operator(deployment, "alice.certplane.test")
        await deployment.start_broker()
        for enrolled in (await host.run("enroll"), await alice.enroll()):
            assert enrolled.status == 0, enrolled.stderr
        watch = await asyncio.create_subprocess_exec(
            sys.executable, *alice.command("watch"), stdout=asyncio.subprocess.PIPE
        )
        assert watch.stdout is not None
        healths: list[str] = []
        try:
            async with no_hang():
                while "snapshotEnd" not in json.loads(await watch.stdout.readline()):
                    pass
            end = datetime.now(UTC) + timedelta(seconds=15)
            async with told_by_hand(deployment, host, "first", end):
                pass
            async with no_hang():
                while "HEALTH_EXPIRED" not in healths:
                    message = json.loads(await watch.stdout.readline())
                    told = [
                        *message.get("host", {}).get("certificates", ()),
                        message.get("certificateChange", {}).get("certificate", {}),
                    ]
                    healths += [each["health"] for each in told if each.get("health")]
        finally:
            watch.terminate()
            await watch.wait()
        assert healths[0] != "HEALTH_EXPIRED"
        assert datetime.now(UTC) >= end

        shown = await alice.run("fleet", "--health", "expired", "--check")
        assert shown.status == 1
        (web1,) = map(json.loads, shown.stdout.splitlines())
        (web,) = web1["certificates"]
        assert "connected" not in web1
        assert (web["state"], web["health"]) == ("STATE_SERVING", "HEALTH_EXPIRED")
        assert "last heard at" in web["healthReason"]
        assert "check that the host" in web["healthRemedy"]
        assert (await alice.run("fleet")).status == 0

        async with told_by_hand(deployment, host, "second", datetime.now(UTC) + timedelta(days=80)):
            assert (await alice.run("fleet", "--check")).status == 0
            nobody = await alice.run("fleet", "--health", "EXPIRED", "--check")
            assert (nobody.status, nobody.stdout) == (0, "")
        assert _measured(metrics) == {"certplane_fleet_certificates": len(HealthWord)}


def _measured(address: str) -> dict[str, int]:
    """How many samples the broker has of each metric of the fleet's certificates; they are a minute old at most."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=HANG) as answer:
        text = answer.read().decode()
    return Counter(re.findall(r"^(certplane_fleet_certificates)\{health=", text, re.MULTILINE))
