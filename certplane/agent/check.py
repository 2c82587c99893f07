"""`certplane-agent check`: everything that must be right for this host to renew, one line each.

Changes nothing on this host, at the CA or at the broker, and needs no lock: it can run beside the agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from certplane.agent.app import link, not_enrolled, probe_of
from certplane.config.files import read_private_file
from certplane.errors import CertplaneError, ConfigurationError, OperationError, RefusalError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from certplane.agent.host import Host
    from certplane.agent.model import IdentityView, Version
    from certplane.agent.settings import CertificateSettings

__all__ = ["Finding", "findings"]

_MOST_SKEW = timedelta(minutes=1)
"""What step-ca backdates a certificate by, and what it allows a token."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `text` is what was found, with its remedy if it isn't right."""

    subject: str
    ok: bool
    text: str


async def findings(host: Host) -> AsyncIterator[Finding]:
    """Look at the configuration's files, the identity, the internal CA, the broker, and each certificate's profile.

    Of a certificate's files only what is wrong is told.
    """
    settings = host.settings
    yield Finding("configuration", ok=True, text=f"{settings.source.file}: {len(settings.certificates)} certificates")
    for certificate in settings.certificates:
        try:
            await host.disk.run(host.check_outputs, certificate)
        except CertplaneError as error:
            yield _failed(f"files of {certificate.name}", error)
        if (served := await _service(host, certificate)) is not None:
            yield served
    yield await _internal_ca(host)
    identity: Version | None = None
    try:
        identity = await host.current_identity()
        if identity is not None:
            await host.disk.run(read_private_file, identity.path / "privkey.pem")
        finding = _identity(host, identity, host.clock.now())
    except CertplaneError as error:
        finding = _failed("identity", error)
    yield finding
    if identity is None:
        yield Finding("broker", ok=False, text="not asked: without an identity it lets nobody in")
        return
    view: IdentityView | CertplaneError
    try:
        view = await _ask_broker(host, identity)
    except CertplaneError as error:
        yield _failed("broker", error)
        return
    for finding in _broker_view(host, view):
        yield finding


async def _service(host: Host, certificate: CertificateSettings) -> Finding | None:
    """Whether the service serves what is in place; None where nobody can look, or nothing is in place yet."""
    probe = probe_of(certificate, host.clock)
    subject = f"service of {certificate.name}"
    try:
        version = await host.disk.run(host.certificates[certificate.name].versions.current)
    except CertplaneError as error:
        return _failed(subject, error)
    if probe is None or version is None:
        return None
    view = await probe.look(version)
    text = view.problem or f"{certificate.verify.connect if certificate.verify else ''} serves what is in place"
    return Finding(subject, ok=view.well, text=text)


async def _internal_ca(host: Host) -> Finding:
    authority = host.authority()
    try:
        return Finding("internal CA", ok=True, text=f"{await authority.check()} is the pinned one and is well")
    except CertplaneError as error:
        return _failed("internal CA", error)
    finally:
        authority.close()


def _identity(host: Host, identity: Version | None, now: datetime) -> Finding:
    if identity is None:
        return _failed("identity", not_enrolled(host.settings))
    if identity.not_after <= now:
        error = OperationError(
            f"expired at {identity.not_after:%Y-%m-%d %H:%M} UTC",
            remedy="`certplane-agent run` gets it back if the CA renews expired identities; else run "
            "`certplane-agent enroll --force` with a new token",
        )
        return _failed("identity", error)
    name = host.settings.identity.name
    if identity.dns_names and identity.dns_names != (name,):
        error = OperationError(
            f"is for {', '.join(identity.dns_names)}, but identity.name is {name}",
            remedy="correct identity.name, or run `certplane-agent enroll --force` with a token for the new name",
        )
        return _failed("identity", error)
    text = f"{name}, serial {identity.serial_number}, until {identity.not_after:%Y-%m-%d %H:%M} UTC"
    return Finding("identity", ok=True, text=text)


async def _ask_broker(host: Host, identity: Version) -> IdentityView:
    await host.disk.run(host.check_files)
    broker = link(host.settings, host)
    try:
        await broker.use_identity(identity)
        return await broker.get_identity()
    finally:
        await broker.close()


def _broker_view(host: Host, view: IdentityView) -> list[Finding]:
    settings = host.settings
    known = f"{settings.broker.url} (release {view.broker_version}) knows this host as {view.kind} {view.name}"
    found = [Finding("broker", ok=True, text=known)]
    if view.contest_time is not None:
        text = (
            f"two holders use this host's identity, since {view.contest_time:%Y-%m-%d %H:%M} UTC, and it gets no new "
            "certificates; find out who the other is, and let an operator of the broker decide "
            "(`certplane-broker identity list`)"
        )
        found.append(Finding("contest", ok=False, text=text))
    skew = host.clock.now() - view.broker_time
    if abs(skew) > _MOST_SKEW:
        side = "ahead of" if skew > timedelta() else "behind"
        text = f"this host's clock is {abs(skew).total_seconds():.0f} s {side} the broker's; set the clocks by NTP"
        found.append(Finding("clock", ok=False, text=text))
    else:
        found.append(Finding("clock", ok=True, text=f"within {_MOST_SKEW.total_seconds():.0f} s of the broker's"))
    for certificate in settings.certificates:
        allowed = certificate.profile in view.profiles
        text = f"profile {certificate.profile} is this host's"
        if not allowed:
            text = (
                f"the broker's policy doesn't give the profile {certificate.profile} to this host; it has: "
                f"{', '.join(view.profiles) or 'none'}; correct the profile, or add it to the host in policy.yml"
            )
        found.append(Finding(f"certificate {certificate.name}", ok=allowed, text=text))
    return found


def _failed(subject: str, error: CertplaneError) -> Finding:
    if isinstance(error, RefusalError):
        return Finding(subject, ok=False, text=str(error))
    if isinstance(error, ConfigurationError):
        return Finding(subject, ok=False, text="; ".join(str(problem) for problem in error.problems))
    return Finding(subject, ok=False, text=str(error))
