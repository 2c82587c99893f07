"""What `agent.yml` says of this host, as lineages on its disk: the identity's and one for each certificate.

    <state_dir>/lock                    one agent at a time
    <state_dir>/identity/               the identity's lineage
    <state_dir>/certificates/<name>/    a certificate's
    <state_dir>/reports/                what the broker has still to hear
    <state_dir>/link.json               how the connection to the broker is
    <state_dir>/control/                the running agent's socket

No network and no gRPC here: `status` needs no more than this, and `enroll` only the internal CA besides.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import random
import secrets
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from certplane.agent.faults import as_error
from certplane.agent.install.access import FileAccess
from certplane.agent.install.directive import JsonActivationFile, JsonDirectiveFile
from certplane.agent.install.lineage import FileVersionStore
from certplane.agent.install.lock import StateLock
from certplane.agent.install.material import Outputs, Part
from certplane.agent.install.status import JsonStatusFile
from certplane.agent.install.trial import Obstacle
from certplane.agent.install.versions import Permission
from certplane.agent.keystore.pending import FilePendingKeys
from certplane.agent.lineage import Lineage
from certplane.agent.link.state import LinkFile
from certplane.agent.model import InstallMode, Version
from certplane.agent.renewal.due import LineageSpec
from certplane.agent.renewal.plan import newest_version
from certplane.agent.renewal.status import new_status, not_shown, shown_again
from certplane.agent.renewal.waiting import Asked
from certplane.agent.reporting.recording import ReportedStatusFile
from certplane.agent.reporting.spool import FileReportSpool
from certplane.agent.settings import AgentSettings, CertificateSettings
from certplane.config.bundles import read_ca_bundle
from certplane.errors import CertplaneError, ConfigurationError, ConfigurationProblem, OperationError
from certplane.pki.keys import KeyType
from certplane.runtime.clock import Clock, SystemClock, local_zone
from certplane.runtime.disk_errors import as_user, user_text
from certplane.runtime.files import Owner, temporary_name
from certplane.runtime.pool import BlockingPool
from certplane.runtime.progress import Progress
from certplane.runtime.text import printable

if TYPE_CHECKING:  # loaded where the internal CA is asked, or a PKCS#12 file is configured
    from certplane.agent.enrollment.identity import HostIdentity
    from certplane.agent.enrollment.stepca import StepCaAuthority
    from certplane.agent.install.password import PasswordFile
    from certplane.agent.install.pkcs12 import Pkcs12Maker

IDENTITY = "identity"
"""The identity's lineage by name, in status and in the log."""

_OWN = (IDENTITY, "certificates", "reports", "control", "lock", "link.json", temporary_name("link.json"))
"""What the agent keeps in `state_dir`. Beside them outputs may lie there: the public format's examples do so."""
_MOST_ERROR = 2000

logger = logging.getLogger(__name__)


class Host:
    """The lineages of one `agent.yml`.

    Raises:
        ConfigurationError: an output can't be where it is configured.
    """

    def __init__(
        self, settings: AgentSettings, *, clock: Clock | None = None, rng: random.Random | None = None
    ) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.rng = rng or random.SystemRandom()
        self.state_dir = Path(os.path.abspath(settings.state_dir))  # noqa: PTH100 - resolve() would follow links
        self.disk = BlockingPool("disk", 1)
        outputs = _checked_outputs(settings, self.state_dir)
        self._stores: dict[str, FileVersionStore] = {}
        self.reports = FileReportSpool(
            self.state_dir / "reports",
            names=[IDENTITY, *(certificate.name for certificate in settings.certificates)],
            new_epoch=lambda: secrets.token_hex(8),
        )
        self.link_file = LinkFile(self.state_dir)
        self._statuses: dict[str, ReportedStatusFile] = {}
        local = local_zone()
        identity = settings.identity
        everywhere = (settings.broker, replace(identity, bootstrap_token=None))
        """What every request goes by."""
        self.identity = self._lineage(
            LineageSpec(
                IDENTITY,
                phase_key=f"{identity.name}/{IDENTITY}",
                renew_before=identity.renew_before,
                warn_before=identity.warn_before,
                asked=Asked(_hash(identity.name, identity.key_type.value), _hash(everywhere)),
            ),
            self.state_dir / IDENTITY,
            outputs[IDENTITY],
            key_type=identity.key_type,
        )
        self.certificates: dict[str, Lineage] = {
            certificate.name: self._lineage(
                LineageSpec(
                    certificate.name,
                    phase_key=f"{identity.name}/{certificate.name}",
                    dns_names=tuple(sorted(certificate.dns_names)),
                    key_type=certificate.key_type.value,
                    renew_before=certificate.renew_before,
                    window=certificate.activate.window,
                    expires_override=certificate.activate.expires_override,
                    local=local,
                    verify_interval=None if certificate.verify is None else certificate.verify.every,
                    asked=Asked(
                        _hash(certificate.profile, sorted(certificate.dns_names), certificate.key_type.value),
                        _hash(certificate, everywhere),
                    ),
                ),
                self.state_dir / "certificates" / certificate.name,
                outputs[f"certificates[{number}]"],
                key_type=certificate.key_type,
                mode=certificate.install,
                profile=certificate.profile,
                access=_access(certificate),
                pkcs12=_pkcs12(settings, number),
            )
            for number, certificate in enumerate(settings.certificates)
        }
        self.outputs: dict[str, Outputs] = {
            certificate.name: outputs[f"certificates[{number}]"]
            for number, certificate in enumerate(settings.certificates)
        }

    def _lineage(
        self,
        spec: LineageSpec,
        directory: Path,
        outputs: Outputs,
        *,
        key_type: KeyType,
        mode: InstallMode = InstallMode.LINK,
        profile: str = "",
        access: Mapping[Part, FileAccess] | None = None,
        pkcs12: Pkcs12Maker | None = None,
    ) -> Lineage:
        keys = FilePendingKeys(directory, clock=self.clock, key_type=key_type)
        store = FileVersionStore(directory, outputs, keys=keys, mode=mode, access=access, pkcs12=pkcs12)
        self._stores[spec.name] = store
        directive = JsonDirectiveFile(directory)
        statuses = self._statuses[spec.name] = ReportedStatusFile(
            JsonStatusFile(directory),
            spool=self.reports,
            spec=spec,
            profile=profile,
            versions=store,
            directive=directive,
        )
        return Lineage(
            spec,
            keys=keys,
            versions=store,
            statuses=statuses,
            disk=self.disk,
            directive=directive,
            activations=None if spec.name == IDENTITY else JsonActivationFile(directory),
            # an identity works from the lineage itself: it is renewed whatever stands where other programs read it
            trial=None if spec.name == IDENTITY else store,
        )

    def lock(self) -> StateLock:
        """The lock of the state directory: held by whoever writes it."""
        return StateLock(self.state_dir)

    def check_owner(self, command: str) -> None:
        """Whether root would write into the state of another user, whose agent could do without it then. Blocks.

        Args:
            command: What is to be run, as it is typed after the program's name.

        Raises:
            OperationError: it would; the remedy is the line to type.
        """
        if os.geteuid() != 0:
            return
        try:
            owner = self.state_dir.stat().st_uid
        except OSError:
            return
        if owner != 0:
            raise OperationError(
                f"{self.state_dir} belongs to {user_text(owner)}, whose agent couldn't use what root writes there",
                remedy=f"run `{as_user(owner, f'certplane-agent -c {self.settings.source.file} {command}')}`",
            )

    def check_files(self) -> None:
        """Read the files that agent.yml names and gRPC would take without a word. Blocks.

        Raises:
            ConfigurationError: broker.server_ca_bundle can't be read, holds a private key, or no certificate. Whether
                they have ended isn't asked: the agent goes on, since the file is read again.
        """
        at = self.settings.source.problem("broker.server_ca_bundle", "")
        read_ca_bundle(self.settings.broker.server_ca_bundle, at=at, only_cas=False)

    def obstacles(self, name: str) -> list[Obstacle]:
        """What would be in the way of the next version of a certificate, or of `IDENTITY`. Blocks; changes nothing."""
        found = self._stores[name].obstacles()
        # the identity's `cert` holds its chain too: see `_checked_outputs`
        return [replace(each, key="cert") if name == IDENTITY and each.key == "fullchain" else each for each in found]

    def check_outputs(self, certificate: CertificateSettings) -> str:
        """See whether services can read what is installed, and the password is what it looks like. Blocks.

        Returns:
            What may be meant otherwise; empty if nothing is.

        Raises:
            CertplaneError: a user or group isn't there, the password can't be used, or services can't pass `state_dir`.
        """
        access = _access(certificate)
        for each in access.values():
            each.over(Permission(Owner(0, 0), 0))
        if certificate.install is InstallMode.LINK and access:
            self._check_way(self.state_dir / "certificates" / certificate.name)
        password = _password_file(self.settings, self.settings.certificates.index(certificate))
        return "" if password is None else password.warning()

    def _check_way(self, lineage: Path) -> None:
        """Whether somebody who is neither owner nor group of a folder passes it, on the way to a lineage's files."""
        for folder in (lineage, *lineage.parents):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                mode = stat.S_IMODE(folder.stat().st_mode)
                if not mode & stat.S_IXOTH:
                    raise OperationError(
                        f"services can't follow the links to their files: {folder} is closed (mode {mode:04o})",
                        remedy=f"chmod o+x {folder}, or configure `install: copy`",
                    )

    async def prepare(self, *lineages: Lineage, put_back: bool = True) -> None:
        """Finish what a crash left, and make the configured paths show what is in force, also where they are new.

        Under the lock, before anything else is done with a lineage. What fails, whatever it is, is that lineage's
        failure: logged, shown by its status, and tried again as an activation is; the others go on.

        Args:
            lineages: which.
            put_back: put the version back that was in force where `current` is gone; `enroll` ends its own work itself.
        """
        for lineage in lineages:
            try:
                await self.disk.run(self._show_current, lineage, put_back)
            except Exception as error:  # noqa: BLE001 - see above
                told = as_error(lineage.name, error)
                logger.error("%s: %s", lineage.name, told)  # noqa: TRY400 - a traceback says nothing more
                await self._note_not_shown(lineage, told)

    def _show_current(self, lineage: Lineage, put_back: bool) -> None:
        store = self._stores[lineage.name]
        store.recover()
        current = store.current() or (self._in_force_once(lineage) if put_back else None)
        if current is not None:
            store.activate(current)
        elif lineage is not self.identity:
            from certplane.agent.takeover import take_over_certificate  # noqa: PLC0415 - once in a certificate's life

            current = take_over_certificate(lineage, store, self.outputs[lineage.name], self.clock.now())
        if current is not None and current.taken_over and lineage is not self.identity:
            from certplane.agent.takeover import note_taken_over  # noqa: PLC0415 - as above

            note_taken_over(lineage, current, self.clock.now())
        status = lineage.statuses.load()
        if status is not None and (settled := shown_again(status)) != status:
            lineage.statuses.save(settled)

    def _in_force_once(self, lineage: Lineage) -> Version | None:
        """The version that was in force, where `current` is gone or leads nowhere."""
        versions = self._stores[lineage.name].versions()
        if lineage is self.identity:
            return newest_version(tuple(versions))  # an enrollment that ended before it had put it in force, too
        status = lineage.statuses.load()
        confirmed = None if status is None else status.confirmed_version
        found = next((each for each in versions if each.number == confirmed), None)
        if found is not None:
            logger.warning("%s: `current` leads nowhere; version %d is in force again", lineage.name, found.number)
        return found

    async def _note_not_shown(self, lineage: Lineage, error: CertplaneError) -> None:
        def note() -> None:
            now = self.clock.now()
            status = lineage.statuses.load() or new_status(lineage.name, now)
            lineage.statuses.save(not_shown(status, printable(str(error), _MOST_ERROR), now, self.rng))

        try:
            await self.disk.run(note)
        except Exception as failure:  # noqa: BLE001 - its life meets the same disk, and says so
            as_error(lineage.name, failure)

    async def report_all(self) -> None:
        """Take up a report of each lineage as it is, where that wasn't said: a crash, or another agent.yml, may be why.

        Under the lock.
        """
        await self.disk.run(self._report_all)

    def _report_all(self) -> None:
        self.reports.load()
        for name, statuses in self._statuses.items():
            try:
                statuses.report(statuses.load() or new_status(name, self.clock.now()))
            except Exception as error:  # noqa: BLE001 - the other lineages are reported
                logger.warning("%s: could not report its status: %s", name, as_error(name, error))

    async def current_identity(self) -> Version | None:
        """The identity in force, or the newest where `current` was damaged; None before enrollment."""

        def current() -> Version | None:
            return self.identity.versions.current() or newest_version(tuple(self.identity.versions.versions()))

        return await self.disk.run(current)

    async def take_over_identity(self) -> Version | None:
        """Take over the identity that other programs left at `identity.cert` and `identity.key`. Under the lock.

        None where there is none, or it is none of this CA's for this host, which is logged.

        Raises:
            ConfigurationError: a file with CAs can't be used.
            OperationError: the disk refuses.
        """
        store = self._stores[IDENTITY]
        if not await self.disk.run(store.standing):
            return None
        from certplane.agent.takeover import take_over_identity  # noqa: PLC0415 - once in a host's life

        authority = self.authority()
        try:
            name = self.settings.identity.name
            return await take_over_identity(name, self.identity, store, authority, self.clock.now())
        finally:
            authority.close()

    async def would_take_over_identity(self) -> str:
        """What the next start takes over of what stands at `identity.cert` and `identity.key`; empty if nothing.

        Raises:
            CertplaneError: why it isn't taken over.
        """
        store = self._stores[IDENTITY]
        if not await self.disk.run(store.standing):
            return ""
        from certplane.agent.takeover import would_take_over_identity  # noqa: PLC0415 - once in a host's life

        authority = self.authority()
        try:
            return await would_take_over_identity(
                self.settings.identity.name, self.identity, store, authority, self.clock.now()
            )
        finally:
            authority.close()

    def would_take_over(self, name: str) -> str:
        """What the next start takes over of what stands at a certificate's paths; empty if nothing. Blocks.

        Raises:
            CertplaneError: why it isn't taken over.
        """
        from certplane.agent.takeover import would_take_over  # noqa: PLC0415 - `check` alone asks

        return would_take_over(self.certificates[name], self._stores[name], self.outputs[name], self.clock.now())

    def authority(self) -> StepCaAuthority:
        """The internal CA."""
        # Here, since an agent talks to the CA once in hours, and its HTTP client would be a tenth of an idle one.
        from certplane.agent.enrollment.stepca import StepCaAuthority  # noqa: PLC0415
        from certplane.stepca.exchange import Endpoint  # noqa: PLC0415
        from certplane.stepca.trust import Trust  # noqa: PLC0415

        identity = self.settings.identity
        return StepCaAuthority(
            Endpoint.from_url(identity.step_ca.url),
            trust=Trust(
                fingerprint=identity.step_ca.fingerprint or "",
                root_ca_bundle=identity.step_ca.root_ca_bundle,
                issuer_ca_bundle=identity.issuer_ca_bundle,
                problem=self.settings.source.problem,
            ),
            timeout=identity.step_ca.timeout,
            clock=self.clock,
            rng=self.rng,
        )

    def host_identity(self, authority: StepCaAuthority) -> HostIdentity:
        """How this host gets its identity from `authority`."""
        from certplane.agent.enrollment.identity import HostIdentity  # noqa: PLC0415 - as `authority`

        return HostIdentity(
            self.settings.identity.name,
            authority=authority,
            keys=self.identity.keys,
            versions=self.identity.versions,
            disk=self.disk,
            clock=self.clock,
            rekey=self.settings.identity.rekey,
        )

    async def enroll(self, progress: Progress, *, force: bool, token: str = "") -> Version:
        """Get the identity with a one-time token. Under the lock.

        Args:
            progress: told each step.
            force: as of `HostIdentity.enroll`.
            token: the token; empty for that in the configured file, which is removed once it is used.

        Raises:
            ConfigurationError: no token is configured, or its file can't be used.
            OperationError: see `HostIdentity.enroll`.
        """
        from certplane.agent.enrollment.tokenfile import read_token_file, remove_token_file  # noqa: PLC0415

        problem = self.settings.source.problem
        path = None if token else self.settings.identity.bootstrap_token

        def given() -> str:
            if token:
                return token
            if path is None:
                raise ConfigurationError(
                    [problem("identity.bootstrap_token", "is required to enroll", "give the path of the token's file")]
                )
            return read_token_file(path, problem)

        await self.prepare(self.identity, put_back=False)
        if not force and await self.current_identity() is None and (found := await self.take_over_identity()):
            progress.done(IDENTITY, f"taken over, valid until {found.not_after:%Y-%m-%d %H:%M} UTC; no token was used")
            return found
        authority = self.authority()
        try:
            identity = await self.host_identity(authority).enroll(
                given, force=force, report=lambda text: progress.step(IDENTITY, text)
            )
        finally:
            authority.close()
        if path is not None and (reason := await self.disk.run(remove_token_file, path)):
            logger.warning("the used token %s can't be removed (%s); remove it by hand", path, reason)
        progress.done(
            IDENTITY, f"enrolled as {self.settings.identity.name} until {identity.not_after:%Y-%m-%d %H:%M} UTC"
        )
        return identity

    def close(self) -> None:
        """End the disk's thread once its work is done."""
        self.disk.close()


def _hash(*values: object) -> str:
    """What tells these settings from others; the same values have the same one in every process of a release."""
    return hashlib.sha256(repr(values).encode(errors="backslashreplace")).hexdigest()[:16]


def _access(certificate: CertificateSettings) -> dict[Part, FileAccess]:
    """Owner, group and mode of a certificate's outputs, where they are configured."""
    settings = certificate.files_by_output
    return {
        part: FileAccess(own.owner, own.group, own.mode)
        for part in Part
        if (own := settings.get(part.setting)) is not None
    }


def _password_file(settings: AgentSettings, number: int) -> PasswordFile | None:
    """Where the password of a certificate's PKCS#12 file is."""
    pkcs12 = settings.certificates[number].pkcs12
    if pkcs12 is None:
        return None
    from certplane.agent.install.password import PasswordFile  # noqa: PLC0415 - few hosts have such a file

    key = f"certificates[{number}].pkcs12.password_file"
    return PasswordFile(pkcs12.password_file, functools.partial(settings.source.problem, key))


def _pkcs12(settings: AgentSettings, number: int) -> Pkcs12Maker | None:
    """What makes a certificate's PKCS#12 file; the password is read at each use."""
    certificate = settings.certificates[number]
    password = _password_file(settings, number)
    if certificate.pkcs12 is None or password is None:
        return None
    from certplane.agent.install.pkcs12 import Pkcs12Maker  # noqa: PLC0415 - few hosts have such a file

    return Pkcs12Maker(password.read, certificate.pkcs12.friendly_name or certificate.name)


def _checked_outputs(settings: AgentSettings, state_dir: Path) -> Mapping[str, Outputs]:
    """The outputs of each lineage by its key in the file; all that can't be are told at once."""
    paths: dict[str, dict[str, Path]] = {
        IDENTITY: {
            kind: path for kind, path in (("key", settings.identity.key), ("cert", settings.identity.cert)) if path
        }
    }
    problems: list[ConfigurationProblem] = []
    for number, certificate in enumerate(settings.certificates):
        paths[f"certificates[{number}]"] = certificate.outputs
        if certificate.name == IDENTITY:
            key = f"certificates[{number}].name"
            problems.append(settings.source.problem(key, "is the host's own identity's", "choose another name"))
    for where, outputs in paths.items():
        for kind, path in outputs.items():
            if path == Path(os.path.abspath(settings.source.file)):  # noqa: PTH100 - as above
                message = f"{path} is this file, which would be overwritten"
                problems.append(settings.source.problem(f"{where}.{kind}", message, "choose another path"))
            own = next((own for own in _OWN if path.is_relative_to(state_dir / own)), None)
            if own is None and path != state_dir:
                continue
            taken = f"the agent's own {state_dir / own}" if own is not None else "where the agent's state_dir is"
            message = f"{path} is {taken}" if own is None else f"{path} lies in {taken}"
            problems.append(settings.source.problem(f"{where}.{kind}", message, "choose another path"))
    if problems:
        raise ConfigurationError(problems)
    identity = paths.pop(IDENTITY)
    # the identity's certificate file holds its chain too: where the CA has an intermediate, a program needs both
    made = {IDENTITY: Outputs(key=identity.get("key"), fullchain=identity.get("cert"))}
    return {**made, **{where: Outputs(**outputs) for where, outputs in paths.items()}}
