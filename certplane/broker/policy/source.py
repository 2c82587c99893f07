"""The policy in force: the last file that loaded.

Reading blocks (a large file takes a second to parse), so `reload` and `changed` belong on a pool; `current` is a plain
read from any thread. When and why to reload (SIGHUP, `watch`), and telling it to log and audit, is the program's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from typing_extensions import override

from certplane.broker.model import IdentityKind
from certplane.broker.policy.document import PolicyDocument, check_issuers, read_policy
from certplane.broker.ports import PolicySource
from certplane.config.document import MAX_BYTES, Document
from certplane.config.files import read_file
from certplane.errors import ConfigurationError, ConfigurationProblem, Reason, RefusalError
from certplane.runtime.turns import let_go, short_turns


def check_removal(before: PolicyDocument, after: PolicyDocument, file: str) -> None:
    """Whether a policy may take the place of another while a broker runs.

    A fleet is shut out within seconds, so a change that leaves nobody who can get a certificate is taken for a mistake
    of whatever wrote the file. A start takes such a policy: a person who means it restarts the broker.

    Raises:
        ConfigurationError: `after` removes every host and service, or every profile that one had.
    """
    if before.grants:
        after.check_grants()
    served = [grant for grant in before.grants if grant.kind is not IdentityKind.OPERATOR]
    left = [grant for grant in after.grants if grant.kind is not IdentityKind.OPERATOR]
    message = ""
    if served and not left:
        message = f"would lock out all {len(served)} hosts and services of the policy in force"
    elif any(grant.profiles for grant in served) and not any(grant.profiles for grant in left):
        message = "would leave no host or service a profile, so that nobody gets a certificate any more"
    if message:
        remedy = "check what wrote the file; if this is intended, restart the broker with it"
        raise ConfigurationError([ConfigurationProblem(file, None, "", message, remedy)])


class FilePolicySource(PolicySource):
    """`certplane.broker.ports.PolicySource` over a file; nothing is read before the first `reload`."""

    def __init__(
        self, path: Path, issuers: Collection[str] | None = None, private_issuers: Collection[str] = ()
    ) -> None:
        """Nothing is read yet.

        Args:
            path: the file.
            issuers: those that profiles may name; None takes any, where there is no broker.yml to ask.
            private_issuers: as `load_policy`'s.
        """
        self._private_issuers = private_issuers
        self._path = path
        self._issuers = issuers
        self._current: PolicyDocument | None = None
        self._seen = ""

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    @override
    def current(self) -> PolicyDocument:
        current = self._current
        if current is None:
            raise RefusalError(Reason.POLICY_UNAVAILABLE, "no policy is loaded; the broker's log says why")
        return current

    def reload(self) -> PolicyDocument:
        """Read the file and put it in force. Blocks.

        Raises:
            ConfigurationError: it doesn't load, or shuts everybody out; what was in force stays so.
        """
        with short_turns():
            return self._load(read_file(self._path, max_bytes=MAX_BYTES))

    def _load(self, content: bytes) -> PolicyDocument:
        self._seen = hashlib.sha256(content).hexdigest()
        document = Document.parse(content, str(self._path))
        policy = read_policy(document, self._private_issuers)
        if self._issuers is not None:
            check_issuers(policy, document.source, self._issuers)
        if self._current is not None:
            check_removal(self._current, policy, str(self._path))
        # What a large one and its text were is freed in pieces: the event loop has its turn between them.
        left: list[object] = [*document.entries()]
        if self._current is not None:
            left += (*self._current.profiles, *self._current.grants)
        self._current = policy
        del document
        let_go(left)
        return policy

    def changed(self) -> bool:
        """Whether the file's content is another than when `reload` last read it, good or bad. Blocks.

        Raises:
            ConfigurationError: it can't be read.
        """
        content = read_file(self._path, max_bytes=MAX_BYTES)
        return hashlib.sha256(content).hexdigest() != self._seen
