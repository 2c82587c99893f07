"""CSRs that the broker would take, and that it wouldn't, finalised at a real CA: what the CA can't read ends here at once.

An order, a validation and a finalisation are spent before a CA looks at a CSR. So nothing passes that it refuses, and
where the broker refuses more, `STRICTER` says why. Pebble reads CSRs with Go's x509, as Let's Encrypt's Boulder does.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from acme import challenges, messages
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from certplane.errors import RefusalError
from certplane.pki.csr import parse_csr
from certplane.pki.pem import decode_pem
from certplane.sandbox.pebble import Pebble, PebbleOptions
from tests.support.acme_client import AcmeClient
from tests.support.bad_csrs import BAD_CSRS, GOOD_CSR, common_name_as, named
from tests.support.csr import (
    attribute,
    craft,
    dns_san,
    ec_key,
    extension,
    extension_request,
    octets,
    oid,
    pem,
    rsa_key,
    san_extension,
    sequence,
    tlv,
)
from tests.support.parts import need_part
from tests.support.waiting import HANG

pytestmark = pytest.mark.integration

NULL = tlv(0x05)
NAME = b"www.example.test"


def signed(dotted: str, digest: hashes.HashAlgorithm, *parameters: bytes, curve: ec.EllipticCurve | None = None) -> str:
    """A CSR with this signature algorithm: of a new EC key on `curve`, else of an RSA key."""
    algorithm = sequence(oid(dotted), *parameters)
    if curve is None:
        return pem(
            craft(
                key=rsa_key(),
                algorithm=algorithm,
                sign=lambda data: rsa_key().sign(data, padding.PKCS1v15(), digest),
            )
        )
    key = ec.generate_private_key(curve)
    return pem(craft(key=key, algorithm=algorithm, sign=lambda data: key.sign(data, ec.ECDSA(digest))))


def asking(*extensions: bytes) -> Callable[[], str]:
    return lambda: pem(craft(attributes=[extension_request(san_extension(dns_san(NAME)), *extensions)]))


RSA_WITH, ECDSA_WITH = "1.2.840.113549.1.1.", "1.2.840.10045.4.3."
CASES = Path(__file__).parents[1] / "cases"

MORE: dict[str, Callable[[], str]] = {
    "sound": lambda: GOOD_CSR,
    "rsa-sha256-null": lambda: signed(RSA_WITH + "11", hashes.SHA256(), NULL),
    "rsa-sha256-absent": lambda: signed(RSA_WITH + "11", hashes.SHA256()),
    "rsa-sha384-absent": lambda: signed(RSA_WITH + "12", hashes.SHA384()),
    "rsa-sha512-absent": lambda: signed(RSA_WITH + "13", hashes.SHA512()),
    "rsa-sha224": lambda: signed(RSA_WITH + "14", hashes.SHA224(), NULL),
    "rsa-sha3": lambda: signed("2.16.840.1.101.3.4.3.14", hashes.SHA3_256(), NULL),
    "ecdsa-sha256-p384": lambda: signed(ECDSA_WITH + "2", hashes.SHA256(), curve=ec.SECP384R1()),
    "ecdsa-sha512-p256": lambda: signed(ECDSA_WITH + "4", hashes.SHA512(), curve=ec.SECP256R1()),
    "ecdsa-sha224": lambda: signed(ECDSA_WITH + "1", hashes.SHA224(), curve=ec.SECP256R1()),
    "rsa-3072": lambda: pem(craft(key=rsa_key(3072))),
    "rsa-4096": lambda: pem(craft(key=rsa_key(4096))),
    "subject-key-identifier": asking(extension("2.5.29.14", octets(b"\1" * 20))),
    "subject-key-identifier-empty": asking(extension("2.5.29.14", octets(b""))),
    "subject-key-identifier-critical": asking(extension("2.5.29.14", octets(b"\1"), critical=True)),
    "subject-key-identifier-twice": asking(*[extension("2.5.29.14", octets(b"\1"))] * 2),
    "ca-false": asking(extension("2.5.29.19", sequence())),
    "ca-false-critical": asking(extension("2.5.29.19", sequence(), critical=True)),
    "names-in-other-case-and-twice": named("WWW.Example.Test", "www.example.test"),
    "common-name-utf8": common_name_as(0x0C, NAME),
    "common-name-printable": common_name_as(0x13, NAME),
    "common-name-t61": common_name_as(0x14, NAME),
    "common-name-ia5": common_name_as(0x16, NAME),
    "common-name-visible": common_name_as(0x1A, NAME),
    "common-name-bmp": common_name_as(0x1E, NAME.decode().encode("utf-16-be")),
    "common-name-of-32-bits": common_name_as(0x1C, NAME.decode().encode("utf-32-be")),
    "common-name-bmp-of-odd-length": common_name_as(0x1E, NAME.decode().encode("utf-16-be") + b"\0"),
    "common-name-empty": common_name_as(0x0C, b""),
    "attributes-of-windows": lambda: pem(
        craft(
            attributes=[
                attribute("1.3.6.1.4.1.311.13.2.3", tlv(0x16, b"10.0.20348.2")),
                extension_request(san_extension(dns_san(NAME))),
            ]
        )
    ),
    **{str(file.relative_to(CASES)): file.read_text for file in sorted(CASES.glob("F*/*.csr"))},
}

STRICTER = {
    # the key must be in its one encoding, byte by byte
    "encoding-rsa-more-after-the-key",
    # no tool writes it, and the library doesn't read it
    "encoding-ecdsa-signature-with-null",
    "encoding-common-name-with-a-star",
    "row-01-unknown-version",
    "row-04-over-16-kib",
    # keys that Let's Encrypt refuses though Pebble doesn't, or that we don't make
    "row-06-rsa-1024",
    "row-07-rsa-e-3",
    "row-08-roca",
    "row-08-close-primes",
    "row-10-p521",
    # names of other kinds and a common name that isn't one of the names: dropped by the CA without a word
    *("row-15-email", "row-16-uri", "row-16-other-name", "row-16-registered-id", "row-16-directory-name", "row-16-x400"),
    *("row-17-cn-outside", "row-17-cn-no-name", "row-22-nul-in-cn", "row-25-raw-unicode-cn"),
    # everything else in a CSR would be dropped too (design, fixed decision 4)
    *(case.name for case in BAD_CSRS if case.name.startswith("row-32") and "second" not in case.name),
    *("attributes-of-windows", "F2/certtool.csr", "F2/certtool-web.csr", "F3/keytool-rsa.csr"),
}  # fmt: skip

ALL = {**{case.name: case.make for case in BAD_CSRS if not case.name.startswith("row-02")}, **MORE}


class _Csr:
    """What the `acme` package would send for a CSR that it can't read."""

    def __init__(self, der: bytes) -> None:
        self._der = der

    def json_dumps(self, **_: Any) -> str:
        return json.dumps({"csr": base64.urlsafe_b64encode(self._der).rstrip(b"=").decode()})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AcmeClient]:
    """An account at a CA that believes every challenge."""
    need_part("pebble")
    options = PebbleOptions(always_valid=True)
    async with Pebble(tmp_path_factory.mktemp("verdicts"), "127.0.0.1:1", options) as pebble:
        acme = await asyncio.to_thread(AcmeClient, pebble.directory_url, pebble.https_roots_file)
        yield acme
        acme.close()


def finalized(client: AcmeClient, der: bytes, names: list[str]) -> str:
    """Why the CA refuses this CSR for a validated order of these names; empty if it issues."""
    order = client.order(ec_key(), names)
    for authorization in order.authorizations:
        if authorization.body.status == messages.STATUS_VALID:
            continue  # of an order before
        challenge = next(c for c in authorization.body.challenges if isinstance(c.chall, challenges.DNS01))
        client.acme.answer_challenge(challenge, challenge.response(client.key))
    limit = datetime.now() + timedelta(seconds=HANG)  # noqa: DTZ005 (the acme package wants naive local time)
    order = client.acme.poll_authorizations(order, limit)
    try:
        client.acme._post(order.body.finalize, _Csr(der))  # type: ignore[arg-type] # what it would not send
    except messages.Error as error:
        return error.detail or "refused"
    return ""


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", ALL)
async def test_ours_is_the_cas_verdict(client: AcmeClient, case: str) -> None:
    """What the CA can't read is refused here before an order exists, and what it reads passes, but for named reasons."""
    text = ALL[case]()
    try:
        request = parse_csr(text)
    except RefusalError as error:
        ours, names = error.refusal.message, ["www.example.test"]
    else:
        ours, names = "", list(request.dns_names)
    if case.startswith("F") and ours:
        names = ["www.certplane.test", "api.certplane.test"]
    try:
        ((_, der),) = decode_pem(text, "CERTIFICATE REQUEST", max_blocks=1, max_length=10**6)
    except Exception:  # noqa: BLE001 - no CSR at all
        assert ours
        return
    theirs = await asyncio.to_thread(finalized, client, der, names)
    if case in STRICTER:
        assert ours
        assert not theirs, "the CA refuses it too: no exception any more"
    else:
        assert bool(ours) == bool(theirs), f"ours: {ours or 'taken'}; the CA's: {theirs or 'taken'}"
