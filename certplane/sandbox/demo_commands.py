"""The commands that a user may try while the demo is left running, ready to be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from certplane.sandbox import parts
from certplane.sandbox.deployment import Deployment, Host


def to_try(deployment: Deployment, host: Host, operator: Path, programs: Path, process: int) -> str:
    """The text that `--keep` ends with.

    Args:
        deployment: what runs.
        host: the enrolled host, whose agent runs too.
        operator: ctl.yml of an enrolled operator, from the deployment's folder.
        programs: where certplane-agent and certplane-broker are installed.
        process: the demo's process id.
    """
    grpcurl = parts.find("grpcurl")
    folders = [programs, *([grpcurl.path.parent] if isinstance(grpcurl, parts.Part) else [])]
    path = ":".join(dict.fromkeys(shlex.quote(str(folder)) for folder in folders))
    sections = [
        f"The broker and the agent of {host.name} run. In another terminal:",
        _indented([f"cd {shlex.quote(str(deployment.folder))}", f"export PATH={path}:$PATH"]),
        "the host:",
        _indented(_agent_commands(deployment, host)),
    ]
    if isinstance(grpcurl, parts.Part):
        sections += ["its interface, as the host sees it:", _indented(_grpcurl_commands(deployment, host))]
    sections += [
        "the fleet, as the operator alice (`watch` until Ctrl-C):",
        _indented(_fleet_commands(operator)),
        "the broker (what it is told of an identity holds within a second):",
        _indented(_broker_commands(host)),
    ]
    sections += ["Ctrl-C stops everything, and so does:", _indented([f"kill {process}"])]
    return "\n".join(sections)


def _agent_commands(deployment: Deployment, host: Host) -> Iterator[str]:
    agent = f"certplane-agent -c {host.config.relative_to(deployment.folder)}"
    for command in ("status", "check", "renew site"):
        yield f"{agent} {command}"
    yield f"tail {host.folder.relative_to(deployment.folder)}/agent.log"


def _fleet_commands(operator: Path) -> Iterator[str]:
    ctl = f"certplanectl -c {operator}"
    for command in (
        "summary",
        "fleet",
        "watch",
        "host web1",
        "renew --host web1 --profile site --reason 'trying it' --yes",
    ):
        yield f"{ctl} {command}"


def _broker_commands(host: Host) -> Iterator[str]:
    broker = "certplane-broker -c broker/broker.yml"
    yield f"{broker} audit tail"
    yield f"{broker} certs list"
    yield f"{broker} policy validate --policy broker/policy.yml"
    yield f"{broker} account show"
    yield f"{broker} identity deny --name {host.name} --reason 'trying it'"
    yield f"{broker} identity allow --name {host.name}"
    yield "tail broker/broker.log"


def _grpcurl_commands(deployment: Deployment, host: Host) -> Iterator[str]:
    tls = host.folder.relative_to(deployment.folder) / "tls"
    call = f"grpcurl -cacert broker/root.crt -cert {tls}/identity.crt -key {tls}/identity.key"
    address = f"localhost:{deployment.broker_port}"
    yield f"{call} {address} list"
    yield f"{call} {address} certplane.v1.EnrollmentService/GetIdentity"
    yield f"{call} -d '{{\"page_size\": 2}}' {address} certplane.v1.CertificateService/ListCertificates"
    yield f'{call} -d \'{{"service": "certplane.v1.CertificateService"}}\' {address} grpc.health.v1.Health/Check'


def _indented(commands: Iterator[str] | list[str]) -> str:
    return "".join(f"  {command}\n" for command in commands)
