"""File descriptors: each host's connection takes one, so their limit bounds the fleet.

The broker raises its soft limit to the hard one, which needs no privilege, and says at its start when a fleet of the
policy's size would not fit. It refuses nothing for that: most hosts may be away for good.

Connections may not take all of them: some are left for what the broker opens itself, so that whoever connects without
end keeps no order from its CA, its DNS and its database.
"""

from __future__ import annotations

import resource
from typing import Final

from certplane.runtime.text import counted

OWN_DESCRIPTORS: Final = 512
"""What the broker keeps open beside its hosts' connections: database, logs, calls to CA and DNS, calls of other tools
and hosts that open a second connection while they rotate their identity."""


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; the limit that is in force then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (hard, resource.RLIM_INFINITY):
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (
        OSError,
        ValueError,
    ):  # a hard limit above what the kernel allows (fs.nr_open) stands there in some containers
        return soft
    return hard


def most_connections() -> int | None:
    """How many connections may be open at once under the limit of this process; None: any number."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return None
    return limit - min(OWN_DESCRIPTORS, limit // 2)


def too_few(limit: int, hosts: int) -> str:
    """What to say of `limit` descriptors for so many hosts; empty when they are enough."""
    wanted = hosts + OWN_DESCRIPTORS
    if limit == resource.RLIM_INFINITY or limit >= wanted:
        return ""
    return (
        f"the limit of {limit} open files is too low for the policy's {counted(hosts, 'host')}, a connection for each: "
        f"raise it to {wanted} or more (LimitNOFILE= of the unit, ulimit -n)"
    )
