"""Distinguished names as people copy them: read in the forms that tools print, compared as directories compare.

What a broker compares callers by is one text, RFC 4514's. A person has the same name from `openssl`, a browser or a
log: attributes in the other order, another case, other spaces. Such a name is compared here with those that are known
(RFC 5280 7.1, RFC 4518: case and repeated spaces don't count), and the known one is used.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from cryptography import x509

_PREFIX = re.compile(r"\A\s*(?:issuer|subject)\s*=\s*", re.IGNORECASE)
_SLASHES = re.compile(r"/(?=[A-Za-z][A-Za-z0-9.]*\s*=)")
_PARTS = re.compile(r"\s*(?<!\\)([,+=])\s*")
_TYPE = re.compile(r"(?:\A|(?<!\\)[,+])[A-Za-z][A-Za-z0-9.-]*(?==)")

NormalName = tuple[tuple[tuple[str, str], ...], ...]


def parse_name(text: str) -> x509.Name:
    """A name as RFC 4514 or OpenSSL writes it: `CN=a,O=b`, `issuer=O = b, CN = a`, `/O=b/CN=a`.

    The order of what is written is taken as RFC 4514's; `find_name` looks at both.

    Raises:
        ValueError: it is none of these.
    """
    text = _PREFIX.sub("", text, count=1).strip()
    if text.startswith("/"):
        text = ",".join(_SLASHES.split(text)[1:])
    text = _PARTS.sub(r"\1", text)
    return x509.Name.from_rfc4514_string(_TYPE.sub(lambda match: match[0].upper(), text))


def find_name(wanted: x509.Name, known: Iterable[x509.Name]) -> x509.Name | None:
    """The one of `known` that is `wanted`, whatever the case, the spaces and the direction; None if there is none."""
    forward = _normal(wanted)
    for name in known:
        if _normal(name) in (forward, forward[::-1]):
            return name
    return None


def _normal(name: x509.Name) -> NormalName:
    return tuple(
        tuple(sorted((attribute.oid.dotted_string, _prepared(attribute.value)) for attribute in rdn))
        for rdn in name.rdns
    )


def _prepared(value: str | bytes) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
