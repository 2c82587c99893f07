"""Requests to the sandbox's identity CA taken apart, and the errors it answers with, in step-ca's words.

Bytes in, values out; what a request may do is decided in `identity_authority`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

UNAUTHORIZED = (
    "The request lacked necessary authorization to be completed. "
    "Please see the certificate authority logs for more info."
)
NOT_IMPLEMENTED = (
    "The requested method is not implemented by the certificate authority. "
    "Please see the certificate authority logs for more info."
)
_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_GO_TERM = r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)"

NAME_KINDS: dict[type[x509.GeneralName], str] = {
    x509.DNSName: "DNS names",
    x509.RFC822Name: "email addresses",
    x509.IPAddress: "IP addresses",
    x509.UniformResourceIdentifier: "URIs",
}
"""Kinds of SANs in the order in which step-ca compares them, with its name for each."""


class RefusedError(Exception):
    """The answer is an error, with step-ca's status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def bad_request(why: str) -> RefusedError:
    """400: what was sent is wrong."""
    return RefusedError(400, f"The request could not be completed: {why}.")


def unauthorized(message: str = UNAUTHORIZED) -> RefusedError:
    """401: the token, or the certificate, gives no right to this."""
    return RefusedError(401, message)


def forbidden(why: str) -> RefusedError:
    """403: the token is good, but not for this."""
    return RefusedError(403, f"The request was forbidden by the certificate authority: {why}.")


def by_kind(names: Sequence[x509.GeneralName]) -> dict[type[x509.GeneralName], list[str]]:
    """Names as text, grouped by their kind."""
    grouped: dict[type[x509.GeneralName], list[str]] = {}
    for name in names:
        grouped.setdefault(type(name), []).append(str(name.value))
    return grouped


def requested_names(csr: x509.CertificateSigningRequest) -> list[x509.GeneralName]:
    """The SANs of a CSR; empty without the extension.

    Raises:
        ValueError: its extensions can't be read.
    """
    try:
        return list(csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def json_object(body: bytes) -> dict[str, Any]:
    """The body, which must be a JSON object.

    Raises:
        RefusedError: 400.
    """
    try:
        members = json.loads(body)
    except ValueError as error:
        raise bad_request("error decoding json") from error
    if not isinstance(members, dict):
        raise bad_request("error decoding json")
    return members


def certificate_request(members: Mapping[str, Any]) -> x509.CertificateSigningRequest:
    """The member `csr`, with a good signature.

    Raises:
        RefusedError: 400.
    """
    if "csr" not in members:
        raise bad_request("missing csr")
    try:
        csr = x509.load_pem_x509_csr(str(members["csr"]).encode())
        csr.public_key()
        requested_names(csr)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise bad_request("error decoding json") from error
    if not csr.is_signature_valid:
        raise bad_request("invalid csr")
    return csr


def serial_number(members: Mapping[str, Any]) -> int:
    """The member `serial`, decimal or with 0x.

    Raises:
        RefusedError: 400.
    """
    text = str(members.get("serial", ""))
    if not text:
        raise bad_request("missing serial")
    try:
        return int(text, 0)
    except ValueError as error:
        raise bad_request(
            f"'{text}' is not a valid serial number - use a base 10 representation "
            "or a base 16 representation with '0x' prefix"
        ) from error


def moment(value: object) -> datetime | timedelta | None:
    """step-ca's TimeDuration: RFC 3339, or a Go duration relative to now or to `notBefore`.

    Raises:
        RefusedError: 400.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        if re.fullmatch(rf"[+-]?({_GO_TERM})+", value):
            sign = -1 if value.startswith("-") else 1
            return sign * timedelta(
                seconds=sum(float(term[1]) * _GO_UNITS[term[2]] for term in re.finditer(_GO_TERM, value))
            )
        with contextlib.suppress(ValueError):
            parsed = datetime.fromisoformat(value)
            if parsed.tzinfo is not None:
                return parsed
    raise bad_request("error decoding json")
