"""What a failed connection means: the errors of sockets and TLS in a few kinds, each with words for a person.

The caller adds who the other side is and what to do, which depends on its own settings.
"""

from __future__ import annotations

import socket
import ssl
from enum import StrEnum


class ConnectionFailure(StrEnum):
    """Kinds of failures that want different remedies."""

    NOT_FOUND = "not found"
    """The name has no address."""
    UNREACHABLE = "unreachable"
    """Nothing listens there, or no way leads there."""
    PROXY = "proxy"
    """The proxy on the way there can't be reached, or refuses."""
    TIMEOUT = "timeout"
    NO_TLS = "no TLS"
    """What listens there speaks no TLS, or not with us."""
    UNTRUSTED = "untrusted"
    """Its certificate is from a CA that isn't trusted."""
    WRONG_NAME = "wrong name"
    """Its certificate is for other names."""
    WRONG_TIME = "wrong time"
    """Its certificate is over or not yet valid, or this host's clock is wrong."""


_VERIFY_CODES = {
    9: ConnectionFailure.WRONG_TIME,
    10: ConnectionFailure.WRONG_TIME,
    62: ConnectionFailure.WRONG_NAME,
    64: ConnectionFailure.WRONG_NAME,
}
"""X509_V_ERR_* of OpenSSL's x509_vfy.h: not yet valid, expired, host name mismatch, address mismatch."""


def connection_failure(error: OSError | UnicodeError) -> tuple[ConnectionFailure, str]:
    """The kind of `error` and a phrase that goes on from "the server": "can't be found: ..."."""
    if isinstance(error, UnicodeError):  # from the resolver's IDNA encoding: a label that is empty or too long
        return ConnectionFailure.NOT_FOUND, "can't be found: its name is no host name"
    if isinstance(error, ssl.SSLCertVerificationError):
        kind = _VERIFY_CODES.get(error.verify_code, ConnectionFailure.UNTRUSTED)
        return kind, f"is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return ConnectionFailure.NO_TLS, f"doesn't agree on TLS: {ssl_reason(error)}"
    if isinstance(error, socket.gaierror):
        return ConnectionFailure.NOT_FOUND, f"can't be found: {error.strerror}"
    if isinstance(error, TimeoutError):
        return ConnectionFailure.TIMEOUT, "doesn't answer"
    return ConnectionFailure.UNREACHABLE, f"can't be reached: {error.strerror or error}"


def ssl_reason(error: ssl.SSLError) -> str:
    """OpenSSL's reason in words; of an alert only what it alerts of."""
    reason = (error.reason or str(error)).replace("_", " ").lower()
    return reason.partition("alert ")[2] or reason
