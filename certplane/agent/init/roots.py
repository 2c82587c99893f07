"""The CA certificates that a new host believes, as the text of its files. Blocks.

A root that is here already is not fetched again: its file may have a second one, for the day of a new internal CA.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.agent.init.arguments import PROGRAM, Pin
from certplane.config.bundles import read_ca_bundle
from certplane.config.files import read_file
from certplane.errors import CertplaneError, ConfigurationProblem
from certplane.pki.reading import READ_ERRORS
from certplane.runtime.clock import Clock
from certplane.stepca.exchange import Endpoint
from certplane.stepca.trust import Trust, pinned_roots

_CA_TIME = timedelta(seconds=10)
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


def internal_ca_text(url: str, pin: Pin, there: Path, clock: Clock) -> str:
    """The internal CA's roots, PEM.

    Args:
        url: of the CA.
        pin: how it is known.
        there: the file of an earlier run.
        clock: says which certificates have ended.

    Raises:
        CertplaneError: the CA can't be asked, has no such root, or the bundle can't be used.
    """
    if pin.bundle is not None:
        return bundle_text(pin.bundle, "--ca-bundle")
    kept = _text(there)
    if pin.fingerprint in fingerprints(kept):
        return kept
    trust = Trust(
        pin.fingerprint, None, None, lambda _, message, remedy: ConfigurationProblem(PROGRAM, None, "", message, remedy)
    )
    (root,) = pinned_roots(Endpoint.from_url(url), trust, _CA_TIME, now=clock.now()).certificates
    return root.public_bytes(Encoding.PEM).decode()


def bundle_text(path: Path, argument: str) -> str:
    """The text of a file of CA certificates.

    Raises:
        ConfigurationError: it isn't one.
    """
    at = ConfigurationProblem(PROGRAM, None, argument, "", "")
    read_ca_bundle(path, at=at)
    text = read_file(path, at=at).decode(errors="replace")
    return text if text.endswith("\n") else f"{text}\n"


def fingerprints(pem: str) -> Sequence[str]:
    """SHA-256 of each certificate of a PEM text, lower-case hex; none where it can't be read."""
    try:
        certificates = [x509.load_pem_x509_certificate(block.encode()) for block in _BLOCK.findall(pem)]
    except READ_ERRORS:
        return []
    return [hashlib.sha256(each.public_bytes(Encoding.DER)).hexdigest() for each in certificates]


def _text(path: Path) -> str:
    try:
        return read_file(path).decode(errors="replace")
    except CertplaneError:  # it isn't there, or is told where it is written
        return ""
