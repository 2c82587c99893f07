"""The access table has a row for each method of each service that is served, and says what the proto files say."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection_pb2

from certplane.broker.identity.access import METHODS, check_access
from certplane.broker.model import Caller, IdentityKind
from certplane.broker.services.operations import OPERATION_SERVICES
from certplane.errors import Reason, RefusalError
from tests.support.callers import caller

PROTO = Path(__file__).parents[4] / "proto" / "certplane" / "v1"

SERVICES = [
    service.full_name
    for file in PROTO.glob("*.proto")
    for service in import_module(f"certplane.v1.{file.stem}_pb2").DESCRIPTOR.services_by_name.values()
]

CALLERS = {
    "any identity that policy knows": frozenset(IdentityKind),
    "hosts and services": frozenset({IdentityKind.HOST, IdentityKind.SERVICE}),
    "hosts": frozenset({IdentityKind.HOST}),
    "services": frozenset({IdentityKind.SERVICE}),
    "operators": frozenset({IdentityKind.OPERATOR}),
    "operators and services": frozenset({IdentityKind.OPERATOR, IdentityKind.SERVICE}),
}

ROLES = {
    "": frozenset[str](),
    "operator": frozenset({"operator"}),
    "viewer or operator": frozenset({"viewer", "operator"}),
    "admin": frozenset({"admin"}),
}


def served_methods() -> set[str]:
    methods = set()
    for name in (*SERVICES, *OPERATION_SERVICES):
        # Reflection v1 has v1alpha's methods under another package's name; its descriptor is made when a server is.
        known = name.replace("reflection.v1.", "reflection.v1alpha.")
        service: ServiceDescriptor = descriptor_pool.Default().FindServiceByName(known)
        methods |= {f"/{name}/{method.name}" for method in service.methods}
    return methods


def test_every_served_method_has_a_row() -> None:
    """No method is served that the table doesn't know, and the table knows none that isn't served."""
    assert reflection_pb2.DESCRIPTOR is not None
    assert set(METHODS) == served_methods()


def test_rows_say_what_the_proto_files_say() -> None:
    """Each RPC's comment ends with its callers, and the table agrees."""
    found = {}
    for file in PROTO.glob("*.proto"):
        text = file.read_text()
        service = re.search(r"^service (\w+)", text, re.MULTILINE)
        assert service is not None
        for told, method in re.findall(r"// Callers: (.*)\.\n  rpc (\w+)", text):
            callers, _, roles = told.partition(", with the role ")
            found[f"/certplane.v1.{service[1]}/{method}"] = (CALLERS[callers], ROLES[roles])
    ours = {
        method: (access.kinds, access.roles) for method, access in METHODS.items() if method.startswith("/certplane.")
    }
    assert found == ours


def test_only_issuing_calls_may_start_orders() -> None:
    """What is refused while the broker drains is what may start an order, and nothing else."""
    assert {method.rpartition("/")[2] for method, access in METHODS.items() if access.issuing} == {
        "IssueCertificate",
        "RenewCertificate",
    }


@pytest.mark.parametrize(
    ("method", "kind", "allowed"),
    [
        pytest.param("/certplane.v1.CertificateService/IssueCertificate", IdentityKind.HOST, True, id="host issues"),
        pytest.param("/certplane.v1.CertificateService/IssueCertificate", IdentityKind.OPERATOR, False, id="operator"),
        pytest.param("/grpc.channelz.v1.Channelz/GetServers", IdentityKind.OPERATOR, True, id="operator sees channelz"),
        pytest.param("/grpc.channelz.v1.Channelz/GetServers", IdentityKind.SERVICE, False, id="service doesn't"),
        pytest.param("/x.Service/Method", IdentityKind.OPERATOR, False, id="no row"),
    ],
)
def test_check(method: str, kind: IdentityKind, allowed: bool) -> None:
    """A caller of another kind, and any caller of a method without a row, is refused with ROLE_REQUIRED."""
    who: Caller = caller(kind=kind)
    if allowed:
        assert check_access(METHODS.get(method), who) is METHODS[method]
        return
    with pytest.raises(RefusalError) as caught:
        check_access(METHODS.get(method), who)
    assert caught.value.refusal.reason is Reason.ROLE_REQUIRED


@pytest.mark.parametrize(
    ("method", "kind", "roles", "allowed"),
    [
        pytest.param("RenewalService/WatchRenewals", IdentityKind.OPERATOR, ("viewer",), True, id="viewer-watches"),
        pytest.param("RenewalService/WatchRenewals", IdentityKind.SERVICE, ("operator",), True, id="service-watches"),
        pytest.param("RenewalService/WatchRenewals", IdentityKind.OPERATOR, (), False, id="no-role"),
        pytest.param("RenewalService/WatchRenewals", IdentityKind.HOST, ("operator",), False, id="host-watches"),
        pytest.param("RenewalService/StreamRenewalStatus", IdentityKind.OPERATOR, ("operator",), False, id="no-host"),
        pytest.param("FleetService/ListHosts", IdentityKind.OPERATOR, ("viewer",), True, id="viewer-lists"),
        pytest.param("FleetService/GetHost", IdentityKind.SERVICE, ("billing",), False, id="another-role"),
        pytest.param("FleetService/RequestRenewal", IdentityKind.OPERATOR, ("viewer",), False, id="viewer-requests"),
        pytest.param("FleetService/RequestRenewal", IdentityKind.OPERATOR, ("x", "operator"), True, id="operator"),
        pytest.param("PolicyService/GetPolicy", IdentityKind.OPERATOR, ("viewer",), True, id="viewer-sees-policy"),
        pytest.param("PolicyService/GetPolicy", IdentityKind.OPERATOR, (), False, id="no-role-no-policy"),
        pytest.param("PolicyService/PlanPolicy", IdentityKind.SERVICE, ("viewer",), True, id="service-plans"),
        pytest.param("PolicyService/PlanPolicy", IdentityKind.HOST, ("operator",), False, id="host-plans"),
        pytest.param("PolicyService/ReloadPolicy", IdentityKind.OPERATOR, ("viewer",), False, id="viewer-reloads"),
        pytest.param("PolicyService/ReloadPolicy", IdentityKind.OPERATOR, ("operator",), True, id="operator-reloads"),
        pytest.param("PolicyService/ReloadPolicy", IdentityKind.OPERATOR, ("admin",), True, id="admin-reloads"),
        pytest.param("RolloutService/CreateRollout", IdentityKind.SERVICE, ("admin",), True, id="admin-rolls-out"),
        pytest.param("FleetService/ListHosts", IdentityKind.OPERATOR, ("admin",), True, id="admin-lists"),
        pytest.param("FleetService/ListHosts", IdentityKind.HOST, ("admin",), False, id="a-host-is-no-admin"),
        pytest.param(
            "EnrollmentService/CreateBootstrapToken", IdentityKind.OPERATOR, ("admin",), True, id="admin-token"
        ),
        pytest.param(
            "EnrollmentService/CreateBootstrapToken", IdentityKind.OPERATOR, ("operator",), False, id="no-token"
        ),
        pytest.param(
            "EnrollmentService/CreateBootstrapToken", IdentityKind.SERVICE, ("admin",), False, id="no-service"
        ),
        pytest.param("EnrollmentService/DenyIdentity", IdentityKind.OPERATOR, ("operator",), False, id="no-denying"),
    ],
)
def test_roles(method: str, kind: IdentityKind, roles: tuple[str, ...], allowed: bool) -> None:
    """What is the operators' wants a role, and one that may change something is no viewer's."""
    who = caller(kind=kind, roles=roles)
    access = METHODS[f"/certplane.v1.{method}"]
    if allowed:
        assert check_access(access, who) is access
        return
    with pytest.raises(RefusalError) as caught:
        check_access(access, who)
    assert caught.value.refusal.reason is Reason.ROLE_REQUIRED
