"""`certplane-agent check`: everything that must be right for this host to renew, one line each.

Changes nothing on this host, at the CA or at the broker, and needs no lock: it can run beside the agent.
"""

from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from typing import Protocol

from certplane.agent.host import Host
from certplane.agent.inspection import (
    Finding,
    Level,
    address_findings,
    bundles,
    certificate_findings,
    failed,
    identity_findings,
    identity_outputs,
    outputs,
    warned,
)
from certplane.agent.model import IdentityView, Version
from certplane.agent.ports import CertificateLookup
from certplane.agent.settings import CertificateSettings
from certplane.agent.wiring import link
from certplane.config.broker_urls import BrokerUrl
from certplane.errors import CertplaneError, RefusalError

_MOST_SKEW = timedelta(minutes=1)
"""What step-ca backdates a certificate by, and what it allows a token."""
_NAMES_SHOWN = 5


class BrokerLink(CertificateLookup, Protocol):
    """What is asked of the broker."""

    async def use_identity(self, identity: Version) -> None:
        """As `Broker.use_identity`."""
        ...

    async def get_identity(self) -> IdentityView:
        """As `Broker.get_identity`."""
        ...

    async def close(self) -> None:
        """End the channel."""
        ...


async def findings(host: Host, connect: Callable[[BrokerUrl], BrokerLink] | None = None) -> AsyncIterator[Finding]:
    """Look at all that a renewal needs: configuration and its files, identity, internal CA, broker, each certificate.

    Of files and hooks only what is wrong is told.

    Args:
        host: the host.
        connect: makes the link to a broker; the settings' when not given.
    """
    settings = host.settings
    count = f"{len(settings.certificates)} certificate{'' if len(settings.certificates) == 1 else 's'}"
    yield Finding("configuration", Level.OK, f"{settings.source.file}: {count}")
    for finding in await host.disk.run(lambda: [*bundles(host), *identity_outputs(host)]):
        yield finding
    yield await _internal_ca(host)
    identified = True
    async for finding in identity_findings(host):
        yield finding
        identified = identified and not (finding.subject == "identity" and finding.level is Level.FAIL)
    answer = _Answer()
    if identified and await host.current_identity() is None:
        yield Finding("broker", Level.WARN, "not checked before the identity is taken over; run this again then")
    elif identified:
        await answer.ask(host, connect or (lambda url: link(settings, host, [url])))
        for finding in answer.findings:
            yield finding
    else:
        yield Finding("broker", Level.FAIL, "not checked: the broker accepts no call without an identity")
    for certificate in settings.certificates:
        for finding in await host.disk.run(_of_outputs, host, certificate):
            yield finding
        async for finding in certificate_findings(host, certificate, answer.revoked.get(certificate.name)):
            yield finding
        if answer.view is not None:
            yield _profile(certificate, answer.view)


def _of_outputs(host: Host, certificate: CertificateSettings) -> list[Finding]:
    return list(outputs(host, certificate))


class _Answer:
    """What the brokers say: `view` is None where none can be asked, `revoked` has since when, by certificate."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.view: IdentityView | None = None
        self.revoked: dict[str, datetime] = {}

    async def ask(self, host: Host, connect: Callable[[BrokerUrl], BrokerLink]) -> None:
        """Ask each; one that fails is a warning where another one answers."""
        urls = host.settings.broker.all_urls
        for url in urls:
            subject = "broker" if len(urls) == 1 else f"broker {url}"
            try:
                await self._ask_one(host, subject, url, connect(url))
            except CertplaneError as error:
                self.findings.append(failed(subject, error))
        if self.view is not None:
            if len(urls) > 1 and any(each.level is Level.OK for each in self.findings):
                self.findings = [warned(each) for each in self.findings]
            self.findings += _about_host(host, self.view)

    async def _ask_one(self, host: Host, subject: str, url: BrokerUrl, broker: BrokerLink) -> None:
        identity = await host.current_identity()
        assert identity is not None
        try:
            await broker.use_identity(identity)
            view = await broker.get_identity()
            known = f"{url} (release {view.broker_version}) knows this host as {view.kind} {view.name}"
            self.findings.append(Finding(subject, Level.OK, known))
            self.findings += await host.disk.run(address_findings, host, subject, url, identity)
            if self.view is None:
                self.view = view
                for name, lineage in host.certificates.items():
                    current = await host.disk.run(lineage.versions.current)
                    await self._ask_revoked(broker, name, current)
        finally:
            await broker.close()

    async def _ask_revoked(self, broker: BrokerLink, name: str, current: Version | None) -> None:
        if current is None or not current.certificate_id:
            return
        try:
            revoke_time = await broker.revoke_time(current.certificate_id)
        except RefusalError:  # of another broker, or forgotten: nothing is known against it
            return
        if revoke_time is not None:
            self.revoked[name] = revoke_time


async def _internal_ca(host: Host) -> Finding:
    authority = host.authority()
    try:
        return Finding("internal CA", Level.OK, f"{await authority.check()} is the pinned CA and is healthy")
    except CertplaneError as error:
        return failed("internal CA", error)
    finally:
        authority.close()


def _about_host(host: Host, view: IdentityView) -> list[Finding]:
    found = []
    if view.contest_time is not None:
        text = (
            f"two holders use this host's identity, since {view.contest_time:%Y-%m-%d %H:%M} UTC, and it gets no new "
            "certificates; find out who the other is, and let an operator of the broker decide "
            "(`certplane-broker identity list`)"
        )
        found.append(Finding("contest", Level.FAIL, text))
    skew = host.clock.now() - view.broker_time
    if abs(skew) > _MOST_SKEW:
        side = "ahead of" if skew > timedelta() else "behind"
        text = f"this host's clock is {abs(skew).total_seconds():.0f} s {side} the broker's; set the clocks by NTP"
        found.append(Finding("clock", Level.FAIL, text))
    else:
        found.append(Finding("clock", Level.OK, f"within {_MOST_SKEW.total_seconds():.0f} s of the broker's"))
    return found


def _profile(certificate: CertificateSettings, view: IdentityView) -> Finding:
    """Whether policy gives this host the profile, with these names; else only the next renewal would tell."""
    subject = f"certificate {certificate.name}"
    if certificate.profile not in view.profiles:
        text = (
            f"the broker's policy doesn't give the profile {certificate.profile} to this host; it has: "
            f"{', '.join(view.profiles) or 'none'}; correct the profile, or add it to the host in policy.yml"
        )
        return Finding(subject, Level.FAIL, text)
    names = view.profile_names.get(certificate.profile)
    if names is None or {*names} == {*certificate.dns_names}:
        return Finding(subject, Level.OK, f"profile {certificate.profile} is this host's")
    own: set[str] = {*certificate.dns_names}
    lacking, extra = sorted({*names} - own), sorted(own - {*names})
    parts = [f"lacks {_shown(lacking)}"] if lacking else []
    parts += [f"has {_shown(extra)} besides"] if extra else []
    text = (
        f"dns_names {' and '.join(parts)}, compared with the profile {certificate.profile} in the broker's policy, and "
        "the next renewal would be refused; write the profile's names into agent.yml and run `certplane-agent reload`, "
        "or correct policy.yml"
    )
    return Finding(subject, Level.FAIL, text)


def _shown(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
