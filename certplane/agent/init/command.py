"""`certplane-agent init` as a person sees it: each step, and what to do next.

The order keeps a token from being spent for nothing: the arguments; the CA's root and what is on this host already; the
token, as far as it can be judged here; the folders; the identity; what policy gives; agent.yml. A run that stops
anywhere is finished by running the same command again.
"""

from __future__ import annotations

import asyncio
import contextlib
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from certplane.agent.host import Host
from certplane.agent.init import identity
from certplane.agent.init.arguments import PROGRAM, wanted_by
from certplane.agent.init.found import find
from certplane.agent.init.identity import Granted
from certplane.agent.init.sources import Taken, shown, taken
from certplane.agent.init.text import agent_yml, certificates_of, head, service_lines
from certplane.agent.init.wanted import Certificate, ProfileChoice, Wanted
from certplane.agent.settings import AgentSettings, settings_of
from certplane.config.document import Document
from certplane.config.files import read_file
from certplane.errors import CertplaneError, OperationError
from certplane.runtime.clock import SystemClock
from certplane.runtime.command import OK
from certplane.runtime.failpoints import failpoint
from certplane.runtime.progress import open_progress
from certplane.setup.account import Account, EndedError, account, as_account
from certplane.setup.apply import apply, refuse_differences, would
from certplane.setup.asking import Asker
from certplane.setup.internal_ca import (
    Pin,
    bundle_text,
    discard_token,
    fingerprints,
    internal_ca_text,
    require_pinned,
    token_for,
)
from certplane.setup.look import look
from certplane.setup.plan import MakeFolder, Plan, WriteFile

FAILPOINTS = ("init.folders", "init.asked")
"""Beside those of `certplane.setup.apply`, `identity` and the enrollment: where a test may end this module's work."""

_USER = "certplane-agent"
_USER_REMEDY = (
    "install the package or the units' sysusers file, which make it; or name another one by --user, which the agent's "
    "unit must have too"
)
_SYSTEMD = Path("/run/systemd/system")
"""There while systemd runs this machine (sd_booted(3))."""


def run(options: Namespace, config: Path) -> int:
    """Set this host up; returns the exit status."""
    try:
        return _Init(options, config).run()
    except EndedError as ended:
        return ended.status


class _Init:
    """One run."""

    def __init__(self, options: Namespace, config: Path) -> None:
        self._options = options
        self._dry: bool = options.dry_run
        self._replace: bool = options.replace
        self._asker = Asker(PROGRAM)
        self._wanted, self._pin = wanted_by(options, config, self._asker)
        self._settings = _settings(self._wanted, ())
        self._who: Account = account(options.user, _USER, remedy=_USER_REMEDY)
        self._again = self._wanted.config.exists()
        take = self._wanted.take
        # by who runs this: the agent's user can't read another client's keys
        self._lineages = () if take is None else find(take.client, take.folder, SystemClock().now())

    def run(self) -> int:
        first = self._as_user(lambda: _first_look(self._wanted, self._pin, self._settings))
        internal_ca: str = first["internal_ca"]
        require_pinned(internal_ca, self._pin)
        why: str = first["why"]
        files = self._files(internal_ca)
        findings = look(files)
        if not self._dry:
            refuse_differences(findings, replace=self._replace, say=print)
            self._refuse_other_host()
        token = self._token(fingerprints(internal_ca), why) if why else ""
        if self._dry:
            return self._show(files, enrolled=not why)
        changed = apply(files, print, replace=self._replace)
        failpoint("init.folders")
        granted = self._granted(token)
        failpoint("init.asked")
        if told := discard_token(self._options.token, used=granted.enrolled):
            print(told)
        certificates, taken_over = self._certificates(granted)
        if taken_over is not None:
            for line in taken_over.said:
                print(line)
            changed += self._copied(taken_over.copies)
        changed += apply(self._agent_yml(certificates), print, replace=self._replace)
        self._end(certificates, taken_over, changed=bool(changed) or granted.enrolled)
        return OK

    def _files(self, internal_ca: str) -> Plan:
        wanted, owner = self._wanted, self._who.owner
        parents = dict.fromkeys((wanted.folder, wanted.state_dir.parent))
        steps: list[MakeFolder | WriteFile] = [MakeFolder(folder, 0o755) for folder in parents]
        steps += [MakeFolder(folder, 0o755, owner, exact=True) for folder in (wanted.tls, wanted.state_dir)]
        steps.append(WriteFile(wanted.internal_ca, internal_ca))
        if self._options.broker_ca is not None:
            steps.append(WriteFile(wanted.broker_ca, bundle_text(PROGRAM, self._options.broker_ca, "--broker-ca")))
        return Plan(tuple(steps))

    def _agent_yml(self, certificates: Sequence[Certificate]) -> Plan:
        text = agent_yml(self._wanted, certificates)
        _settings(self._wanted, certificates)  # what is written can be read
        return Plan((WriteFile(self._wanted.config, text),))

    def _refuse_other_host(self) -> None:
        """Whether agent.yml, if there is one, is this host's, before anything is made or spent."""
        if self._is_ours():
            return
        found = look(self._agent_yml_unread(self._provisional()))
        refuse_differences(found, replace=self._replace, say=print)

    def _is_ours(self) -> bool:
        """Whether agent.yml is an earlier run's with these arguments, whatever certificates it has."""
        with contextlib.suppress(CertplaneError):
            there = read_file(self._wanted.config).decode(errors="replace")
            return there.startswith(f"{head(self._wanted)}certificates:")
        return False

    def _provisional(self) -> tuple[Certificate, ...]:
        return certificates_of(self._wanted, self._wanted.profiles, None)

    def _token(self, roots: Sequence[str], why: str) -> str:
        return token_for(self._asker, self._options.token, self._wanted.name, roots, SystemClock(), why=why)

    def _show(self, files: Plan, *, enrolled: bool) -> int:
        """What a run would do; the status is what it would end with, as far as the files say."""
        wanted = self._wanted
        findings = [*look(files)]
        lines = would(findings, replace=self._replace)
        certificates = self._provisional()
        if enrolled:
            lines.append(f"would keep the identity {wanted.name}")
            certificates, taken_over = self._certificates(self._granted(""))
            if taken_over is not None:
                lines += [*taken_over.said, *self._would_copy(taken_over.copies)]
        else:
            lines.append(f"would enroll as {wanted.name} at {wanted.ca_url} with the token, as user {self._who.name}")
            lines.append("would ask the broker for the names of its profiles, and write them")
            lines += shown(self._lineages)
        if enrolled or not self._is_ours():
            found = look(self._agent_yml_unread(certificates))
            lines += would(found, replace=self._replace)
            findings += found
        print("\n".join([*lines, "nothing was changed: this was a dry run"]))
        refuse_differences(findings, replace=self._replace)
        return OK

    def _agent_yml_unread(self, certificates: Sequence[Certificate]) -> Plan:
        return Plan((WriteFile(self._wanted.config, agent_yml(self._wanted, certificates)),))

    def _granted(self, token: str) -> Granted:
        settings = self._settings

        def obtain() -> Mapping[str, Any]:
            with open_progress(SystemClock(), as_json=False) as progress:
                return asyncio.run(identity.obtain(settings, token, progress)).to_json()

        return Granted.from_json(self._as_user(obtain))

    def _certificates(self, granted: Granted) -> tuple[tuple[Certificate, ...], Taken | None]:
        """The entries of agent.yml; and, where another client's certificates are taken over, what goes with them."""
        wanted = self._wanted
        choices = wanted.profiles or tuple(ProfileChoice(profile) for profile in sorted(granted.names))
        for choice in choices:
            if choice.profile not in granted.names:
                raise _not_granted(wanted, choice.profile, granted)
        if not self._lineages:
            return certificates_of(wanted, choices, granted.names), None
        found = taken(wanted, self._lineages, granted.names, self._who)
        return found.certificates, found

    def _copied(self, copies: Plan) -> int:
        """Make another client's pairs the agent's; by its user, since root writes no keys into a folder of others."""
        if not copies.steps:
            return 0

        def copy() -> Mapping[str, Any]:
            return {"changed": apply(copies, print)}

        changed: int = self._as_user(copy)["changed"]
        return changed

    def _would_copy(self, copies: Plan) -> Sequence[str]:
        lines: Sequence[str] = self._as_user(lambda: {"lines": would(look(copies))})["lines"]
        return lines

    def _as_user(self, work: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        return as_account(self._who, "certplane-agent", work, identity.load)

    def _end(self, certificates: Sequence[Certificate], taken_over: Taken | None, *, changed: bool) -> None:
        wanted = self._wanted
        config = "" if str(wanted.config) == "/etc/certplane/agent.yml" else f" -c {wanted.config}"
        if not changed:
            print(f"nothing to do: this host is set up as {wanted.name}; `certplane-agent{config} check` looks at it")
            return
        services = {choice.profile: choice.service for choice in wanted.profiles}
        for certificate in certificates:
            service = services.get(certificate.profile)
            if service is not None:
                print(f"{service} reads it so: {'; '.join(service_lines(service, certificate))}")
        for line in () if taken_over is None else taken_over.then:
            print(line)
        if self._again:
            print(f"next, where the agent runs already: certplane-agent{config} reload")
        if _SYSTEMD.exists() and not config and self._who.name == _USER:
            print("next: systemctl enable --now certplane-agent.service")
        else:
            print(f"next: certplane-agent{config} run")


def _first_look(wanted: Wanted, pin: Pin, settings: AgentSettings) -> Mapping[str, Any]:
    """As the agent's user: the internal CA's roots, and why a token is needed, if it is."""

    async def why_no_identity() -> str:
        host = Host(settings)
        try:
            return await identity.why_no_identity(host)
        finally:
            host.close()

    text = internal_ca_text(PROGRAM, wanted.ca_url, pin, wanted.internal_ca, SystemClock())
    return {"internal_ca": text, "why": asyncio.run(why_no_identity())}


def _settings(wanted: Wanted, certificates: Sequence[Certificate]) -> AgentSettings:
    return settings_of(Document.parse(agent_yml(wanted, certificates).encode(), str(wanted.config)))


def _not_granted(wanted: Wanted, profile: str, granted: Granted) -> OperationError:
    if profile in granted.unnamed:
        return OperationError(
            f"the broker doesn't say which names the profile {profile} has",
            remedy=f"write {wanted.config} by hand: docs/configuration.md; the identity is in place",
        )
    has = ", ".join(sorted({*granted.names, *granted.unnamed})) or "none"
    return OperationError(
        f"the broker's policy doesn't give the profile {profile} to {wanted.name}; it has: {has}",
        remedy="correct --profile, or have it added to policy.yml; then run the same command, which needs no new token",
    )
