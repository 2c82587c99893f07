"""Reading a CA bundle that settings name, with what is wrong said in one line and its remedy."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from certplane.config.files import read_file
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.pki.bundle import BundleError, CaBundle

_REMEDY = "put the CA certificates there, PEM, and nothing else"


def read_ca_bundle(path: Path, *, at: ConfigurationProblem | None = None, only_cas: bool = True) -> CaBundle:
    """The bundle in a file, ended certificates included (`CaBundle.in_force` leaves them out). Blocks.

    Args:
        path: The file.
        at: Where it is configured, as for `read_file`.
        only_cas: As for `CaBundle.from_pem`.

    Raises:
        ConfigurationError: it can't be read, holds a private key, or no certificates.
    """
    remedy = f"CA certificates may be read by everybody: `chmod 0644 {path}`; let this user pass the folders above it"
    pem = read_file(path, at=at, closed_remedy=remedy)
    try:
        return CaBundle.from_pem(pem, only_cas=only_cas)
    except BundleError as error:
        raise _error(path, at, str(error), _REMEDY) from error


def require_in_force(bundle: CaBundle, now: datetime, path: Path, *, at: ConfigurationProblem | None = None) -> None:
    """See that something of a bundle can be used now.

    Raises:
        ConfigurationError: everything in it has ended.
    """
    problem = bundle.nothing_left(now)
    if problem:
        raise _error(path, at, problem, "put the CA's present certificate there; if it is there, set this host's clock")


def _error(path: Path, at: ConfigurationProblem | None, message: str, remedy: str) -> ConfigurationError:
    if at is None:
        return ConfigurationError([ConfigurationProblem(str(path), None, "", message, remedy)])
    return ConfigurationError([ConfigurationProblem(at.file, at.line, at.key, f"{path} {message}", remedy)])
