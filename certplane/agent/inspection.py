"""What `check` finds on this host itself: files, hooks, services, and how each certificate is. Nothing is changed.

A finding is `ok`, a `warn`ing (it may pass by itself, or be meant) or a `FAIL`ure: something that stops a renewal, or
that hurts whoever uses the service now.
"""

import importlib
import os
import pwd
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from certplane.agent.host import IDENTITY, Host
from certplane.agent.install.hook_programs import hook_problem
from certplane.agent.install.takeover import NotTakenOverError
from certplane.agent.install.trial import Obstacle, own_obstacles
from certplane.agent.lineage import Lineage
from certplane.agent.link.diagnosis import connection_error
from certplane.agent.link.server_cas import ServerCas
from certplane.agent.model import ServiceView, Version
from certplane.agent.renewal.due import aborted_rollout, due_time, waiting_text
from certplane.agent.renewal.facts import LineageFacts
from certplane.agent.renewal.health import lineage_health
from certplane.agent.renewal.plan import newest_version
from certplane.agent.renewal.status import revoked
from certplane.agent.settings import CertificateSettings
from certplane.agent.takeover import managers_of
from certplane.agent.wiring import not_enrolled, probe_of
from certplane.config.broker_urls import BrokerUrl
from certplane.config.bundles import read_ca_bundle
from certplane.config.files import read_private_file
from certplane.errors import CertplaneError, ConfigurationError, OperationError
from certplane.rpc.otlp import why_unusable
from certplane.rpc.proxy import proxy_for
from certplane.runtime.disk_errors import as_user, this_user, user_text
from certplane.runtime.health import Health, HealthWord, Severity


class Level(StrEnum):
    """What a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


_LATER = (
    "certplane.agent.enrollment.stepca",
    "certplane.stepca.token",
    "certplane.agent.enrollment.tokenfile",
    "encodings.idna",
)
"""Modules that are imported when they are first needed."""
_LEVELS = {Severity.OK: Level.OK, Severity.WARNING: Level.WARN, Severity.CRITICAL: Level.FAIL}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `text` is what was found, with its remedy if it isn't right.

    `health` is how the certificate is, in one word; None where that isn't what was looked at.
    """

    subject: str
    level: Level
    text: str
    health: HealthWord | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing has to be done."""
        return self.level is not Level.FAIL


def failed(subject: str, error: CertplaneError) -> Finding:
    """A finding out of an error, in one line."""
    if isinstance(error, ConfigurationError):
        return Finding(subject, Level.FAIL, "; ".join(str(problem) for problem in error.problems))
    return Finding(subject, Level.FAIL, str(error))


def warned(finding: Finding) -> Finding:
    """The same as a warning, where it is a failure."""
    return replace(finding, level=Level.WARN) if finding.level is Level.FAIL else finding


def act_as_owner(host: Host) -> Finding | None:
    """As root, become the user whose agent this is: what root may do says nothing of what that user may.

    For a program that only looks and then ends, since there is no way back.
    """
    try:
        owner = host.state_dir.stat()
    except OSError:  # not enrolled yet, or told by what follows
        return None
    if owner.st_uid == os.geteuid():
        return None
    name = user_text(owner.st_uid)
    if os.geteuid() == 0:
        try:
            account = pwd.getpwuid(owner.st_uid)
            for module in _LATER:  # which that user may have no way to, in root's virtual environment
                importlib.import_module(module)
            os.initgroups(account.pw_name, account.pw_gid)
            os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
            os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)
        except (KeyError, OSError):
            pass
        else:
            return Finding("user", Level.OK, f"runs as {name}, the owner of {host.state_dir}")
    text = f"this check runs as {this_user()}, but {host.state_dir} belongs to {name}; run it as {name}"
    line = as_user(owner.st_uid, f"certplane-agent -c {host.settings.source.file} check")
    return Finding("user", Level.WARN, f"{text}: {line}")


def bundles(host: Host) -> Iterator[Finding]:
    """The files of CA certificates: readable for this user, and until when of use; and what traces need. Blocks."""
    settings, now = host.settings, host.clock.now()
    identity = settings.identity
    if (unusable := why_unusable(settings.tracing.collector)) is not None:
        yield Finding(f"tracing.{unusable.key}", Level.FAIL, f"{unusable.message}; {unusable.remedy}")
    for key, path, only_cas in (
        ("broker.server_ca_bundle", settings.broker.server_ca_bundle, False),
        ("identity.issuer_ca_bundle", identity.issuer_ca_bundle, True),
        ("identity.step_ca.root_ca_bundle", identity.step_ca.root_ca_bundle, True),
    ):
        if path is None:
            continue
        try:
            bundle = read_ca_bundle(path, at=settings.source.problem(key, ""), only_cas=only_cas)
        except ConfigurationError as error:
            yield failed(key, error)
            continue
        if problem := bundle.nothing_left(now):
            yield Finding(key, Level.FAIL, f"{path} {problem}; put the CA's present certificate there")
        for warning in bundle.warnings(now) if not problem else ():
            yield Finding(key, Level.WARN, f"{path}: {warning}")


def address_findings(host: Host, subject: str, url: BrokerUrl, identity: Version) -> list[Finding]:
    """What a handshake finds at each address of a broker's name that has several of a family. Blocks.

    An address that isn't well is a warning: the agent goes to another one.
    """
    if proxy_for(url.host, host.settings.broker.proxy) is not None:  # which asks for the name itself
        return []
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # a resolver that answered a moment ago: the calls say more
        return []
    families = {str(where[0]): family for family, *_, where in found}
    addresses = [address for address, family in families.items() if [*families.values()].count(family) > 1]
    if not addresses:  # one broker may have an address of each family, and listen on one of them
        return []
    cas = ServerCas(host.settings.broker.server_ca_bundle).read(host.clock.now())
    errors = {address: connection_error(str(url), cas, identity, address=address) for address in addresses}
    findings = []
    for address, error in errors.items():
        place = f"{subject} at {address}"
        well = Finding(place, Level.OK, "its name, its CA and this host's identity are accepted")
        findings.append(well if error is None else warned(failed(place, error)))
    return findings


def outputs(host: Host, certificate: CertificateSettings) -> Iterator[Finding]:
    """Whether the next version could be installed, output by output, and its hook run. Blocks."""
    subject = f"files of {certificate.name}"
    obstacles: list[Obstacle] = []
    try:
        obstacles = host.obstacles(certificate.name)
        for obstacle in obstacles:
            yield Finding(subject, Level.FAIL, str(obstacle))
        if warning := host.check_outputs(certificate):
            yield Finding(subject, Level.WARN, warning)
    except CertplaneError as error:
        if not obstacles:  # which may be the same
            yield failed(subject, error)
    try:
        if text := host.would_take_over(certificate.name):
            yield Finding(subject, Level.OK, text)
    except NotTakenOverError as error:
        yield Finding(subject, Level.WARN, f"what stands at its paths is not taken over: {error}")
    except CertplaneError:  # told by what is in the way
        pass
    for manager in managers_of(host.outputs[certificate.name]):
        yield Finding(subject, Level.WARN, str(manager))
    if certificate.reload_command and (problem := hook_problem(certificate.reload_command)):
        yield Finding(f"hook of {certificate.name}", Level.FAIL, f"reload_command: {problem}")


def identity_outputs(host: Host) -> Iterator[Finding]:
    """The same for where other programs read the identity, and for `state_dir` itself. Blocks."""
    for obstacle in host.obstacles(IDENTITY):
        yield Finding("files of the identity", Level.FAIL, str(obstacle))
    for level, files, folders in (
        (Level.FAIL, ["lock"], ["control"]),
        (Level.WARN, ["link.json"], ["reports"]),  # renewals go on without
    ):
        for obstacle in own_obstacles(host.state_dir, files=files, folders=folders):
            yield Finding("files of the agent", level, str(obstacle))


async def certificate_findings(
    host: Host, certificate: CertificateSettings, revoke_time: datetime | None = None
) -> AsyncIterator[Finding]:
    """What the service serves, and how the certificate is.

    Args:
        host: the host.
        certificate: which.
        revoke_time: since when the broker has it as revoked, where this host hasn't heard of it.
    """
    lineage = host.certificates[certificate.name]
    subject = f"service of {certificate.name}"
    try:
        facts = await lineage.facts(host.clock.now())
        view = await _look(host, certificate, facts.current)
    except CertplaneError as error:
        yield failed(f"state of {certificate.name}", error)
        return
    if view is not None:
        address = certificate.verify.connect if certificate.verify else ""
        text = view.problem or f"{address} serves what is in place"
        yield Finding(subject, Level.OK if view.well else Level.FAIL, text)
    elif (problem := await _address_problem(host, certificate)) != "":
        yield Finding(subject, Level.FAIL, problem)
    yield _state(host, lineage, facts, seen=view, revoke_time=revoke_time)


def _state(
    host: Host, lineage: Lineage, facts: LineageFacts, *, seen: ServiceView | None, revoke_time: datetime | None
) -> Finding:
    now = host.clock.now()
    if revoke_time is not None and facts.current is not None:
        facts = replace(facts, status=revoked(facts.status, facts.current.number, now))
    health = lineage_health(lineage.spec, facts, now, seen=seen)
    return _health_finding(f"state of {lineage.name}", health, lineage, facts)


def _health_finding(subject: str, health: Health, lineage: Lineage, facts: LineageFacts) -> Finding:
    if health.word is HealthWord.OK and facts.current is not None:
        current, due = facts.current, due_time(lineage.spec, facts.current)
        text = f"version {current.number} until {_text(current.not_after)}, renewed from {_text(due)} on"
        if facts.status.renew_reason:
            text = f"{text}: {facts.status.renew_reason}"
        if facts.status.activate_after is not None:
            status, aborted = facts.status, aborted_rollout(newest_version(facts.versions))
            until = _text(facts.status.activate_after)
            text = f"{text}; {waiting_text(status.issued_version, status.held_by_rollout_id, aborted, until)}"
    else:
        text = f"{health.text}; {health.remedy}" if health.remedy else health.text
    return Finding(subject, _LEVELS[health.severity], f"{health.word}: {text}", health.word)


async def _look(host: Host, certificate: CertificateSettings, current: Version | None) -> ServiceView | None:
    """What the service presents; None where nobody can look, or nothing is in place yet."""
    probe = probe_of(certificate, host.clock)
    return None if probe is None or current is None else await probe.look(current)


async def _address_problem(host: Host, certificate: CertificateSettings) -> str:
    """Why the look would never find the service; it may not run before it has a certificate."""
    if certificate.verify is None:
        return ""
    connect = certificate.verify.connect
    return await host.disk.run(_resolution_problem, connect.host, connect.port)


def _resolution_problem(name: str, port: int) -> str:
    try:
        socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "no host name"
        return f"{name} of verify.connect can't be found ({said}); correct it, or this host's resolver"
    return ""


async def identity_findings(host: Host) -> AsyncIterator[Finding]:
    """The host's own certificate, or what is there to get one."""
    settings, now = host.settings, host.clock.now()
    try:
        identity = await host.current_identity()
        if identity is None:
            text = await host.would_take_over_identity()
            yield Finding("identity", Level.OK, text) if text else failed("identity", not_enrolled(settings))
            for finding in await host.disk.run(_token, host):
                yield finding
            return
        await host.disk.run(read_private_file, identity.path / "privkey.pem")
        facts = await host.identity.facts(now)
    except CertplaneError as error:
        yield failed("identity", error)
        return
    yield _identity(host, identity, now)
    health = lineage_health(host.identity.spec, facts, now, identity=True)
    if health.word not in {HealthWord.OK, HealthWord.EXPIRED}:  # the identity's own line has said that
        yield _health_finding("state of the identity", health, host.identity, facts)


def _identity(host: Host, identity: Version, now: datetime) -> Finding:
    if identity.not_after <= now:
        error = OperationError(
            f"expired at {_text(identity.not_after)}",
            remedy="`certplane-agent run` gets it back if the CA renews expired identities; else run "
            "`certplane-agent enroll --force` with a new token",
        )
        return replace(failed("identity", error), health=HealthWord.EXPIRED)
    name = host.settings.identity.name
    if identity.dns_names and identity.dns_names != (name,):
        error = OperationError(
            f"is for {', '.join(identity.dns_names)}, but identity.name is {name}",
            remedy="correct identity.name, or run `certplane-agent enroll --force` with a token for the new name",
        )
        return failed("identity", error)
    text = f"{name}, serial {identity.serial_number}, until {_text(identity.not_after)}"
    return Finding("identity", Level.OK, text)


def _token(host: Host) -> list[Finding]:
    """Whether the token that waits would make the right identity: it can be used once."""
    from certplane.agent.enrollment.tokenfile import read_token_file  # noqa: PLC0415
    from certplane.stepca.token import check_token, parse_token  # noqa: PLC0415 - as `Host.authority`

    settings = host.settings
    path: Path | None = settings.identity.bootstrap_token
    if path is None or not path.exists():
        return []
    try:
        token = parse_token(read_token_file(path, settings.source.problem))
        pinned = settings.identity.step_ca.fingerprint
        roots = [pinned] if pinned else [token.root_sha256]  # with a bundle alone the CA's own roots are compared later
        check_token(token, names=[settings.identity.name], root_sha256=roots, now=host.clock.now())
    except CertplaneError as error:
        return [failed("token", error)]
    if token.warning:
        return [Finding("token", Level.WARN, token.warning)]
    return [Finding("token", Level.OK, f"{path} is for {settings.identity.name}, and unspent as far as is known here")]


def _text(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
