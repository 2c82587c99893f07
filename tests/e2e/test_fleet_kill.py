"""A broker killed under a fleet that reports, and started again: all hosts are back, no report is lost or counted twice.

The hosts are streams of this process, each on a connection of its own (`tests.support.reporting_hosts`).
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import yaml

from certplane.broker.audit_commands import verify_store
from certplane.broker.settings import load_settings
from tests.e2e.test_broker_program import Program
from tests.support.audit_rows import AUDIT_ROWS, records
from tests.support.broker_files import BrokerFiles
from tests.support.reporting_hosts import ReportingHost, has_acknowledged
from tests.support.waiting import no_hang, until

pytestmark = pytest.mark.e2e

HOSTS = 100
REPORTS = 20
KILLS = 2


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
    urls = [f"https://localhost:{program.port}"]
    agents = [
        ReportingHost(
            name, urls, files.ca.root_pem, files.ca.issue([name]).pair, random.Random(number), reports=REPORTS
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
            await agent.close()
    assert sum(agent.streams for agent in agents) > HOSTS, "the fleet came back"
    with closing(sqlite3.connect(tmp_path / "broker.db")) as database:
        sequences = dict(database.execute("SELECT host, acknowledged_sequence FROM report_sequences"))
        events = records(database.execute(AUDIT_ROWS))
    assert sequences == dict.fromkeys(names, REPORTS)
    told = Counter(
        (record["identity"], record["cert_serial_number"])
        for record in events
        if record["event_type"] == "renewal_reported"
    )
    found, result = await verify_store(load_settings(files.config), [], print)
    assert (found, int(str(result["chain_count"]))) == ([], KILLS + 1), (
        "what was killed has left nothing that looks changed"
    )
    assert told == Counter({(name, f"{serial:x}"): 1 for name in names for serial in range(1, REPORTS + 1)})
