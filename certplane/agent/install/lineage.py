"""One lineage's versions and the configured paths that show one of them: the port `VersionStore` on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from certplane.agent.install.access import FileAccess
from certplane.agent.install.copying import CopiedOutputs
from certplane.agent.install.keeping import permissions_of
from certplane.agent.install.linking import LinkedOutputs
from certplane.agent.install.material import Outputs, Part, complete, compose
from certplane.agent.install.outputs import Output, look_at_all
from certplane.agent.install.pointers import CURRENT, HELD, Pointers
from certplane.agent.install.steps import step
from certplane.agent.install.trial import Obstacle, find_obstacles
from certplane.agent.install.versions import IMPORTED, Metadata, VersionDirectories
from certplane.agent.model import ActivationHold, InstallMode, IssuedCertificate, Version
from certplane.agent.ports import InstallTrial, PendingKeyMaterial, VersionStore
from certplane.errors import CertplaneError, OperationError
from certplane.pki.chain import leaf_facts, split_chain
from certplane.pki.chain_path import ChainError
from certplane.pki.keys import load_private_key, public_key_sha256
from certplane.runtime.disk_errors import explain
from certplane.runtime.files import temporary_name

if TYPE_CHECKING:  # a host without such a file loads nothing of PKCS#12
    from certplane.agent.install.pkcs12 import Pkcs12Maker

_LOG = logging.getLogger(__name__)


class InstallError(OperationError):
    """A version can't be written or shown; what was shown before still is."""


class FileVersionStore(VersionStore, InstallTrial):
    """`VersionStore` in a lineage's directory. One writer: the agent that holds the state lock."""

    def __init__(
        self,
        directory: Path,
        outputs: Outputs,
        *,
        keys: PendingKeyMaterial,
        mode: InstallMode = InstallMode.LINK,
        access: Mapping[Part, FileAccess] | None = None,
        pkcs12: Pkcs12Maker | None = None,
    ) -> None:
        """Nothing is touched before the first call.

        Args:
            directory: The lineage's directory, absolute; made (0755) when it is first needed.
            outputs: The configured paths; `Outputs()` for a lineage that only the agent reads.
            keys: The pending key of the same lineage.
            mode: How the paths show the current version.
            access: Owner, group and mode of outputs, where they are configured; only of those that `outputs` has.
            pkcs12: Makes the PKCS#12 file; with an output for it only.

        Raises:
            ValueError: an output lies inside the lineage, or `access` or `pkcs12` and `outputs` don't fit.
        """
        access = {} if access is None else access
        if not access.keys() <= outputs.paths().keys() or (pkcs12 is None) != (outputs.pkcs12 is None):
            raise ValueError("access or PKCS#12 for an output that isn't there, or the other way round")
        if any(path.is_relative_to(directory) for path in outputs.paths().values()):
            raise ValueError(f"an output can't lie in the agent's own directory {directory}")
        self._directory = directory
        self._outputs = outputs
        self._access = access
        self._mode = mode
        self._keys = keys
        self._pkcs12 = pkcs12
        self._versions = VersionDirectories(directory)
        self._pointers = Pointers(directory)
        self._copies = CopiedOutputs(directory, outputs, self._versions, self._pointers, access)
        self._links = LinkedOutputs(directory, outputs, self._versions, self._pointers, access)
        self._shown = self._copies if mode is InstallMode.COPY else self._links

    def recover(self) -> None:
        """Finish what a crash left; the agent calls it once for each lineage when it starts, before anything else.

        Raises:
            OperationError: the disk refuses.
        """
        with self._disk("recovered"):
            self._versions.sweep()
            self._versions.restore(self._pointers.number(CURRENT))
            self._keys.sweep()
            self._forget_answered()
            self._copies.finish()  # whatever the mode is now; links need nothing: no crash leaves a mixed pair there

    @override
    def current(self) -> Version | None:
        with self._disk("read"):
            number = self._pointers.number(CURRENT)
            return None if number is None else self._versions.get(number)

    @override
    def versions(self) -> Sequence[Version]:
        with self._disk("read"):
            return self._versions.all()

    @override
    def stage(self, issued: IssuedCertificate, hold: ActivationHold | None = None) -> Version:
        with self._disk("staged"):
            self._forget_answered()
            try:
                leaf_pem, chain_pem = split_chain(f"{issued.certificate_pem}\n{issued.chain_pem}")
                return self._staged(leaf_pem) or self._write(leaf_pem, chain_pem, issued, hold)
            except ChainError as error:
                raise InstallError(f"the certificate can't be installed: {error.refusal.message}") from error

    @override
    def activate(self, version: Version) -> None:
        with self._disk("installed"):
            if self._versions.get(version.number) is None:
                raise InstallError(f"version {version.number} is not complete in {self._directory}")
            self._versions.sweep()
            self._forget_answered()
            if self._pkcs12 is not None:
                self._derive(version.number, self._pkcs12)
            self._shown.show(version.number)

    def standing(self) -> list[Output]:
        """What others left at the configured paths, of this lineage's first use; empty where it is past. Blocks.

        A file or a link of somebody else's. Changes nothing, not even a folder that is missing.

        Raises:
            OperationError: the disk refuses, or a link leads nowhere, or something odd stands there.
        """
        with self._disk("read"):
            if self._pointers.stands(CURRENT) or any(version.is_own for version in self._versions.all()):
                return []
            return look_at_all(self._directory, self._outputs)

    def take_over(self, check: Callable[[Mapping[Part, bytes]], None]) -> Version | None:
        """Make the pair that stands at the paths version 0, and in force: who reads there finds the same. Blocks.

        Args:
            check: Judges what was read there.

        Returns:
            The version; None where there is nothing to take over, or a version is in force.

        Raises:
            CertplaneError: from `check`, or as `standing` and `activate`.
        """
        with self._disk("taken over"):
            begun = self._versions.get(IMPORTED)
            if begun is not None and begun.taken_over and not self._pointers.stands(CURRENT):
                self.activate(begun)  # a crash came between the two
                return begun
            found = self.standing()
            files = {output.part: output.data for output in found if output.data is not None}
            if not files or begun is not None:
                return None
            check(files)
            permissions = permissions_of(found)
            with step("keep"):
                version = self._versions.add(IMPORTED, complete(files), Metadata(taken_over=True), permissions)
            self.activate(version)
            return version

    def _derive(self, number: int, pkcs12: Pkcs12Maker) -> None:
        """Have a PKCS#12 file in the version before it is shown, so that the one switch switches it too.

        One that stood at the path and was kept with version 0 stays to the byte; any other is made anew where the
        password has changed.
        """
        files = self._versions.read(number)
        standing = files.get(Part.PKCS12)
        if standing is not None and (number == IMPORTED or pkcs12.is_made(standing, files)):
            return
        with step("derive"):
            self._versions.derive(number, Part.PKCS12, pkcs12.make(files))

    def obstacles(self) -> list[Obstacle]:
        """What would be in the way of the next version; changes nothing. Blocks."""
        found = find_obstacles(self._directory, self._outputs, self._access, mode=self._mode)
        if self._pkcs12 is not None:
            try:
                self._pkcs12.password()
            except CertplaneError as error:
                found.append(Obstacle("pkcs12.password_file", str(error)))
        return found

    @override
    def try_install(self) -> None:
        found = self.obstacles()
        if found:
            causes = "; ".join(f"{obstacle.key}: {obstacle.cause}" for obstacle in found)
            remedies = "; ".join(dict.fromkeys(obstacle.remedy for obstacle in found if obstacle.remedy))
            raise InstallError(f"not ordered, since it couldn't be installed: {causes}", remedy=remedies)

    @override
    def prune(self, keep: int) -> None:
        if keep < 1:
            raise ValueError("at least one version must be kept")
        with self._disk("pruned"):
            versions = [version.number for version in self._versions.all()]
            for number in set(versions[:-keep]) - self._in_use(versions):
                self._versions.remove(number)

    def _in_use(self, versions: Sequence[int]) -> set[int | None]:
        """The current version, the one before it, and one that a first use still holds."""
        current = self._pointers.number(CURRENT)
        before = [number for number in versions if current is not None and number < current]
        return {current, self._pointers.number(HELD), *before[-1:]}

    def _forget_answered(self) -> None:
        """Drop the pending key if a version holds it: a crash came between the two."""
        pending = self._keys.request_id()
        if pending is not None and pending in self._versions.request_ids():
            self._keys.forget(pending)

    def _staged(self, leaf_pem: str) -> Version | None:
        for version in reversed(self._versions.all()):
            if version.number != IMPORTED and self._versions.read(version.number)[Part.CERT] == leaf_pem.encode():
                return version
        return None

    def _write(self, leaf_pem: str, chain_pem: str, issued: IssuedCertificate, hold: ActivationHold | None) -> Version:
        key_pem, request_id = self._keys.private_key_pem(), self._keys.request_id()
        if key_pem is None or request_id is None:
            raise InstallError("no key waits for this certificate")
        if leaf_facts(leaf_pem).public_key_sha256 != public_key_sha256(load_private_key(key_pem).public_key()):
            raise InstallError("the certificate is for another key than the one that waits for it")
        version = self._versions.add(
            self._versions.next_number(),
            compose(key_pem, leaf_pem, chain_pem),
            Metadata(issued.certificate_id, issued.renew_time, request_id, hold=hold),
        )
        with step("forget"):
            self._keys.forget(request_id)
        return version

    @contextmanager
    def _disk(self, what: str) -> Iterator[None]:
        """Say what an `OSError` means here; nothing but `CertplaneError`s leave the port."""
        try:
            yield
        except OSError as error:
            cause, remedy = explain(error, self._directory)
            raise InstallError(
                f"{self._directory.name} can't be {what}: {self._output_of(error)}{cause}", remedy=remedy
            ) from error

    def _output_of(self, error: OSError) -> str:
        """Which output an error is about, before its path; empty where it is about none."""
        path = Path(error.filename) if isinstance(error.filename, str) else None
        for part, output in self._outputs.paths().items():
            if path is not None and path in {output, output.parent, output.parent / temporary_name(output.name)}:
                return f"{part.setting}: "
        return ""
