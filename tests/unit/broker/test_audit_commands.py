"""`certplane-broker audit`: shown, proven and exported beside a running broker, and from a file without one."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.broker.audit_commands import follow
from certplane.broker.cli import main
from certplane.broker.database import open_store
from certplane.broker.event_filter import EventFilter
from certplane.broker.events import AuditEvent, AuditEventType
from certplane.broker.proof.sealing import Sealing
from certplane.broker.renewal.model import Selection
from certplane.broker.settings import load_settings
from certplane.runtime.clock import SystemClock
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.support.audit_log import KEYS, OTHER_SECRET, SECRET, Signer
from tests.support.broker_files import BrokerFiles
from tests.support.stores import StorePlace
from tests.support.waiting import until


@pytest.fixture
def files(tmp_path: Path) -> BrokerFiles:
    """A broker's, with 30 events, a checkpoint after 25, and a key in a secret."""
    files = BrokerFiles(tmp_path)
    files.settings["secrets"] = {"provider": "env"}
    files.settings["audit"] = {"checkpoint_key_secret": "audit_key"}
    files.write()

    async def fill() -> None:
        place = StorePlace("sqlite", files.directory / "broker.db")
        clock = ManualClock()

        async def secret() -> str:
            return SECRET

        async with place.open(clock) as stores:
            for number in range(30):
                if number == 25:
                    await Sealing(stores.audit_proof, clock, secret, FakeMeter()).seal_own()
                event = AuditEvent(
                    f"event-{number:02}", clock.now(), AuditEventType.CERTIFICATE_DENIED, identity=f"web{number % 3}"
                )
                await stores.audit.append([event])
                clock.advance(timedelta(hours=1))

    asyncio.run(fill())
    return files


@pytest.fixture
def run(
    files: BrokerFiles, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, list[dict[str, Any]], str]]:
    """Runs a command: its status, what it printed, and what it said."""
    monkeypatch.setenv("AUDIT_KEY", SECRET)

    def run(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
        status = main(["-c", str(files.config), "audit", *arguments])
        said = capsys.readouterr()
        return status, [json.loads(line) for line in said.out.splitlines()], said.err

    return run


def change(files: BrokerFiles, sql: str) -> None:
    with closing(sqlite3.connect(files.directory / "broker.db", isolation_level=None)) as database:
        database.executescript(sql)


def test_tail_picks_and_says_where_it_was_cut(run: Any) -> None:
    """The last ones, oldest first; a line on standard error where there are earlier ones."""
    status, rows, said = run("tail", "--identity", "web1", "--limit", "3")
    assert (status, [row["event_id"] for row in rows]) == (0, ["event-22", "event-25", "event-28"])
    assert "--limit 30 shows more" in said
    status, rows, said = run("tail", "--identity", "web1", "--limit", "10")
    assert (len(rows), said) == (10, "")
    first = run("tail", "--limit", "1")[1][0]["timestamp"]
    assert [row["event_id"] for row in run("tail", "--since", first)[1]] == ["event-29"]
    assert len(run("tail", "--limit", "100", "--until", first)[1]) == 29
    assert run("tail", "--type", "policy_loaded") == (0, [], "")
    assert len(run("tail", "--limit", "100", "--since", "52000w")[1]) == 30
    assert run("tail", "--until", "52000w")[1] == []
    assert (
        run("tail", "--error", "no_such", "--serial", "AB:12", "--name", "A.test", "--id", "x", "--profile", "y")[1]
        == []
    )


@pytest.mark.parametrize("text", ["yesterday", "", "2026-13-01", "99999999999999999h"])
def test_a_time_that_is_none(run: Any, text: str) -> None:
    """The option is named, and how to write it."""
    status, _, said = run("tail", "--since", text)
    assert status == 2
    assert "--since" in said
    assert "2026-01-02" in said


async def test_following(files: BrokerFiles) -> None:
    """Each event that comes, once, after the last ones."""
    settings = load_settings(files.config)
    shown: list[list[str]] = []
    following = asyncio.create_task(
        follow(settings, EventFilter(), 2, lambda rows: shown.append([row["event_id"] for row in rows]))
    )
    await until(lambda: shown)
    async with open_store(settings) as stores:
        for number in (30, 31):
            await stores.audit.append([AuditEvent(f"event-{number}", SystemClock().now(), AuditEventType.RPC_DENIED)])
            await until(lambda expected=number - 28: len(shown) == expected)
    following.cancel()
    await asyncio.wait({following})
    assert shown == [["event-28", "event-29"], ["event-30"], ["event-31"]]


def test_verify_the_database(files: BrokerFiles, run: Any) -> None:
    """Whole; then what was changed is named, with status 1."""
    status, (result,), _ = run("verify")
    assert (status, result["result"], result["checkpointCount"], result["signedSequence"]) == (0, "whole", "1", "25")
    change(files, "UPDATE audit_events SET create_time = 1 WHERE event_id = 'event-12'")
    status, (finding, result), _ = run("verify")
    assert (status, finding["kind"], finding["eventId"], result["result"]) == (1, "changed", "event-12", "damaged")
    status, rows, _ = run("verify", "--key", Signer(OTHER_SECRET).public_keys[0])
    assert {row.get("kind") for row in rows[:-1]} == {"changed", "checkpoint_key_unknown"}


def test_export_and_verify_elsewhere(
    files: BrokerFiles, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without configuration and database; each line is JSON, and events are in the public format."""
    status, rows, _ = run("export")
    assert (status, len([row for row in rows if "event" in row])) == (0, 30)
    assert [row["event"]["event_id"] for row in rows if "event" in row][::29] == ["event-00", "event-29"]
    exported = tmp_path / "audit.jsonl"
    exported.write_text("\n".join(map(json.dumps, rows)) + "\n")
    nowhere = str(tmp_path / "none.yml")
    assert main(["-c", nowhere, "audit", "verify", str(exported), "--key", KEYS[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpointCount"] == "1"
    assert run("verify", str(exported))[0] == 0
    exported.write_text(exported.read_text().replace("event-07", "event-xx"))
    status, found, _ = run("verify", str(exported))
    assert (status, found[0]["kind"]) == (1, "changed")


@pytest.mark.parametrize("text", ["", "no JSON\n", '{"a": 1}\n', "\x80\n"])
def test_a_file_that_is_no_export(run: Any, tmp_path: Path, text: str) -> None:
    """It is named, with what to do."""
    file = tmp_path / "other"
    file.write_bytes(text.encode("latin-1"))
    status, _, said = run("verify", str(file))
    assert status == 1
    assert str(file) in said
    assert "audit export" in said
    assert run("verify", str(tmp_path / "nothing"))[0] == 1


def test_keys(files: BrokerFiles, run: Any) -> None:
    """The one that signs, and those that did."""
    other = Signer(OTHER_SECRET).public_keys[0]
    files.settings["audit"]["checkpoint_keys"] = [other]
    files.write()
    status, rows, _ = run("keys")
    assert status == 0
    assert [(row["publicKey"], row["use"]) for row in rows] == [(KEYS[0], "signs"), (other, "has signed before")]
    assert len(base64.b64decode(rows[0]["publicKey"])) == 32


def test_a_key_that_is_none(run: Any) -> None:
    """Named, with where there are some."""
    status, _, said = run("verify", "--key", "short")
    assert status == 2
    assert "audit keys" in said


def test_a_selection_as_people_read_it() -> None:
    """What an operator's request for renewals was for, in the event that records it."""
    assert str(Selection(hosts=("web1", "web2"), dns_names=("a.test",))) == "hosts: web1, web2; dns names: a.test"
    assert str(Selection(all=True, identities=True)) == "all; identities"
