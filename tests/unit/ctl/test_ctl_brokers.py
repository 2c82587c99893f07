"""Brokers as certplanectl shows them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from certplane.ctl.show.brokers import broker_columns, difference_lines, reload_lines
from certplane.rpc.times import timestamp
from certplane.v1 import broker_pb2
from certplane.v1 import fleet_pb2 as pb

NOW = datetime(2026, 1, 2, tzinfo=UTC)
POLICY = pb.BrokerDifference.SUBJECT_POLICY


def broker(**fields: object) -> pb.Broker:
    made = pb.Broker(
        broker_id="id-1",
        name="machine1",
        address="[::]:8443",
        version="1.0",
        start_time=timestamp(NOW - timedelta(hours=5)),
        lease_expire_time=timestamp(NOW),
        stream_count=7,
        policy_hash="0123456789ab",
        trust_hash="123456789abc",
        configuration_hash="23456789abcd",
        audit_mode="fail_open",
        account_keys=[pb.Broker.AccountKey(issuer="default", public_key_sha256="3456789abcde")],
        roles=["retention"],
    )
    made.clock_skew.FromTimedelta(timedelta(seconds=-7))
    made.MergeFrom(pb.Broker(**fields))  # type: ignore[arg-type] # fields by name
    return made


def shown(made: pb.Broker, *, wide: bool = False) -> dict[str, str]:
    """What is shown of it, by column."""
    return {
        column.title: (column.wide_text if wide and column.wide_text else column.text)(made)
        for column in broker_columns(NOW)
    }


def test_a_row_for_each_broker() -> None:
    """With all that it says of itself, hashes cut short."""
    assert shown(broker()) == {
        "BROKER": "machine1",
        "STATE": "",
        "ADDRESS": "[::]:8443",
        "VERSION": "1.0",
        "UP": "5h 0m",
        "LEASE": "held",
        "STREAMS": "7",
        "POLICY": "01234567",
        "TRUST": "12345678",
        "CONFIGURATION": "23456789",
        "AUDIT": "fail_open",
        "ACCOUNTS": "default 3456789a",
        "CLOCK": "-7s",
        "RUNS FOR ALL": "retention",
        "ID": "id-1",
    }
    assert shown(broker(draining=True))["STATE"] == "DRAINING"
    assert shown(broker(), wide=True)["POLICY"] == "0123456789ab"


def test_what_differs_is_marked_and_explained() -> None:
    """The one that differs, in its column; below, a line with what to do. A newer broker's subject marks nothing."""
    differing = shown(broker(differs_in=[POLICY, 99], reuse_port=True))
    assert [title for title, text in differing.items() if "*" in text] == ["POLICY"]
    assert not [title for title, text in shown(broker()).items() if "*" in text]
    assert differing["ADDRESS"] == "[::]:8443 (shared)"
    difference = pb.BrokerDifference(subject=POLICY, text="policies differ: a at x; b at y", remedy="reload it")
    assert difference_lines([difference]) == ["* policies differ: a at x; b at y; reload it"]


def test_a_broker_that_says_little() -> None:
    """One without a lease, or of a release that doesn't say all."""
    said = shown(pb.Broker(name="machine1", version="1.0"))
    assert (said["BROKER"], said["VERSION"], said["LEASE"], said["STREAMS"]) == ("machine1", "1.0", "-", "0")
    assert (said["POLICY"], said["CLOCK"], said["UP"]) == ("-", "+0s", "")


def test_what_a_reload_did() -> None:
    """Each line with the broker that says it; one that says nothing is named too."""
    reload = broker_pb2.ReloadBrokersResponse.Reload
    answered = reload(broker_id="1", broker_name="m1", done=True, lines=["policy: loaded", "limits: unchanged"])
    assert reload_lines(answered) == ["m1: policy: loaded", "m1: limits: unchanged"]
    assert reload_lines(reload(broker_id="2")) == ["2: said nothing"]
