"""Certificates that another client keeps on this host, as entries of agent.yml."""

from __future__ import annotations

from collections.abc import Mapping

from certplane.agent.init.wanted import Certificate, Take, Wanted
from certplane.errors import OperationError


def taken(_wanted: Wanted, take: Take, _names: Mapping[str, tuple[str, ...]]) -> tuple[Certificate, ...]:
    """The entries for what `take.client` has here, each with the profile of policy that has the same names.

    Args:
        _wanted: the host.
        take: which client, and where.
        _names: the names of each profile that policy gives to this host; empty before anybody was asked.

    Raises:
        OperationError: a certificate is of no use, or no profile has its names.
    """
    raise OperationError(f"taking over {take.client}'s certificates isn't there yet", remedy="give --profile instead")
