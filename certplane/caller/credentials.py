"""A caller's identity and the CAs of its broker, read from their files; whether the files have changed since.

Files that are replaced while they are read, a new certificate beside the old key say, don't belong together for a
moment: that is an error like any other, and whoever has credentials keeps them until the files are right again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import grpc

from certplane.caller.unreachable import CallerFiles
from certplane.config.bundles import read_ca_bundle
from certplane.config.files import read_file, read_service_key
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.pki.bundle import encode_certificates, presentable
from certplane.pki.chain import leaf_facts
from certplane.rpc.credentials import PairError, channel_credentials, client_pair

Stamp = tuple[tuple[int, int, int] | None, ...]
"""Of each file what changes when it is replaced or written: inode, time in nanoseconds, octets; None without one."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What was read: `not_after` is the end of the identity's certificate, `content` what differs after a change."""

    channel: grpc.ChannelCredentials
    server_ca_pem: bytes
    not_after: datetime
    content: tuple[bytes, ...]


def stamp_of(files: CallerFiles) -> Stamp:
    """What the files are like now; three stat(2) calls."""
    return tuple(map(_stamp, (files.chain, files.key, files.server_cas)))


def read_credentials(files: CallerFiles, now: datetime) -> Credentials:
    """Read the files. Blocks.

    The key may be this user's and closed to others (0600), or root's and readable by a group of this user's (0640).

    Raises:
        ConfigurationError: a file is missing, can't be read, or isn't what it should be.
    """
    key_pem = read_service_key(files.key)
    chain_pem = presentable(read_file(files.chain), now)
    try:
        pair = client_pair(key_pem, chain_pem)
    except PairError as error:
        path, why = (files.key, error.key) if error.key else (files.chain, error.chain)
        remedy = "put the identity's certificate with its chain and its private key, in PEM, into the two files"
        raise ConfigurationError([ConfigurationProblem(str(path), None, "", why, remedy)]) from error
    bundle = read_ca_bundle(files.server_cas, only_cas=False)
    # Where everything has ended no broker is believed, and why_unreachable says that.
    server_ca_pem = bundle.pem(now) or encode_certificates(bundle.certificates)
    return Credentials(
        channel_credentials(server_ca_pem, pair),
        server_ca_pem,
        leaf_facts(chain_pem.decode()).not_after,
        (key_pem, chain_pem, server_ca_pem),
    )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
