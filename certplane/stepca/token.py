"""Reading a one-time bootstrap token: a compact JWS (RFC 7515) made by step-ca's provisioner key.

The signature is the CA's to verify. This host only looks at what saves a token from being burnt for nothing: whose root
it names, whom it is for, and whether its time is over. The token itself never appears in an error or a log.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from certplane.stepca.errors import EnrollmentError

_PURPOSES = frozenset({"", "/", "/sign"})
_LEEWAY = timedelta(minutes=1)
"""What step-ca allows for `nbf` and `exp`."""
_NEW_TOKEN = "get a new token from whoever operates the internal CA"  # noqa: S105 - advice, not a token


@dataclass(frozen=True, slots=True)
class BootstrapToken:
    """A token's claims, as far as this host looks at them.

    Attributes:
        subject: claim `sub`, the common name of the identity.
        names: claim `sans`, or the subject alone, as step-ca reads it.
        root_sha256: claim `sha`, the root's fingerprint in lower-case hex; empty when absent.
        not_before: claim `nbf`.
        expire_time: claim `exp`.
        purpose: what the claim `aud` says it is for: the path of the CA's URL, empty when absent.
        provisioner_kind: which kind of provisioner makes such tokens, as far as one can tell.
    """

    subject: str
    names: tuple[str, ...]
    root_sha256: str
    not_before: datetime | None
    expire_time: datetime | None
    purpose: str = ""
    provisioner_kind: str = "JWK"

    @property
    def warning(self) -> str:
        """What the broker may have against the identity that this token makes; empty if nothing is known."""
        if self.provisioner_kind == "JWK":
            return ""
        return (
            f"the token is of a provisioner of the kind {self.provisioner_kind}, whose identities a broker lets in "
            "only with server.mtls.provisioners; ask who runs the broker, or get a token of a JWK provisioner"
        )


def parse_token(token: str) -> BootstrapToken:
    """Read the claims of a compact JWS without verifying it.

    Raises:
        EnrollmentError: it isn't a token at all; nothing was sent.
    """
    try:
        claims = _claims(token)
        subject = _text(claims, "sub")
        return BootstrapToken(
            subject=subject,
            names=_texts(claims, "sans") or ((subject,) if subject else ()),
            root_sha256=_text(claims, "sha").replace(":", "").lower(),
            not_before=_time(claims, "nbf"),
            expire_time=_time(claims, "exp"),
            purpose=_purpose(claims),
            provisioner_kind=_provisioner_kind(_part(token, 0), claims),
        )
    except (ValueError, RecursionError):
        # the cause is dropped: its text would quote the token
        raise EnrollmentError(
            "the bootstrap token is not a step-ca token (a JWT of three base64url parts)",
            remedy="put the output of `step ca token` into the token file, nothing else",
        ) from None


def check_token(token: BootstrapToken, *, names: Sequence[str], root_sha256: Sequence[str], now: datetime) -> None:
    """Refuse a token that the CA would refuse or that would make the wrong identity, before it is sent.

    Args:
        token: the parsed token.
        names: the names that the identity must have.
        root_sha256: fingerprints of the pinned roots, lower-case hex.
        now: the host's time.

    Raises:
        EnrollmentError: with what to do; nothing was sent.
    """
    if token.root_sha256 and token.root_sha256 not in root_sha256:
        raise EnrollmentError(
            f"the token is for a CA whose root has the fingerprint {token.root_sha256}, but this host trusts "
            f"{', '.join(root_sha256)}",
            remedy="compare identity.step_ca.fingerprint with `step certificate fingerprint root_ca.crt` on the CA",
        )
    if token.expire_time is not None and token.expire_time + _LEEWAY < now:
        raise EnrollmentError(
            f"the bootstrap token expired at {token.expire_time:%Y-%m-%dT%H:%M:%SZ}",
            remedy=f"{_NEW_TOKEN} (or set this host's clock, which says {now:%Y-%m-%dT%H:%M:%SZ})",
        )
    if token.not_before is not None and now + _LEEWAY < token.not_before:
        raise EnrollmentError(
            f"the bootstrap token is not valid before {token.not_before:%Y-%m-%dT%H:%M:%SZ}",
            remedy=f"set this host's clock, which says {now:%Y-%m-%dT%H:%M:%SZ}",
        )
    right = f"`step ca token {' '.join(names)}`"
    if token.purpose not in _PURPOSES:
        raise EnrollmentError(
            f"the token is for the CA's {token.purpose}, and doesn't ask for a certificate",
            remedy=f"get a token for a new certificate: {right}",
        )
    if set(token.names) != set(names):
        raise EnrollmentError(
            f"the token is for {', '.join(token.names) or 'no name'}, but this host is {', '.join(names)}",
            remedy=f"get a token for this host's name alone ({right}), or correct identity.name",
        )
    if token.subject and token.subject not in names:
        raise EnrollmentError(
            f"the token's subject is {token.subject}, which would be the identity's common name; the broker lets in "
            f"only identities whose common name is empty or {', '.join(names)}",
            remedy=f"get a token whose subject is the whole name, without --san: {right}",
        )


def _provisioner_kind(header: dict[str, Any], claims: dict[str, Any]) -> str:
    if "x5c" in header:
        return "X5C"
    if "nebula" in header:
        return "Nebula"
    if "kubernetes.io" in claims:
        return "K8sSA"
    return "OIDC" if isinstance(claims.get("iss"), str) and claims["iss"].startswith("https://") else "JWK"


def _claims(token: str) -> dict[str, Any]:
    return _part(token, 1)


def _part(token: str, number: int) -> dict[str, Any]:
    """The header or the claims."""
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("a compact JWS has three parts")
    part = parts[number] + "=" * (-len(parts[number]) % 4)
    members = json.loads(base64.b64decode(part, altchars=b"-_", validate=True))
    if not isinstance(members, dict):
        raise ValueError("header and claims are JSON objects")  # noqa: TRY004 - bad input, not misuse
    return members


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name, "")
    if not isinstance(value, str):
        raise ValueError(name)  # noqa: TRY004 - bad input, not misuse
    return value


def _texts(claims: dict[str, Any], name: str) -> tuple[str, ...]:
    value = claims.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(name)
    return tuple(value)


def _purpose(claims: dict[str, Any]) -> str:
    """The path in `aud`, without the version: `/sign`, `/ssh/sign`, `/revoke`, ... The host is the CA's to judge."""
    value = claims.get("aud")
    audiences = [value] if isinstance(value, str) else value or []
    if not isinstance(audiences, list) or not all(isinstance(item, str) for item in audiences):
        raise ValueError("aud")
    paths = [urlsplit(audience).path.removeprefix("/1.0") for audience in audiences if "://" in audience]
    return next((path for path in paths if path in _PURPOSES), paths[0] if paths else "")


def _time(claims: dict[str, Any], name: str) -> datetime | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(name)  # noqa: TRY004 - bad input, not misuse
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, OSError) as error:
        raise ValueError(name) from error
