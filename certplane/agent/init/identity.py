"""As the agent's user: get the identity if there is none yet, and ask the broker what policy gives to it.

Runs in the process of `certplane.setup.account.as_account`. No agent.yml is there: the settings are those that the text
will have, so that the file is written once, whole. The state's lock is taken for an enrollment alone; an agent that
runs already keeps it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from certplane.agent.host import Host
from certplane.agent.settings import AgentSettings
from certplane.agent.wiring import link
from certplane.errors import CertplaneError, OperationError, Reason, RefusalError
from certplane.runtime.failpoints import failpoint
from certplane.runtime.progress import Progress

FAILPOINTS = ("init.enrolled", "init.granted")
"""Beside `certplane.agent.enrollment.identity.FAILPOINTS`: where a test may end this module's work."""

_LATER = (
    "certplane.agent.enrollment.identity",
    "certplane.agent.enrollment.stepca",
    "certplane.stepca.token",
    "certplane.agent.enrollment.tokenfile",
    "certplane.agent.install.lock",
    "encodings.idna",
)
_BROKER_TIME = timedelta(seconds=10)
"""For one answer; a person waits."""


@dataclass(frozen=True, slots=True)
class Granted:
    """What came of it.

    Attributes:
        enrolled: whether the identity is new.
        until: the end of the identity, RFC 3339.
        names: the names of each profile that policy gives to this host.
        unnamed: profiles whose names the broker doesn't say.
    """

    enrolled: bool
    until: str
    names: Mapping[str, tuple[str, ...]]
    unnamed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For a pipe."""
        names = {profile: [*each] for profile, each in self.names.items()}
        return {"enrolled": self.enrolled, "until": self.until, "names": names, "unnamed": [*self.unnamed]}

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> Granted:
        """What `to_json` made."""
        names = {profile: tuple(each) for profile, each in members["names"].items()}
        return cls(members["enrolled"], members["until"], names, tuple(members["unnamed"]))


def load() -> None:
    """Import what is needed later, while root still may."""
    for module in _LATER:
        importlib.import_module(module)


async def why_no_identity(host: Host) -> str:
    """Why a token is needed; empty where an identity is in force here, or is ready to be put in force.

    Raises:
        OperationError: it is another name's.
    """
    identity = await host.current_identity()
    if identity is None:
        return "this host has no identity yet"
    name = host.settings.identity.name
    if identity.dns_names and name not in identity.dns_names and "://" not in name:
        raise OperationError(
            f"{host.state_dir} has the identity {', '.join(identity.dns_names)} already",
            remedy="give that name, or another --state-dir; to give this host another name, "
            "docs/machines.md, `A host is replaced`",
        )
    if identity.not_after <= host.clock.now():
        return (
            f"this host's identity ended at {identity.not_after:%Y-%m-%d %H:%M} UTC (the agent gets it back by itself "
            "where the CA renews expired ones)"
        )
    return ""


async def obtain(settings: AgentSettings, token: str, progress: Progress) -> Granted:
    """Enroll unless that was done, then ask.

    Args:
        settings: of the agent.yml that will be.
        token: the one-time token; empty where there is none.
        progress: told each step.

    Raises:
        CertplaneError: the CA or the broker refused, or can't be reached.
    """
    host = Host(settings)
    try:
        current = await host.disk.run(host.identity.versions.current)
        enrolled = current is None or bool(await why_no_identity(host))
        if enrolled:
            with host.lock():
                await host.enroll(progress, force=current is not None, token=token)
            failpoint("init.enrolled")
        granted = await _ask(host, progress, enrolled=enrolled)
        failpoint("init.granted")
        return granted
    finally:
        host.close()


async def _ask(host: Host, progress: Progress, *, enrolled: bool) -> Granted:
    identity = await host.current_identity()
    assert identity is not None
    host.check_files()
    progress.step("broker", "asking what policy gives to this host")
    broker = link(host.settings, host)
    try:
        await broker.use_identity(identity)
        view = await broker.get_identity()
    except CertplaneError as error:
        raise _not_told(host.settings.identity.name, error) from error
    finally:
        await broker.close()
    progress.done("broker", f"knows this host as {view.kind} {view.label or view.name}")
    unnamed = tuple(profile for profile in view.profiles if profile not in view.profile_names)
    return Granted(enrolled, f"{identity.not_after:%Y-%m-%dT%H:%M:%SZ}", view.profile_names, unnamed)


def _not_told(name: str, error: CertplaneError) -> OperationError:
    """The broker's refusal to somebody who has an identity by now, and mostly a policy that doesn't have it yet."""
    if isinstance(error, RefusalError) and error.refusal.reason is Reason.IDENTITY_UNKNOWN:
        return OperationError(
            f"this host is enrolled as {name}, but the broker's policy has no such host",
            remedy=f"have it added: `certplanectl host add {name} --profile PROFILE` shows the line for policy.yml; "
            "then run the same command again; it needs no new token",
        )
    return OperationError(
        f"this host is enrolled as {name}, but the broker doesn't say what it may have: {error}",
        remedy="mend that and run the same command again; it needs no new token",
    )
