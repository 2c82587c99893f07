"""What an operator types at the broker's machine means what it should: issuers in any form, certificates by their id."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certplane.broker.cli import main
from certplane.broker.model import CertificateRecord, OrderState
from certplane.broker.ports import OrderChange
from certplane.broker.renewal.model import RenewalPlan
from certplane.fleet_report.model import RenewalCause
from tests.fakes.clock import ManualClock
from tests.support.broker_files import BrokerFiles
from tests.support.status_json import broker_rows
from tests.support.stores import StoreHarness, StorePlace

PLANNED = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)


@pytest.fixture
def files(tmp_path: Path) -> BrokerFiles:
    return BrokerFiles(tmp_path)


@pytest.fixture
def record(files: BrokerFiles) -> CertificateRecord:
    """A certificate in the broker's store."""

    async def issue() -> CertificateRecord:
        place = StorePlace("sqlite", files.directory / "broker.db")
        clock = ManualClock()
        async with place.open(clock) as stores:
            return await StoreHarness(place, clock, stores).issue()

    return asyncio.run(issue())


@pytest.mark.parametrize(
    "arguments",
    [["--name", "spiffe://example.org/host/web1"], ["--issuer", "CN=internal Root CA", "--serial", "af01"]],
    ids=["by name", "by issuer and serial"],
)
def test_a_deny_names_the_orders_that_the_ca_may_still_issue_for(
    files: BrokerFiles, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends all others; of these a certificate may come that nobody gets and somebody should revoke."""

    async def make() -> str:
        place = StorePlace("sqlite", files.directory / "broker.db")
        clock = ManualClock()
        identity = {"identity_issuer": "CN=internal Root CA", "identity_serial": "af01"}
        async with place.open(clock) as stores:
            harness = StoreHarness(place, clock, stores)
            await harness.open_order(public_key_sha256="pending", **identity)
            order = await harness.open_order(public_key_sha256="sent", **identity)
            await stores.orders.change_order(order, OrderChange(state=OrderState.FINALIZING))
            return order.order_id

    order_id = asyncio.run(make())
    assert main(["-c", str(files.config), "identity", "deny", *arguments, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["ordersAtTheCa"] == [order_id]
    assert (
        f"the CA may issue for orders that it has already: {order_id}; the broker hands such a certificate to nobody"
        in said.err
    )


def _deny(files: BrokerFiles, issuer: str, command: str = "deny") -> int:
    return main(["-c", str(files.config), "identity", command, "--issuer", issuer, "--serial", "af01", "--json"])


@pytest.mark.usefixtures("record")
@pytest.mark.parametrize(
    "issuer",
    ["CN=internal Root CA", "cn=INTERNAL root  ca", "issuer=CN = internal Root CA", "/CN=internal Root CA"],
)
def test_an_issuer_in_another_form_is_the_known_one(
    files: BrokerFiles, issuer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Callers are compared with the issuer as their certificates have it, however a person wrote it."""
    assert _deny(files, issuer) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["issuer"] == "CN=internal Root CA"
    assert said.err == ""
    assert _deny(files, issuer.upper().replace("ISSUER", "issuer"), "allow") == 0
    assert json.loads(capsys.readouterr().out)["result"] == "let in again"


@pytest.mark.usefixtures("record")
def test_an_issuer_that_nobody_knows_is_told(files: BrokerFiles, capsys: pytest.CaptureFixture[str]) -> None:
    """An entry that shuts nobody out is taken, and said to be one each time, with the issuers that would."""
    for _ in range(2):  # the first entry makes its issuer no better known
        assert _deny(files, "CN=internal Route CA") == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["issuer"] == "CN=internal Route CA"
        assert "no certificate in use and no CA of the bundle has the issuer CN=internal Route CA" in said.err
        assert "known issuers: CN=internal Root CA" in said.err
    assert _deny(files, "cn=internal route ca", "allow") == 0
    assert json.loads(capsys.readouterr().out)["result"] == "let in again"


@pytest.mark.parametrize("option", ["--pem", "--chain"])
def test_a_certificate_as_a_file(
    files: BrokerFiles, record: CertificateRecord, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An operator gets a certificate, alone or with its issuers, as PEM and nothing else."""
    assert main(["-c", str(files.config), "certs", "show", record.certificate_id, option]) == 0
    said = capsys.readouterr()
    assert said.out == record.certificate_pem + (record.chain_pem if option == "--chain" else "")
    assert said.err == ""


def test_a_certificate_s_facts(
    files: BrokerFiles, record: CertificateRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a form it is the facts that lists have too, and its PEM beside them in JSON; nothing is audited."""
    assert main(["-c", str(files.config), "certs", "show", record.certificate_id, "--json"]) == 0
    (row,) = broker_rows(capsys.readouterr().out)
    assert row["serial_number"] == record.serial_number
    assert (row["certificate_pem"], row["chain_pem"]) == (record.certificate_pem, record.chain_pem)
    assert main(["-c", str(files.config), "audit", "tail", "--json"]) == 0
    assert capsys.readouterr().out == ""


def test_renew_is_when_the_plan_says(
    files: BrokerFiles, record: CertificateRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    """The findings' operator saw a date here and another one in the fleet; what was replaced has none."""

    async def plan() -> CertificateRecord:
        place = StorePlace("sqlite", files.directory / "broker.db")
        clock = ManualClock()
        async with place.open(clock) as stores:
            harness = StoreHarness(place, clock, stores)
            next(harness.numbers)  # the first is of `record`
            newest = await harness.issue(key="next", replaces_certificate_id=record.certificate_id)
            planned = RenewalPlan(newest.certificate_id, newest.identity, PLANNED, RenewalCause.ISSUER)
            await stores.renewal_plans.set_plans([planned])
            return newest

    newest = asyncio.run(plan())
    assert main(["-c", str(files.config), "certs", "list", "--json"]) == 0
    rows = {row["certificate_id"]: row for row in broker_rows(capsys.readouterr().out)}
    assert rows[newest.certificate_id]["renew"] == f"{PLANNED:%Y-%m-%dT%H:%M:%SZ}"
    for each, state in ((newest, "not delivered"), (record, "superseded")):
        assert main(["-c", str(files.config), "certs", "show", each.certificate_id, "--json"]) == 0
        (shown,) = broker_rows(capsys.readouterr().out)
        for row in (rows[each.certificate_id], shown):
            assert row["state"] == state
            assert row.get("renew") == rows[each.certificate_id].get("renew")
    assert not rows[record.certificate_id].get("renew")


@pytest.mark.usefixtures("record")
def test_no_such_certificate(files: BrokerFiles, capsys: pytest.CaptureFixture[str]) -> None:
    """An id that is none is one line with the command that lists them."""
    assert main(["-c", str(files.config), "certs", "show", "nothing", "--pem"]) == 1
    assert "there is no certificate 'nothing'; `certplane-broker certs list` shows their ids" in capsys.readouterr().err
