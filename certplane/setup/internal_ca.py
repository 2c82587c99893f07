"""The internal CA of a new machine: how it is known, its roots as the text of a file, and a token for it. Blocks.

A root that is here already is not fetched again: its file may have a second one, for the day of a new internal CA.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.config.bundles import read_ca_bundle
from certplane.config.files import is_input, read_argument, read_file, read_private_file
from certplane.config.values import Fingerprint, HttpsUrl
from certplane.errors import CertplaneError, ConfigurationError, ConfigurationProblem, OperationError
from certplane.pki.reading import READ_ERRORS
from certplane.runtime.clock import Clock
from certplane.runtime.disk_errors import explain
from certplane.setup.asking import Asker
from certplane.stepca.exchange import Endpoint
from certplane.stepca.token import check_token, parse_token
from certplane.stepca.trust import Trust, pinned_roots

CA_TIME = timedelta(seconds=10)
"""For one answer of the CA; a person waits."""
_MOST_TOKEN = 16 * 1024
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)

_FLAGS = (
    ("identity.step_ca.fingerprint and root_ca_bundle", "--ca-fingerprint or --ca-bundle"),
    ("identity.step_ca.fingerprint", "--ca-fingerprint"),
    ("identity.step_ca.root_ca_bundle", "--ca-bundle"),
    ("identity.step_ca.url", "--ca-url"),
    ("identity.name", "--name"),
    ("`certplane-agent enroll`", "the same command"),
)
"""What messages about the CA call a setting, and the argument that says it while there is no file with settings."""


@dataclass(frozen=True, slots=True)
class Pin:
    """How the internal CA is known: by a fingerprint, or by a file."""

    fingerprint: str = ""
    bundle: Path | None = None


def as_flags(error: CertplaneError) -> CertplaneError:
    """The same error for somebody who has typed arguments and has no configuration yet."""
    if isinstance(error, ConfigurationError):
        return error
    text = str(error)
    for setting, flag in _FLAGS:
        text = text.replace(setting, flag)
    return OperationError(text)


def asked_ca(
    asker: Asker, url: str | None, fingerprint: str | None, bundle: Path | None
) -> tuple[HttpsUrl | None, Pin]:
    """The CA of the arguments `--ca-url`, `--ca-fingerprint` and `--ca-bundle`; what is missing is asked for.

    Raises:
        ConfigurationError: an argument is wrong.
    """
    found = asker.value(url, "--ca-url", "The internal CA's URL, https://", HttpsUrl.parse)
    if bundle is not None:
        return found, Pin(bundle=bundle)
    question = "The fingerprint of its root (`step certificate fingerprint root_ca.crt`)"
    return found, Pin(asker.value(fingerprint, "--ca-fingerprint", question, Fingerprint.parse) or "")


def internal_ca_text(program: str, url: str, pin: Pin, there: Path, clock: Clock) -> str:
    """The internal CA's roots, PEM.

    Args:
        program: how problems name the command.
        url: of the CA.
        pin: how it is known.
        there: the file of an earlier run.
        clock: says which certificates have ended.

    Raises:
        CertplaneError: the CA can't be asked, has no such root, or the bundle can't be used.
    """
    if pin.bundle is not None:
        return bundle_text(program, pin.bundle, "--ca-bundle")
    kept = _text(there)
    if pin.fingerprint in fingerprints(kept):
        return kept
    trust = Trust(
        pin.fingerprint, None, None, lambda _, message, remedy: ConfigurationProblem(program, None, "", message, remedy)
    )
    (root,) = pinned_roots(Endpoint.from_url(url), trust, CA_TIME, now=clock.now()).certificates
    return root.public_bytes(Encoding.PEM).decode()


def require_pinned(text: str, pin: Pin) -> None:
    """Whether the roots that another process has fetched are the pinned ones: who writes them looks by itself.

    Raises:
        OperationError: the pinned root isn't among them.
    """
    if pin.fingerprint and pin.fingerprint not in fingerprints(text):
        raise OperationError(f"what was fetched has no root with the fingerprint {pin.fingerprint}")


def bundle_text(program: str, path: Path, argument: str) -> str:
    """The text of a file of CA certificates.

    Raises:
        ConfigurationError: it isn't one.
    """
    at = ConfigurationProblem(program, None, argument, "", "")
    read_ca_bundle(path, at=at)
    text = read_file(path, at=at).decode(errors="replace")
    return text if text.endswith("\n") else f"{text}\n"


def certificates_in(pem: str) -> Sequence[x509.Certificate]:
    """Each certificate of a PEM text; none where one can't be read."""
    try:
        return [x509.load_pem_x509_certificate(block.encode()) for block in _BLOCK.findall(pem)]
    except READ_ERRORS:
        return []


def fingerprints(pem: str) -> Sequence[str]:
    """SHA-256 of each certificate of a PEM text, lower-case hex."""
    return [hashlib.sha256(each.public_bytes(Encoding.DER)).hexdigest() for each in certificates_in(pem)]


def token_for(asker: Asker, path: Path | None, name: str, roots: Iterable[str], clock: Clock, *, why: str) -> str:
    """The one-time token for `name`, judged as far as it can be before it is sent; asked for where no file is named.

    Args:
        asker: asks.
        path: of `--token`; `-` is standard input, None that it wasn't given.
        name: whose token it must be.
        roots: fingerprints of the CA's roots.
        clock: says whether its time is over.
        why: what it is needed for: "this host has no identity yet".

    Raises:
        ConfigurationError: it isn't there, or holds something else than one token.
        OperationError: it is another name's or another CA's, or its time is over.
    """
    token = _token(asker, path, name, why)
    try:
        check_token(parse_token(token), names=[name], root_sha256=[*roots], now=clock.now())
    except CertplaneError as error:
        raise as_flags(error) from error
    return token


def discard_token(path: Path | None, *, used: bool) -> str:
    """Remove a used token's file; returns a line that says so, empty where there is no file."""
    if path is None or is_input(path):
        return ""
    if not used:
        return f"kept {path}: the token wasn't needed"
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return f"the used token can't be removed: {explain(error, path)[0]}; remove it by hand"
    return f"removed {path}: the token is used"


def _token(asker: Asker, path: Path | None, name: str, why: str) -> str:
    if path is None:
        text = asker.secret(f"A one-time token for {name} (`step ca token {name}`; not shown)")
        if not text:
            remedy = f"give --token FILE, or --token - and the token of `step ca token {name}` on standard input"
            asker.missing("--token", f"is required: {why}", remedy)
            asker.finish()
    elif is_input(path):
        text = read_argument(path, max_bytes=_MOST_TOKEN).decode("ascii", errors="replace").strip()
    else:
        at = asker.problem("--token", "")
        text = read_private_file(path, at=at, max_bytes=_MOST_TOKEN).decode("ascii", errors="replace").strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        what = "holds something else than one token" if text else "is empty"
        raise ConfigurationError(
            [asker.problem("--token", what, f"give it what `step ca token {name}` prints, and nothing else")]
        )
    return text


def _text(path: Path) -> str:
    try:
        return read_file(path).decode(errors="replace")
    except CertplaneError:  # it isn't there, or is told where it is written
        return ""
