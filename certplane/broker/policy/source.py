"""The policy in force: the last file that loaded.

Reading blocks (a large file takes a second to parse), so `reload` and `changed` belong on a pool; `current` is a plain
read from any thread. When and why to reload (SIGHUP, `watch`), and telling it to log and audit, is the program's.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from certplane.broker.policy.changes import PolicyChanges, compare
from certplane.broker.policy.document import PolicyDocument, check_issuers, read_policy
from certplane.broker.policy.guard import UnconfirmedError, check_removal, summary
from certplane.broker.ports import PolicySource
from certplane.config.document import MAX_BYTES, Document
from certplane.config.files import read_file
from certplane.errors import Reason, RefusalError
from certplane.runtime.turns import let_go, short_turns


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy, its text, and what it changed.

    Attributes:
        policy: The policy.
        packed: The file's bytes, compressed: a policy for a hundred thousand hosts has ten megabytes.
        changes: What the policy before it gave and this one doesn't, and so on; None for the first one.
        summary: That in a line (`certplane.broker.policy.guard`), made here since there may be very many.
        size: Octets of the file.
    """

    policy: PolicyDocument
    packed: bytes
    changes: PolicyChanges | None = None
    summary: str = ""
    size: int = 0

    def text(self) -> bytes:
        """The file's bytes. Blocks for some milliseconds for a large one."""
        return zlib.decompress(self.packed)


class FilePolicySource(PolicySource):
    """`certplane.broker.ports.PolicySource` over a file; nothing is read before the first `reload`."""

    def __init__(
        self,
        path: Path,
        issuers: Collection[str] | None = None,
        private_issuers: Collection[str] = (),
        *,
        guard: int = 100,
    ) -> None:
        """Nothing is read yet.

        Args:
            path: the file.
            issuers: those that profiles may name; None takes any, where there is no broker.yml to ask.
            private_issuers: as `load_policy`'s.
            guard: how many per cent of hosts or grants a reload may remove unless it is confirmed.
        """
        self._guard = guard
        self._private_issuers = private_issuers
        self._path = path
        self._issuers = issuers
        self._loaded: LoadedPolicy | None = None
        self._seen = ""

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    @override
    def current(self) -> PolicyDocument:
        return self.loaded.policy

    @property
    def loaded(self) -> LoadedPolicy:
        """What is in force, with its text.

        Raises:
            RefusalError: POLICY_UNAVAILABLE.
        """
        loaded = self._loaded
        if loaded is None:
            raise RefusalError(Reason.POLICY_UNAVAILABLE, "no policy is loaded; the broker's log says why")
        return loaded

    def reload(self, *, confirmed: bool = False) -> PolicyDocument:
        """Read the file and put it in force; `confirmed`: whatever it removes. Blocks.

        Raises:
            ConfigurationError: it doesn't load; what was in force stays so.
            UnconfirmedError: it removes too much, and isn't confirmed; as well.
        """
        with short_turns():
            return self._load(read_file(self._path, max_bytes=MAX_BYTES), confirmed=confirmed)

    def _load(self, content: bytes, *, confirmed: bool) -> PolicyDocument:
        self._seen = hashlib.sha256(content).hexdigest()
        document = Document.parse(content, str(self._path))
        policy = self._read(document)
        before = None if self._loaded is None else self._loaded.policy
        changes = None
        if before is not None:
            if before.grants:
                policy.check_grants()
            changes = compare(before, policy)
            if not confirmed:
                check_removal(before, policy, changes, file=str(self._path), guard=self._guard)
        # What a large one and its text were is freed in pieces: the event loop has its turn between them.
        left: list[object] = [*document.entries()]
        if before is not None:
            left += (*before.profiles, *before.issued_profiles, *before.grants)
        said = "" if changes is None else summary(changes)
        self._loaded = LoadedPolicy(policy, zlib.compress(content, 1), changes, said, len(content))
        del document, before
        let_go(left)
        return policy

    def plan(self, content: bytes, name: str) -> tuple[PolicyDocument, PolicyChanges, str]:
        """What would come of a text in place of the policy in force. Blocks; changes nothing.

        Args:
            content: The text.
            name: What problems name as the file.

        Returns:
            The policy, what it changes, and why a reload would want it confirmed; empty if it wouldn't.

        Raises:
            ConfigurationError: everything for which a reload would refuse it.
        """
        with short_turns():
            before = self.current
            policy = self._read(Document.parse(content, name))
            policy.check_grants()
            changes = compare(before, policy)
            try:
                check_removal(before, policy, changes, file=name, guard=self._guard)
            except UnconfirmedError as error:
                return policy, changes, error.problems[0].message
            return policy, changes, ""

    def _read(self, document: Document) -> PolicyDocument:
        policy = read_policy(document, self._private_issuers)
        if self._issuers is not None:
            check_issuers(policy, document.source, self._issuers)
        return policy

    def changed(self) -> bool:
        """Whether the file's content is another than when `reload` last read it, good or bad. Blocks.

        Raises:
            ConfigurationError: it can't be read.
        """
        content = read_file(self._path, max_bytes=MAX_BYTES)
        return hashlib.sha256(content).hexdigest() != self._seen
