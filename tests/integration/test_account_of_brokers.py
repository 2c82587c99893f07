"""The account of several brokers on one database: one key for all, whoever changes it, and none beside it."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
import yaml

from certplane.broker import account_commands
from certplane.broker.app import Broker, open_broker
from certplane.broker.cli import main
from certplane.broker.issuing.measured import MeasuredCalls
from certplane.broker.issuing.remote import RemoteIssuer
from certplane.broker.issuing.supervision import IssuingProcess
from certplane.broker.prepared import prepare
from certplane.broker.settings import load_settings
from certplane.errors import ConfigurationError, Reason, RefusalError
from certplane.pki.keys import KeyType, generate_private_key, private_key_pem
from certplane.sandbox.pebble import Pebble, PebbleOptions
from certplane.sandbox.ports import DnsServer
from tests.support.audit_rows import AUDIT_ROWS, records
from tests.support.broker_files import BrokerFiles
from tests.support.parts import need_part
from tests.support.stores import StorePlace
from tests.support.waiting import HANG, no_hang, until

pytestmark = pytest.mark.integration

SEALS = [base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2)]
STORE = {"store": True}


class Brokers:
    """Configurations of brokers on one database, each with a folder and secrets of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder, self._url = folder, url
        self.place = StorePlace("postgresql", folder / "none.db", url)
        self.acme: dict[str, Any] = {}

    def configuration(self, number: int, account_key: Any, *, seal: str = SEALS[0], key: str = "") -> Path:
        folder = self._folder / str(number)
        if not folder.exists():
            (folder / "secrets" / "acme").mkdir(parents=True)
        files = BrokerFiles(folder)
        files.settings["issuer"]["acme"] |= {"account_key": account_key, **self.acme}
        files.settings["secrets"] = {"provider": "file", "file": {"directory": str(folder / "secrets")}}
        files.settings["store"] = {"driver": "postgresql", "url": self._url}
        if account_key == STORE:
            files.settings["store"]["seal_secret"] = "seal"
        files.settings["audit"] = {"spill_path": str(folder / "spill.jsonl")}
        files.write()
        for name, secret in (("seal", seal), ("acme/key", key)):
            path = folder / "secrets" / name
            path.write_text(secret)
            path.chmod(0o600)
        return files.config

    def open(self, number: int, account_key: Any, **secrets: str) -> AbstractAsyncContextManager[Broker]:
        return open_broker(prepare(load_settings(self.configuration(number, account_key, **secrets))))

    async def refusal(self, number: int, account_key: Any, **secrets: str) -> str:
        with pytest.raises(ConfigurationError) as caught:
            async with self.open(number, account_key, **secrets):
                pass
        return str(caught.value)

    def rows(self) -> list[tuple[Any, ...]]:
        return self.place.query("SELECT public_key_sha256, sealed_key IS NULL, next_key_sha256 FROM acme_accounts")

    def audited(self) -> list[str]:
        events = records(self.place.query(AUDIT_ROWS))
        return [each["reason"] for each in events if each["event_type"] == "account_key_changed"]


@pytest.fixture
def brokers(tmp_path: Path, postgres_url: str) -> Brokers:
    return Brokers(tmp_path, postgres_url)


def pem() -> str:
    return private_key_pem(generate_private_key(KeyType.EC_P256)).decode()


def key_of(broker: Broker) -> str:
    return broker.accounts.keys["default"]


async def test_brokers_that_start_at_once_share_one_key(brokers: Brokers, caplog: pytest.LogCaptureFixture) -> None:
    """It is made once, said once, and no broker's file or log has anything of it; the next start finds it."""
    with caplog.at_level(logging.DEBUG):
        async with brokers.open(0, STORE):  # makes the tables
            pass
        brokers.place.execute("DELETE FROM acme_accounts")
        opened = [brokers.open(number, STORE) for number in (1, 2)]
        first, second = await asyncio.gather(*(each.__aenter__() for each in opened))
        try:
            assert brokers.rows() == [(key_of(first), False, "")]
            assert key_of(first) == key_of(second)
            assert key_of(first) in first.accounts
            members = await first.stores.members.living()
            assert {key.public_key_sha256 for member in members for key in member.account_keys} == {key_of(first)}
        finally:
            for each in opened:
                await each.__aexit__(None, None, None)
        async with brokers.open(3, STORE) as third:
            assert third.accounts.keys == first.accounts.keys
    assert caplog.text.count("the account's key was made and is in the database") == 2
    assert not [seal for seal in SEALS if seal in caplog.text]
    assert "PRIVATE KEY" not in caplog.text


async def test_another_seal_secret(brokers: Brokers) -> None:
    """The broker says which secret is another one than the others have, with its line, and ends."""
    async with brokers.open(1, STORE):
        said = await brokers.refusal(2, STORE, seal=SEALS[1])
    assert "broker.yml:" in said
    assert "store.seal_secret: the account's key in the database was sealed with another secret" in said
    assert "this broker's secret is 'seal'; give this broker the secret that the other brokers have" in said
    assert SEALS[1] not in said


@pytest.mark.parametrize("kind", ["file", "secret"])
async def test_a_second_account_is_refused_while_the_first_one_lives(brokers: Brokers, kind: str) -> None:
    """With where the first one is and what to do; alone on the database, the broker may have any key."""
    keys = [str(brokers._folder / "first.key"), str(brokers._folder / "second.key")]
    places: list[Any] = keys if kind == "file" else [{"secret": "acme/key"}] * 2
    async with brokers.open(1, places[0], key=(first_pem := pem())) as first:
        mine = key_of(first)
        said = await brokers.refusal(2, places[1], key=pem())
        assert "issuer.acme.account_key: this broker would order from default with another account" in said
        assert f"at 127.0.0.1:0, which shares its database ({mine}); give all brokers one key" in said
        assert [member.broker_id for member in await first.stores.members.living()] == [first.stores.members.broker_id]
        async with brokers.open(3, places[0], key=first_pem) as same:
            assert key_of(same) == mine
        assert brokers.rows() == [(mine, True, "")]
    async with brokers.open(2, places[1], key=pem()) as other:
        assert key_of(other) != mine
        assert brokers.rows() == [(key_of(other), True, "")]


async def test_the_key_that_the_database_keeps_is_recorded_over_by_nobody(brokers: Brokers) -> None:
    """A broker with a file of another key is refused, whether one lives that orders with the database's or not."""
    async with brokers.open(1, STORE) as first:
        mine = key_of(first)
    said = await brokers.refusal(2, str(brokers._folder / "other.key"))
    assert f"the database keeps the key of the account at default ({mine})" in said
    assert "`account_key: {store: true}`" in said
    assert brokers.rows() == [(mine, False, "")]


async def test_a_key_that_moves_into_the_database_and_out(
    brokers: Brokers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The account stays the same on the way; each step is audited, and none makes another key by itself."""
    file = tmp_path / "account.key"
    async with brokers.open(1, str(file)) as first:
        mine = key_of(first)
    said = await brokers.refusal(1, STORE)
    assert f"the database doesn't have the account's key {mine}, which was elsewhere" in said
    assert "`certplane-broker account import FILE --issuer default`" in said
    config = str(brokers.configuration(1, STORE))
    other = tmp_path / "not-a-key"
    other.write_text("x")
    assert await command(capsys, config, "import", str(other)) == (2, "")
    assert await command(capsys, config, "import", str(file)) == (0, mine)
    assert await command(capsys, config, "import", str(file)) == (0, mine)
    other.write_text(pem())
    assert await command(capsys, config, "import", str(other)) == (1, "")
    second = brokers.configuration(1, STORE)
    settings = yaml.safe_load(second.read_text())
    settings["issuers"] = {"second": {"acme": {"directory_url": "https://127.0.0.1:9/other", "account_key": STORE}}}
    second.write_text(yaml.safe_dump(settings))
    assert await command(capsys, config, "import", str(file), "--issuer", "second") == (1, "")
    brokers.configuration(1, STORE)
    async with brokers.open(1, STORE) as stored:
        assert key_of(stored) == mine
    out = tmp_path / "out.key"
    assert await command(capsys, config, "export", str(out)) == (0, mine)
    assert out.stat().st_mode & 0o777 == 0o600
    assert await command(capsys, config, "export", str(out)) == (1, "")
    async with brokers.open(2, str(out)) as again:
        assert key_of(again) == mine
    assert [line.partition(f"{mine} ")[2].partition(",")[0].partition(" /")[0] for line in brokers.audited()] == [
        "is to be kept in the database",
        "is kept in the database",
        "is to be put into",
        "is to be put into",
    ]


async def test_the_seal_secret_is_replaced(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    """The new one before the old one, everything sealed anew, the old one away: no broker notices."""
    async with brokers.open(1, STORE) as broker:
        config = str(brokers.configuration(2, STORE, seal=SEALS[1]))
        assert await command(capsys, config, "reseal") == (2, "")
        brokers.configuration(1, STORE, seal="\n".join(reversed(SEALS)))
        config = str(brokers.configuration(2, STORE, seal="\n".join(reversed(SEALS))))
        assert await command(capsys, config, "reseal") == (0, key_of(broker))
        brokers.configuration(1, STORE, seal=SEALS[1])
        assert await look(broker) == key_of(broker)
        async with brokers.open(3, STORE, seal=SEALS[1]) as other:
            assert key_of(other) == key_of(broker)


async def test_an_issuing_process_that_is_started_again_while_the_database_is_away(
    brokers: Brokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the key that was read last; what it would write waits."""

    async def away(*_: object) -> None:
        raise RefusalError(Reason.STORE_UNAVAILABLE, "away")

    async with brokers.open(1, STORE) as broker:
        measured = issuer_of(broker)._calls
        assert isinstance(measured, MeasuredCalls)
        process = measured._calls
        assert isinstance(process, IssuingProcess)
        before = process.pid
        monkeypatch.setattr(broker.stores.accounts, "find", away)
        os.kill(before, signal.SIGKILL)
        await until(lambda: process.up and process.pid != before, what="another process")
        assert await look(broker) == key_of(broker)


@pytest_asyncio.fixture
async def pebble(tmp_path: Path, dns_server: DnsServer) -> AsyncIterator[Pebble]:
    options = PebbleOptions(always_valid=True)
    async with Pebble(tmp_path / "ca", dns_server.endpoint.host_port, options, part=need_part("pebble")) as server:
        yield server


@pytest.mark.parametrize("kind", ["file", "secret", "store"])
async def test_a_new_key_is_every_brokers_within_a_second(
    brokers: Brokers, pebble: Pebble, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`account rollover` beside one of them: their issuing processes sign with it before they have sent anything."""
    brokers.acme = {"directory_url": pebble.directory_url, "ca_bundle": str(pebble.https_roots_file)}
    place: Any = {"file": str(tmp_path / "account.key"), "secret": {"secret": "acme/key"}, "store": STORE}[kind]
    old, new = pem(), pem()
    async with brokers.open(1, place, key=old) as first, brokers.open(2, place, key=old) as second:
        before = key_of(first)
        config = str(brokers.configuration(1, place, key=old))
        if kind == "secret":
            assert await command(capsys, config, "rollover") == (2, "")
            brokers.configuration(3, place, key=old)
            for number in (1, 2, 3):
                (tmp_path / str(number) / "secrets" / "acme" / "key.next").write_text(new)
                (tmp_path / str(number) / "secrets" / "acme" / "key.next").chmod(0o600)
        status, after = await command(capsys, config, "rollover")
        assert status == 0
        assert after != before
        await until(lambda: key_of(first) == key_of(second) == after, what="the new key")
        if kind == "secret":
            async with brokers.open(3, place, key=old) as late:  # what the operator does now isn't waited for
                assert key_of(late) == after
            for number in (1, 2):
                brokers.configuration(number, place, key=new)
                (tmp_path / str(number) / "secrets" / "acme" / "key.next").unlink()
            for broker in (first, second):
                assert await look(broker) == after
        assert before in first.accounts
        assert after in first.accounts
        assert brokers.rows() == [(after, kind != "store", "")]
    assert len(brokers.audited()) == (3 if kind == "secret" else 2)


async def test_a_file_of_which_other_machines_have_copies(
    brokers: Brokers, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key isn't changed while brokers there live, which would be left with the old one."""
    config = str(brokers.configuration(1, str(tmp_path / "account.key")))
    async with brokers.open(1, str(tmp_path / "account.key")) as broker:
        before = key_of(broker)
        monkeypatch.setattr(account_commands, "socket", SimpleNamespace(gethostname=lambda: "another-machine"))
        assert await asyncio.to_thread(main, ["-c", config, "account", "rollover"]) == 1
        said = capsys.readouterr().err
        assert f"brokers on {socket.gethostname()} have the account's key in files of their own" in said
        assert "`account_key: {store: true}`" in said
        assert await look(broker) == before
        assert not (tmp_path / "account.key.next").exists()
        assert brokers.audited() == []


@pytest.mark.parametrize("kind", ["file", "secret", "store"])
@pytest.mark.parametrize("place", ["acme.rollover.prepared", "acme.rollover.taken"])
async def test_a_change_that_is_killed(
    brokers: Brokers, pebble: Pebble, kind: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the CA was asked, and after it did it: brokers have the key that it knows, and the command can be repeated."""
    brokers.acme = {"directory_url": pebble.directory_url, "ca_bundle": str(pebble.https_roots_file)}
    account_key: Any = {"file": str(tmp_path / "account.key"), "secret": {"secret": "acme/key"}, "store": STORE}[kind]
    old = pem()
    async with brokers.open(1, account_key, key=old) as broker:
        before = key_of(broker)
        config = brokers.configuration(1, account_key, key=old)
        if kind == "secret":
            (next_key := config.parent / "secrets" / "acme" / "key.next").write_text(pem())
            next_key.chmod(0o600)
        killed = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "certplane.broker", "-c", config, "account", "rollover"),
            env={**os.environ, "CERTPLANE_FAILPOINTS": f"{place}=kill"},
        )
        async with no_hang():
            assert await killed.wait() == -signal.SIGKILL
        assert (await look(broker) != before) is (place == "acme.rollover.taken")
        status, after = await command(capsys, str(config), "rollover")
        assert (status, after != before) == (0, True)
        await until(lambda: key_of(broker) == after, what="the new key")
        assert brokers.rows() == [(after, kind != "store", "")]
        status, shown = await command(capsys, str(config), "show")
        assert (status, shown) == (0, after)


async def look(broker: Broker) -> str:
    """Have its issuing process read the key again."""
    return await issuer_of(broker).look_at_account_key(timedelta(seconds=HANG))


def issuer_of(broker: Broker) -> RemoteIssuer:
    issuer = broker.authority._ports.issuers["default"]
    assert isinstance(issuer, RemoteIssuer)
    return issuer


async def command(capsys: pytest.CaptureFixture[str], config: str, *arguments: str) -> tuple[int, str]:
    """The status of `certplane-broker account ...`, and the key that it shows."""
    capsys.readouterr()
    status = await asyncio.to_thread(main, ["-c", config, "--json", "account", *arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert "PRIVATE" not in said.out + said.err
    return status, json.loads(said.out)["keySha256"] if said.out else ""
