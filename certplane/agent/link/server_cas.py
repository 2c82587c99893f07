"""The CAs that the broker's certificate may come from: the configured file, as far as it is of use now.

The file is read again while the agent runs, and the time is looked at, so that a root that was added counts without a
restart, and one that has ended or was taken out does no longer.
"""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from certplane.config.bundles import read_ca_bundle
from certplane.errors import ConfigurationError, OperationError
from certplane.pki.bundle import CaBundle, encode_certificates

logger = logging.getLogger(__name__)


class ServerCas:
    """One bundle file. All of it blocks; for one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet."""
        self.path = path
        self._bundle: CaBundle | None = None
        self._told: frozenset[str] = frozenset()

    def read(self, now: datetime) -> bytes:
        """What gRPC is given now, PEM. Logs once what has ended, and what will soon.

        Where everything has ended it is what stands in the file: no broker is believed by it, and nothing but that file
        must change for the next try.

        Raises:
            OperationError: the file can't be read, or isn't a bundle.
        """
        try:
            bundle = read_ca_bundle(self.path, only_cas=False)
        except ConfigurationError as error:
            found = "; ".join(f"{problem.file}: {problem.message}" for problem in error.problems)
            raise OperationError(found, remedy=error.problems[0].remedy) from error
        self._bundle = bundle
        problem = bundle.nothing_left(now)
        lines = frozenset(
            [f"{self.path} {problem}"] if problem else [f"{self.path}: {w}" for w in bundle.warnings(now)]
        )
        for line in sorted(lines - self._told):
            logger.warning("%s", line)
        self._told = lines
        return bundle.pem(now) or encode_certificates(bundle.certificates)

    def problem(self, now: datetime) -> str:
        """Why no broker can be believed by what was last read; empty if one can."""
        problem = "" if self._bundle is None else self._bundle.nothing_left(now)
        return f"{self.path} {problem}" if problem else ""
