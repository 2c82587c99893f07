"""Internal CAs as people make them: whose identities are let in, and which certificates stay no CA's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certplane.errors import RefusalError
from certplane.pki.identity import verify_identity
from certplane.pki.trust_bundle import TrustBundle
from tests.support.authority import NOW

DAY = timedelta(days=1)

_NO_USAGES = dict.fromkeys(
    (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    ),
    False,
)  # fmt: skip
SIGNS = x509.KeyUsage(**_NO_USAGES | {"key_cert_sign": True, "crl_sign": True})
SIGNS_NOTHING = x509.KeyUsage(**_NO_USAGES | {"crl_sign": True})
CA = x509.BasicConstraints(ca=True, path_length=None)

Extensions = Sequence[tuple[x509.ExtensionType, bool]]
"""With whether each is critical."""


class _Signer:
    def __init__(self, name: str, extensions: Extensions, issuer: _Signer | None = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = _signed(issuer or self, issuer_name=issuer and issuer.name, name=name, key=self.key,
                                   extensions=extensions)  # fmt: skip

    @property
    def name(self) -> x509.Name:
        return self.certificate.subject


def _signed(
    signer: _Signer,
    *,
    issuer_name: x509.Name | None,
    name: str,
    key: ec.EllipticCurvePrivateKey,
    extensions: Extensions,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer.key, hashes.SHA256())


def _verify(root: _Signer, *intermediates: _Signer) -> tuple[str, ...]:
    issuer = (root, *intermediates)[-1]
    leaf = _signed(
        issuer,
        issuer_name=issuer.name,
        name="web1.example",
        key=ec.generate_private_key(ec.SECP256R1()),
        extensions=[
            (x509.SubjectAlternativeName([x509.DNSName("web1.example")]), False),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        ],
    )
    chain = b"".join(each.certificate.public_bytes(Encoding.PEM) for each in intermediates)
    bundle = TrustBundle.from_pem(root.certificate.public_bytes(Encoding.PEM))
    return verify_identity(leaf.public_bytes(Encoding.PEM), chain, bundle, NOW).names


def _key_id() -> x509.ExtensionType:
    return x509.SubjectKeyIdentifier.from_public_key(ec.generate_private_key(ec.SECP256R1()).public_key())


SHAPES = [
    pytest.param(lambda: [(CA, True), (SIGNS, True)], id="as step-ca makes it"),
    pytest.param(lambda: [(CA, True), (_key_id(), False)], id="openssl req -x509: no keyUsage"),
    pytest.param(lambda: [(CA, False), (SIGNS, False)], id="easy-rsa: nothing critical"),
    pytest.param(lambda: [(CA, False)], id="CA:TRUE and nothing else"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_root_that_others_take(shape: Callable[[], Extensions]) -> None:
    """What RFC 5280 6.1 needs of a CA is enough; rules for public CAs (CA/Browser Forum) aren't asked of it."""
    assert _verify(_Signer("Root", shape())) == ("web1.example",)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_intermediate_that_others_take(shape: Callable[[], Extensions]) -> None:
    """The same of the CA between."""
    root = _Signer("Root", [(CA, True)])
    assert _verify(root, _Signer("Intermediate", shape(), root)) == ("web1.example",)


@pytest.mark.parametrize(
    "extensions",
    [
        pytest.param([], id="no basicConstraints"),
        pytest.param([(x509.BasicConstraints(ca=False, path_length=None), True), (SIGNS, True)], id="CA:FALSE"),
        pytest.param([(CA, True), (SIGNS_NOTHING, True)], id="not for signing"),
        pytest.param([(CA, True), (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)], id="of servers"),
        pytest.param([(CA, True), (x509.NameConstraints([x509.DNSName("other")], None), True)], id="of other names"),
        pytest.param(
            [(CA, True), (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)],
            id="critical and unknown",
        ),
    ],
)
def test_what_is_no_ca_of_identities_lets_nobody_in(extensions: Extensions) -> None:
    """What a CA's certificate does say is kept, wherever it stands on the path."""
    root = _Signer("Root", [(CA, True)])
    with pytest.raises(RefusalError, match="no valid path"):
        _verify(root, _Signer("Intermediate", extensions, root))


def test_a_path_is_not_longer_than_its_cas_allow() -> None:
    """A pathLenConstraint counts, of the root and of those between."""
    none_between = _Signer("Root", [(x509.BasicConstraints(ca=True, path_length=0), True)])
    with pytest.raises(RefusalError, match="no valid path"):
        _verify(none_between, _Signer("Intermediate", [(CA, True)], none_between))
    root = _Signer("Root", [(CA, True)])
    first = _Signer("First", [(x509.BasicConstraints(ca=True, path_length=0), True)], root)
    assert _verify(root, first) == ("web1.example",)
    with pytest.raises(RefusalError, match="no valid path"):
        _verify(root, first, _Signer("Second", [(CA, True)], first))
