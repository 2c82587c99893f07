"""What a filter of a request may say, and what is wrong with what it may not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from certplane.broker.fleet.filter import FleetFilter
from certplane.broker.model import IdentityKind
from certplane.broker.services.filter_convert import filter_of
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import CertificateState
from certplane.runtime.health import HealthWord
from certplane.v1 import fleet_pb2 as pb
from certplane.v1 import renewal_pb2


def test_every_field_is_read() -> None:
    """Each field of the message has its own in the value; serial numbers are read as other programs show them."""
    message = pb.FleetFilter(
        hosts=["web1"],
        kinds=[renewal_pb2.HOST_KIND_SERVICE],
        disconnected_only=True,
        unheard_for=Duration(seconds=60),
        blocked_only=True,
        agent_versions=["0.1.0"],
        lacks_broker_root_sha256="AB:" * 31 + "AB",
        healths=[renewal_pb2.HEALTH_UNHEARD],
        causes=["RELOAD nginx.service"],
        states=[renewal_pb2.CertificateStatus.STATE_DUE],
        expiring_within=Duration(),
        renewing_within=Duration(seconds=1),
        profiles=["web"],
        issuers=["letsencrypt"],
        dns_names=["WWW.Example"],
        serial_numbers=["00:AF:1c"],
        public_keys_sha256=["AB"],
    )
    assert filter_of(message) == FleetFilter(
        hosts=frozenset({"web1"}),
        kinds=frozenset({IdentityKind.SERVICE}),
        disconnected_only=True,
        unheard_for=timedelta(minutes=1),
        blocked_only=True,
        agent_versions=frozenset({"0.1.0"}),
        lacks_broker_root_sha256="ab" * 32,
        healths=frozenset({HealthWord.UNHEARD}),
        causes=frozenset({"RELOAD nginx.service"}),
        states=frozenset({CertificateState.DUE}),
        expiring_within=timedelta(),
        renewing_within=timedelta(seconds=1),
        profiles=frozenset({"web"}),
        issuers=frozenset({"letsencrypt"}),
        dns_names=frozenset({"www.example"}),
        serial_numbers=frozenset({"af1c"}),
        public_keys_sha256=frozenset({"ab"}),
    )
    assert {each.name for each in message.DESCRIPTOR.fields} == set(FleetFilter.__dataclass_fields__)
    assert filter_of(pb.FleetFilter()) == FleetFilter()


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        pytest.param("hosts", {"hosts": [""]}, id="empty-text"),
        pytest.param("causes", {"causes": ["a\nb"]}, id="two-lines"),
        pytest.param("hosts", {"hosts": ["x" * 257]}, id="too-long"),
        pytest.param("profiles", {"profiles": [f"p{n}" for n in range(101)]}, id="too-many"),
        pytest.param("healths", {"healths": [99]}, id="a-health-of-a-newer-release"),
        pytest.param("kinds", {"kinds": [0]}, id="a-kind-that-says-nothing"),
        pytest.param("unheard_for", {"unheard_for": Duration(seconds=-1)}, id="negative"),
        pytest.param("expiring_within", {"expiring_within": Duration(seconds=10**10)}, id="centuries"),
        pytest.param("dns_names", {"dns_names": ["a b"]}, id="no-dns-name"),
        pytest.param("lacks_broker_root_sha256", {"lacks_broker_root_sha256": "ab"}, id="no-sha256"),
        pytest.param("serial_numbers", {"serial_numbers": ["0xg"]}, id="no-number"),
    ],
)
def test_what_is_wrong_is_named(field: str, fields: dict[str, Any]) -> None:
    """The refusal says which field it is."""
    with pytest.raises(RefusalError) as caught:
        filter_of(pb.FleetFilter(**fields))
    assert caught.value.refusal.reason is Reason.REQUEST_INVALID
    assert [each.subject for each in caught.value.refusal.violations] == [f"filter.{field}"]
