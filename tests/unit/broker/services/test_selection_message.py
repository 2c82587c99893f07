"""What an operator's selection may hold, and which hosts its labels pick."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from certplane.broker.model import Grant, IdentityKind
from certplane.broker.renewal.model import Selection
from certplane.broker.services.filter_convert import filter_of
from certplane.broker.services.fleet_convert import Named, selection_of
from certplane.errors import RefusalError
from certplane.rpc.times import timestamp
from certplane.v1 import fleet_pb2 as pb
from tests.fakes.policy import FakePolicy

NOW = datetime(2026, 11, 20, tzinfo=UTC)
POLICY = FakePolicy.of(
    Grant(f"{label}.example", IdentityKind.HOST, label, labels=labels)
    for label, labels in {"a": {"ring": "canary"}, "b": {"ring": "rest", "dc": "fra1"}, "c": {}}.items()
)


class View(Named):
    """What the fleet's view knows of the policy."""

    def identities(self, name_or_label: str) -> frozenset[str]:
        return POLICY.identities_of(name_or_label) or frozenset({name_or_label})

    def hosts_with(self, labels: Any) -> frozenset[str]:
        return POLICY.hosts_with(labels)


def test_every_field() -> None:
    """Each arrives in its canonical form, and for people the selection is what was asked for."""
    found = selection_of(
        pb.Selection(
            hosts=["a", "b"],
            labels=["ring=canary", "dc=ams1"],
            serial_numbers=["0A:BC"],
            public_keys_sha256=["AB:CD"],
            issued_before_time=timestamp(NOW),
            window_open=True,
            incident_id="i-1",
        ),
        View(),
    )
    assert found == Selection(
        hosts=("a.example",),
        labels=("ring=canary", "dc=ams1"),
        serial_numbers=("abc",),
        public_keys_sha256=("abcd",),
        issued_before=NOW,
        window_open=True,
        incident_id="i-1",
    )
    assert str(found) == (
        "hosts: a.example; labels: ring=canary, dc=ams1; serial numbers: abc; public keys sha256: abcd; "
        "issued before: 2026-11-20T00:00:00Z; window open; incident id: i-1"
    )


@pytest.mark.parametrize(
    ("fields", "hosts"),
    [
        pytest.param({"labels": ["ring=canary", "dc=fra1"]}, ("a.example", "b.example"), id="one-of-several"),
        pytest.param({"labels": ["ring=canary"], "hosts": ["b"]}, (), id="of-the-hosts-that-are-named"),
        pytest.param({"labels": ["ring=typo"], "all": True}, (), id="that-nobody-has"),
        pytest.param({"labels": ["ring=canary"], "identities": True}, ("a.example",), id="of-identities"),
    ],
)
def test_labels_are_hosts(fields: dict[str, Any], hosts: tuple[str, ...]) -> None:
    """They are looked up once, where the selection is made."""
    found = selection_of(pb.Selection(**fields), View())
    assert (found.hosts, found.labels) == (hosts, tuple(fields["labels"]))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"labels": ["canary"]}, "selection.labels"),
        ({"labels": ["=canary"]}, "selection.labels"),
        ({"labels": [f"a={number}" for number in range(101)]}, "selection.labels"),
        ({"serial_numbers": ["12x"]}, "selection.serial_numbers"),
        ({"public_keys_sha256": [""]}, "selection.public_keys_sha256"),
        ({"all": True, "identities": True, "window_open": True}, "selection.window_open"),
        ({"all": True, "identities": True, "serial_numbers": ["1"]}, "selection.serial_numbers"),
        ({"all": True, "identities": True, "issued_before_time": timestamp(NOW)}, "selection.issued_before_time"),
        ({"all": True, "identities": True, "incident_id": "i-1"}, "selection.incident_id"),
    ],
)
def test_refuses(fields: dict[str, Any], field: str) -> None:
    """What can't be looked for, by its field."""
    with pytest.raises(RefusalError) as caught:
        selection_of(pb.Selection(**fields), View())
    assert field in str(caught.value) or any(field == each.subject for each in caught.value.refusal.violations)


def test_a_filters_labels() -> None:
    """As pairs; what isn't one is refused."""
    assert filter_of(pb.FleetFilter(labels=["ring=canary"])).labels == {("ring", "canary")}
    with pytest.raises(RefusalError, match=r"filter\.labels"):
        filter_of(pb.FleetFilter(labels=["ring"]))
