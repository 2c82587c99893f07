"""A broker killed under a fleet that reports, and started again: all hosts are back, no report is lost or counted twice.

The hosts are streams of this process over the generated stub, each on a connection of its own; they do what an agent
must: keep what wasn't acknowledged, come back after a jittered wait, and say it again.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import channel_credentials
from certplane.v1 import renewal_pb2 as pb
from certplane.v1 import renewal_pb2_grpc
from tests.e2e.test_broker_program import Program
from tests.support.broker_files import BrokerFiles
from tests.support.streams import report
from tests.support.waiting import no_hang, until

pytestmark = pytest.mark.e2e

HOSTS = 100
REPORTS = 20
WINDOW = 4
KILLS = 2
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
"""How a lost connection is told; the second where a write was under way, which grpc's client reports before the end."""


class Agent:
    """A host that has `REPORTS` things to say, each of another certificate in use."""

    def __init__(self, channel: grpc.aio.Channel, rng: random.Random) -> None:
        self.channel = channel
        self.rng = rng
        self.unacknowledged: dict[int, Any] = {}
        self.said = 0
        self.acknowledged = 0
        self.streams = 0

    async def run(self) -> None:
        while self.acknowledged < REPORTS:
            try:
                await self._stream()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                # The second is a write on a call that has ended.
                if isinstance(error, grpc.aio.AioRpcError) and error.code() not in LOST:
                    raise
            await asyncio.sleep(self.rng.random() / 2)

    async def _stream(self) -> None:
        call: Any = renewal_pb2_grpc.RenewalServiceStub(self.channel).StreamRenewalStatus(wait_for_ready=True)
        hello = pb.StreamRenewalStatusRequest.Hello(
            agent_version="0.1.0",
            epoch="epoch-1",
            certificate_names=["web"],
            reports=list(self.unacknowledged.values()),
            host_time=datetime.now(UTC),
        )
        await call.write(pb.StreamRenewalStatusRequest(hello=hello))
        while (message := await call.read()) is not grpc.aio.EOF:
            if message.HasField("welcome"):
                self.streams += 1
                self._acknowledge(message.welcome.acknowledged_sequence)
            elif message.HasField("acknowledgement"):
                self._acknowledge(message.acknowledgement.sequence)
            if self.acknowledged == REPORTS:
                call.cancel()
                return
            while self.said < REPORTS and len(self.unacknowledged) < WINDOW:
                self.said += 1
                self.unacknowledged[self.said] = report(self.said, serial=f"{self.said:x}")
                await asyncio.sleep(self.rng.random() / 10)
                await call.write(pb.StreamRenewalStatusRequest(report=self.unacknowledged[self.said]))
        await call.code()

    def _acknowledge(self, sequence: int) -> None:
        assert sequence >= self.acknowledged, "what was acknowledged stays"
        assert sequence <= self.said
        self.acknowledged = sequence
        self.unacknowledged = {each: kept for each, kept in self.unacknowledged.items() if each > sequence}


def has_acknowledged(agents: list[Agent], enough: int) -> bool:
    return sum(agent.acknowledged for agent in agents) >= enough


async def test_no_report_is_lost_or_doubled(tmp_path: Path) -> None:
    """Twice killed in the midst of it, the broker has each report of each host once, in its log too."""
    files = BrokerFiles(tmp_path)
    names = [f"host{number}.certplane.test" for number in range(HOSTS)]
    policy = yaml.safe_load(files.policy.read_text())
    policy["hosts"] = {name.partition(".")[0]: {"identity": name, "profiles": ["web"]} for name in names}
    files.policy.write_text(yaml.safe_dump(policy))
    program = Program(files, {})
    files.settings["server"]["address"] = f"127.0.0.1:{program.port}"
    files.config.write_text(yaml.safe_dump(files.settings))
    agents = [
        Agent(
            open_channel(
                f"https://localhost:{program.port}",
                channel_credentials(files.ca.root_pem, files.ca.issue([name]).pair),
                user_agent=name,  # another channel option is another connection
            ),
            random.Random(number),
        )
        for number, name in enumerate(names)
    ]
    total = HOSTS * REPORTS
    try:
        async with no_hang(), asyncio.TaskGroup() as group:
            for agent in agents:
                group.create_task(agent.run())
            for kill in range(KILLS):
                enough = total * (kill + 1) // (KILLS + 2)
                await until(partial(has_acknowledged, agents, enough), what=f"{enough} acknowledgements")
                program.process.kill()
                program.close()
                program = await asyncio.to_thread(Program, files, {})
    finally:
        program.close()
        for agent in agents:
            await agent.channel.close()
    assert sum(agent.streams for agent in agents) > HOSTS, "the fleet came back"
    with closing(sqlite3.connect(tmp_path / "broker.db")) as database:
        sequences = dict(database.execute("SELECT host, acknowledged_sequence FROM report_sequences"))
        records = [json.loads(record) for (record,) in database.execute("SELECT record FROM audit_events")]
    assert sequences == dict.fromkeys(names, REPORTS)
    told = Counter(
        (record["identity"], record["cert_serial_number"])
        for record in records
        if record["event_type"] == "renewal_reported"
    )
    assert told == Counter({(name, f"{serial:x}"): 1 for name in names for serial in range(1, REPORTS + 1)})
