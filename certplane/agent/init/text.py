"""agent.yml as `init` writes it. Pure.

The head says who this host is and comes from the arguments alone; what follows it, the certificates, has the names that
policy has. So a file of an earlier run is known by its head before the identity is there to ask with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from certplane.agent.init.presets import NO_SERVICE, PRESETS, Service
from certplane.agent.init.wanted import Certificate, ProfileChoice, Wanted, lineage_name
from certplane.setup.yaml_text import flow, scalar

_UNKNOWN = "[]  # the profile's names, which the broker is asked for"


def head(wanted: Wanted) -> str:
    """All but the certificates."""
    url = f"url: {scalar(wanted.broker[0])}" if len(wanted.broker) == 1 else f"urls: {flow(wanted.broker)}"
    return f"""\
# Written by `certplane-agent init`, and yours from now on: after a change run `certplane-agent reload`.
identity:
  name: {scalar(wanted.name)}
  bootstrap_token: {_path(wanted.token)}  # for `certplane-agent enroll --force` alone
  step_ca: {{url: {scalar(wanted.ca_url)}, root_ca_bundle: {_path(wanted.internal_ca)}}}
broker:
  {url}
  server_ca_bundle: {_path(wanted.broker_ca)}
state_dir: {_path(wanted.state_dir)}
"""


def agent_yml(wanted: Wanted, certificates: Sequence[Certificate]) -> str:
    """The whole file."""
    if not certificates:
        return head(wanted) + "certificates: []\n"
    return head(wanted) + "certificates:\n" + "".join(_entry(each) for each in certificates)


def certificates_of(
    wanted: Wanted, choices: Sequence[ProfileChoice], names: Mapping[str, tuple[str, ...]] | None
) -> tuple[Certificate, ...]:
    """An entry for each profile; `names` has those of each profile, and is None where nobody was asked yet."""
    return tuple(
        _certificate(wanted, each.profile, each.service, None if names is None else names[each.profile])
        for each in choices
    )


def _certificate(wanted: Wanted, profile: str, service: Service | None, names: tuple[str, ...] | None) -> Certificate:
    preset = NO_SERVICE if service is None else PRESETS[service]
    name = lineage_name(profile)
    return Certificate(
        name,
        profile,
        names,
        tuple((kind, wanted.tls / f"{name}.{ending}") for kind, ending in preset.outputs),
        reload_command=f"systemctl reload {preset.unit}" if preset.unit else "",
        verify=preset.verify,
        starttls=preset.starttls,
    )


def service_lines(service: Service, certificate: Certificate) -> tuple[str, ...]:
    """How the service's own configuration names the certificate's files."""
    paths = {kind: str(path) for kind, path in certificate.outputs}
    return tuple(line.format(**paths) for line in PRESETS[service].lines)


def _entry(certificate: Certificate) -> str:
    names = certificate.dns_names
    lines = [
        f"name: {scalar(certificate.name)}",
        f"profile: {scalar(certificate.profile)}",
        f"dns_names: {_UNKNOWN if names is None else flow(names)}",
        *(f"{kind}: {_path(path)}" for kind, path in certificate.outputs),
    ]
    if certificate.reload_command:
        lines.append(f"reload_command: {_command(certificate.reload_command)}")
    if certificate.verify and names:
        server_name = next((name for name in names if not name.startswith("*.")), "")
        parts = [f"connect: {scalar(certificate.verify)}"]
        parts += [f"starttls: {certificate.starttls}"] if certificate.starttls else []
        parts += [f"server_name: {scalar(server_name)}"] if server_name else []
        lines.append(f"verify: {{{', '.join(parts)}}}")
    lines += certificate.more
    return "".join(f"{'  - ' if number == 0 else '    '}{line}\n" for number, line in enumerate(lines))


def _path(path: Path) -> str:
    return scalar(str(path))


def _command(text: str) -> str:
    words = text.split(" ")
    return text if all(scalar(word) == word for word in words) else scalar(text)
