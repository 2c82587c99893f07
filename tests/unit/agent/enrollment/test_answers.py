"""What the internal CA hands out is an identity only if the broker will let it in as this host."""

from __future__ import annotations

import json

import pytest
from cryptography import x509

from certplane.agent.enrollment.answers import accept_certificate
from certplane.pki.keys import public_key_sha256
from certplane.pki.trust_bundle import TrustBundle
from certplane.stepca.errors import EnrollmentError
from certplane.stepca.exchange import Reply
from tests.support.authority import NOW, Authority, IssuedLeaf, certificate_pem
from tests.support.csr import SAN, sequence, tlv

AUTHORITY = Authority("Test", "ec")
NAME = "web1.example"


def accept(leaf: IssuedLeaf) -> str:
    chain = [leaf.pem, *map(certificate_pem, leaf.chain)]
    reply = Reply(201, json.dumps({"certChain": chain}).encode())
    return accept_certificate(
        reply,
        key_sha256=public_key_sha256(leaf.key.public_key()),
        names=[NAME],
        anchors=TrustBundle.from_pem(AUTHORITY.root_pem),
        now=NOW,
    ).certificate_pem


@pytest.mark.parametrize("common_name", ["", NAME, NAME.upper()])
def test_a_common_name_that_the_broker_takes(common_name: str) -> None:
    """None, or the identity's name in any case."""
    assert accept(AUTHORITY.issue(NAME, common_name=common_name)).startswith("-----BEGIN CERTIFICATE-----")


@pytest.mark.parametrize("common_name", ["web1", f"{NAME}.", "x.example", "Web Server 1"])
def test_a_common_name_that_the_broker_refuses(common_name: str) -> None:
    """A template or a token's subject may put another in: the host says so now, and not at each call of the broker."""
    with pytest.raises(
        EnrollmentError, match=r"its common name is .*, and the broker lets in only web1.example"
    ) as caught:
        accept(AUTHORITY.issue(NAME, common_name=common_name))
    assert "provisioner's template" in caught.value.remedy


def test_other_names_and_another_key() -> None:
    """The same of the names."""
    with pytest.raises(EnrollmentError, match=r"it is for other\.example instead of web1\.example"):
        accept(AUTHORITY.issue("other.example"))


@pytest.mark.parametrize(
    "name", [tlv(0xA3, b""), tlv(0xA5, tlv(0xA1, tlv(0x0C, b"x")))], ids=["x400-address", "edi-party-name"]
)
def test_names_that_nobody_reads(name: bytes) -> None:
    """A certificate whose names the library has no type for is not usable, and said so: never a traceback."""
    value = x509.UnrecognizedExtension(x509.ObjectIdentifier(SAN), sequence(name))
    with pytest.raises(EnrollmentError, match=r"is not usable: .*not supported"):
        accept(AUTHORITY.issue(extra=[(value, False)]))
