"""The real grpcurl against the edge: every RPC can be found and called with a JSON body, and nothing without an identity."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from certplane.broker.events import AuditEvent, AuditEventType
from certplane.broker.fleet.model import HostStream
from certplane.broker.identity.access import METHODS
from certplane.broker.model import IdentityKind
from certplane.broker.renewal.model import RequestedRenewal
from certplane.errors import Reason, RefusalError, Violation
from certplane.fleet_report.model import HostFacts
from certplane.rpc import protos
from certplane.rpc.protoset import descriptor_set
from tests.support.ca import Leaf, PrivateCa
from tests.support.edge import HOST, OPERATOR, SERVICE, EdgeServer, serve_edge
from tests.support.waiting import HANG

pytestmark = pytest.mark.integration

ROLLOUT = {"selection": {"hosts": ["web1"]}, "rings": [{"name": "all", "rest": True}], "reason": "drill"}
BODIES: dict[str, dict[str, Any]] = {
    "GetTrustBundle": {"requestId": "r-1"},
    "ReportEnrollment": {"agentVersion": "0.1.0", "identitySerialNumber": "1f", "hostFacts": {"os": "Debian 12"}},
    "CreateBootstrapToken": {"identity": "web1.example", "lifetime": "60s", "dryRun": True},
    "DenyIdentity": {
        "identity": "gone.example",
        "scope": "SCOPE_NAME",
        "reason": "the machine was sold",
        "dryRun": True,
    },
    "IssueCertificate": {"profile": "web", "csrPem": "CSR", "waitDuration": "5s"},
    "RenewCertificate": {"certificateId": "c-1", "profile": "web", "csrPem": "CSR"},
    "GetOrder": {"orderId": "order-1"},
    "WatchOrder": {"orderId": "order-1"},
    "GetCertificate": {"certificateId": "c-1"},
    "ListCertificates": {"pageSize": 10},
    "StreamRenewalStatus": {
        "hello": {
            "agentVersion": "0.1.0",
            "epoch": "by-hand",
            "certificateNames": ["web"],
            "hostTime": "2026-11-23T12:00:00Z",
        }
    },
    "ListHosts": {"states": ["STATE_FAILED"]},
    "GetHost": {"host": "web1"},
    "RequestRenewal": {"selection": {"all": True}, "spreadDuration": "3600s", "reason": "drill", "dryRun": True},
    "ForgetHost": {"host": "gone.example", "reason": "the machine was sold"},
    "GetRenewalRequest": {"renewalRequestId": "r-1"},
    "DrainBroker": {"reason": "a new kernel"},
    "PlanTrustBundle": {"bundlePem": PrivateCa("other").root_pem.decode()},
    "PlanPolicy": {"hello": {"requestId": "plan-1"}},
    "PlanRollout": {"spec": ROLLOUT},
    "CreateRollout": {"spec": ROLLOUT},
    **{
        name: {"rolloutId": "r-1", "reason": "drill"}
        for name in ("PauseRollout", "ResumeRollout", "AbortRollout", "ApproveRollout", "FinishRollout")
    },
    **{name: {"rolloutId": "r-1"} for name in ("GetRollout", "ListRolloutItems", "WatchRollout")},
    "GetIncident": {"incidentId": "i-1"},
    "ForecastOrders": {"selection": {"all": True}},
    "CertificateService/RevokeCertificate": {"certificateId": "c-1", "reason": "REVOCATION_REASON_SUPERSEDED"},
    "FleetService/RevokeCertificate": {"certificateId": "c-1", "reason": "the machine was sold"},
}
"""What a method needs, where two services have one of the name with its service; an empty request is enough for others."""


class Grpcurl:
    """grpcurl with an identity, or without one."""

    def __init__(self, program: Path, edge: EdgeServer, directory: Path) -> None:
        self._program = program
        self._edge = edge
        self._directory = directory
        (directory / "ca.pem").write_bytes(edge.ca.root_pem)

    async def run(self, *arguments: str, identity: Leaf | None) -> tuple[int, str, str]:
        """Status, standard output, standard error."""
        options = ["-cacert", str(self._directory / "ca.pem"), "-max-time", f"{HANG:g}"]
        if identity is not None:
            cert, key = identity.write(self._directory, "identity")
            options += ["-cert", str(cert), "-key", str(key)]
        *before, last = arguments
        process = await asyncio.create_subprocess_exec(
            self._program,
            *options,
            *before,
            f"localhost:{self._edge.port}",
            *last.split(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
async def edge() -> AsyncIterator[EdgeServer]:
    async with serve_edge() as server:
        yield server


@pytest.fixture
def client(grpcurl: Path, edge: EdgeServer, tmp_path: Path) -> Grpcurl:
    return Grpcurl(grpcurl, edge, tmp_path)


async def test_services_are_listed_and_described(edge: EdgeServer, client: Grpcurl) -> None:
    """A known identity can list the services and read each one's definition."""
    host = edge.ca.issue([HOST])
    status, out, err = await client.run("list", identity=host)
    assert status == 0, err
    services = out.split()
    assert set(services) == {method.split("/")[1] for method in METHODS}
    for service in services:
        status, out, err = await client.run(f"describe {service}", identity=host)
        assert status == 0, err
        assert "service" in out


@pytest.mark.parametrize("method", [name for name in METHODS if name.startswith("/certplane.")])
async def test_every_method_takes_a_json_body(edge: EdgeServer, client: Grpcurl, method: str) -> None:
    """Each RPC of ours is called with JSON and answers with JSON."""
    now = edge.clock.now()
    gone = HostStream("gone.example", HostFacts("0.1.0"), "1f", now, "192.0.2.1", now, now, now)
    await edge.stores.fleet.record_stream(gone)
    await edge.stores.audit.append([AuditEvent("before-1", now, AuditEventType.BROKER_STARTED)])
    await edge.plans.set_requested([], OPERATOR, RequestedRenewal("r-1", 0, 0), now)
    *_, service, rpc = re.split("[./]", method)
    body = json.dumps(BODIES.get(f"{service}/{rpc}") or BODIES.get(rpc, {}))
    kinds = METHODS[method].kinds
    name = HOST if IdentityKind.HOST in kinds else OPERATOR if IdentityKind.OPERATOR in kinds else SERVICE
    endless: dict[str, Callable[[], object]] = {
        "WatchRenewals": edge.hub.watchers.close,
        "WatchOrders": edge.orders.watchers.close,
        "WatchMyCertificates": partial(edge.watches.send_away, "the test is over"),
        "TailAuditEvents": partial(setattr, edge, "stopping", True),
    }  # they end with the broker alone
    if (end := endless.get(rpc)) is not None:
        asyncio.get_running_loop().call_later(1, end)
    status, out, err = await client.run("-d", body, method.removeprefix("/"), identity=edge.ca.issue([name]))
    if BODIES.get(rpc, {}).keys() & {"rolloutId", "incidentId"}:
        assert "ORDER_NOT_FOUND" in err, err  # there is none: what was asked has been understood
        return
    if rpc == "CreateBootstrapToken":
        assert "BOOTSTRAP_NOT_CONFIGURED" in err, err  # so is this one
        return
    if rpc == "CreateRollout":
        assert "selects no certificate in force" in err, err
        return
    assert status == 0 or (rpc in endless and "DRAINING" in err), err
    first, _ = json.JSONDecoder().raw_decode(out)  # a stream's messages follow each other
    assert isinstance(first, dict)


async def test_health(edge: EdgeServer, client: Grpcurl) -> None:
    """Health answers a known identity."""
    body = '{"service": "certplane.v1.CertificateService"}'
    status, out, err = await client.run("-d", body, "grpc.health.v1.Health/Check", identity=edge.ca.issue([HOST]))
    assert status == 0, err
    assert json.loads(out) == {"status": "SERVING"}


async def test_refusal_is_readable(edge: EdgeServer, client: Grpcurl) -> None:
    """A refusal shows its reason and what is wrong with which field."""
    edge.authority.error = RefusalError(Reason.CSR_INVALID, "no names", violations=[Violation("csr_pem", "no names")])
    body = json.dumps(BODIES["IssueCertificate"])
    status, _, err = await client.run(
        "-d", body, "certplane.v1.CertificateService/IssueCertificate", identity=edge.ca.issue([HOST])
    )
    assert status != 0
    for part in ("InvalidArgument", "CSR_INVALID", "certplane", "csr_pem"):
        assert part in err


async def test_nothing_without_an_identity(edge: EdgeServer, client: Grpcurl) -> None:
    """Without a certificate not even reflection answers."""
    status, out, _ = await client.run("list", identity=None)
    assert (status != 0, out) == (True, "")
    assert edge.denials.events == []


ROOT = Path(__file__).parents[2]


def _commands(heading: str) -> list[str]:
    """The blocks of a section of docs/cookbook.md."""
    section = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    return re.findall(r"```sh\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)


def _typed(command: str, grpcurl: Path, folder: Path) -> str:
    """Run a documented block in an empty folder; with `python3` as the one that has Certplane."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "bin" / "python3").chmod(0o755)
    path = f"{folder / 'bin'}:{grpcurl.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", "-ec", command], cwd=folder, env={"PATH": path}, capture_output=True, text=True, timeout=HANG, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("number", [0, 1], ids=["descriptors", "proto-files"])
def test_without_reflection(grpcurl: Path, tmp_path: Path, number: int) -> None:
    """The documented commands describe the services without asking a broker, what they import included."""
    said = _typed(_commands("grpcurl without reflection")[number], grpcurl, tmp_path)
    assert "rpc IssueCertificate" in said


@pytest.mark.parametrize("files", ["descriptors", "proto-files"])
async def test_a_call_without_reflection(edge: EdgeServer, client: Grpcurl, tmp_path: Path, files: str) -> None:
    """With what the installed program writes, a call and its refusal are read without reflection."""
    if files == "descriptors":
        (tmp_path / "certplane.protoset").write_bytes(descriptor_set())
        options = ["-protoset", str(tmp_path / "certplane.protoset")]
    else:
        protos.lay(tmp_path / "protos")
        names = ["certplane/v1/enrollment", "certplane/v1/certificate", "google/rpc/error_details"]
        options = [f"-import-path={tmp_path / 'protos'}", *(f"-proto={name}.proto" for name in names)]
    host = edge.ca.issue([HOST])
    status, out, err = await client.run(*options, "certplane.v1.EnrollmentService/GetIdentity", identity=host)
    assert status == 0, err
    assert HOST in out
    edge.authority.error = RefusalError(Reason.CSR_INVALID, "no names", violations=[Violation("csr_pem", "no names")])
    body = json.dumps(BODIES["IssueCertificate"])
    status, _, err = await client.run(
        *options, "-d", body, "certplane.v1.CertificateService/IssueCertificate", identity=host
    )
    assert status != 0
    assert "CSR_INVALID" in err
    assert "csr_pem" in err or "csrPem" in err


def test_all_files_are_in_the_set() -> None:
    """A service that is added to proto/ is in the descriptors too."""
    names = {file.name for file in FileDescriptorSet.FromString(descriptor_set()).file}
    assert {f"certplane/v1/{each.name}" for each in (ROOT / "proto/certplane/v1").glob("*.proto")} <= names
    assert "google/rpc/status.proto" in names
