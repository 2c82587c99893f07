"""What a lineage's runner acts through: whoever gets its certificates, and whoever puts them in force."""

from __future__ import annotations

from typing import Protocol

from certplane.agent.install.activation import ActivationResult
from certplane.agent.model import LineageStatus, Version
from certplane.agent.renewal.plan import Request, Verify


class Requester(Protocol):
    """Gets a lineage's next certificate and puts it on disk, not yet in force."""

    async def __call__(self, request: Request) -> Version:
        """Carry out `request`.

        Raises:
            CertplaneError: it failed, and when it may be tried again.
        """
        ...


class Activates(Protocol):
    """Puts a version in force, and looks whether it is: `certplane.agent.install.activation.Activator`."""

    async def activate(self, version: Version, status: LineageStatus) -> ActivationResult:
        """See `Activator.activate`."""
        ...

    async def verify(self, step: Verify, status: LineageStatus) -> LineageStatus:
        """See `Activator.verify`."""
        ...
