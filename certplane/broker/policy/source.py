"""The policy in force: the last file that loaded.

Reading blocks (a large file takes a second to parse), so `reload` and `changed` belong on a pool; `current` is a plain
read from any thread. When and why to reload (SIGHUP, `watch`), and telling it to log and audit, is the program's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from certplane.broker.policy.document import PolicyDocument, read_policy
from certplane.config.document import MAX_BYTES, Document
from certplane.config.files import read_file
from certplane.errors import ConfigurationError, Reason, RefusalError

__all__ = ["FilePolicySource"]


class FilePolicySource:
    """`certplane.broker.ports.PolicySource` over a file; nothing is read before the first `reload`."""

    def __init__(self, path: Path, issuers: Collection[str] | None = None) -> None:
        """`issuers` are those that profiles may name; None takes any, where there is no broker.yml to ask."""
        self._path = path
        self._issuers = issuers
        self._current: PolicyDocument | None = None
        self._seen = ""

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def current(self) -> PolicyDocument:
        """See `PolicySource.current`."""
        current = self._current
        if current is None:
            raise RefusalError(Reason.POLICY_UNAVAILABLE, "no policy is loaded; the broker's log says why")
        return current

    def reload(self) -> PolicyDocument:
        """Read the file and put it in force. Blocks.

        Raises:
            ConfigurationError: it doesn't load; what was in force stays so.
        """
        content = read_file(self._path, max_bytes=MAX_BYTES)
        self._seen = hashlib.sha256(content).hexdigest()
        policy = read_policy(Document.parse(content, str(self._path)))
        if self._issuers is not None:
            policy.check_issuers(self._issuers)
        self._current = policy
        return policy

    def changed(self) -> bool:
        """Whether the file's content is another than when `reload` last read it, good or bad. Blocks.

        A file that can't be read hasn't changed: a reload would only say so again.
        """
        try:
            content = read_file(self._path, max_bytes=MAX_BYTES)
        except ConfigurationError:
            return False
        return hashlib.sha256(content).hexdigest() != self._seen
