"""CSRs that are wrong in one way each, by the rows of the bad-input table, and what is said about them.

One table for whoever reads CSRs of strangers: the parser alone, and a running broker. Everything is for
www.example.test, so that where this name is granted nothing else is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certplane.errors import Reason
from certplane.pki.csr import MAX_CSR_LENGTH
from certplane.pki.keys import KeyType, generate_private_key
from tests.support.csr import (
    attribute,
    close_prime_key,
    common_name,
    craft,
    dns_san,
    ec_key,
    extension,
    extension_request,
    integer,
    name,
    octets,
    oid,
    pem,
    roca_key,
    rsa_key,
    rsa_spki,
    san_extension,
    sequence,
    spki,
    tlv,
)

GOOD_CSR = pem(craft())


@dataclass(frozen=True)
class BadCsr:
    """One way to be wrong: `make` the PEM text; the reason, and a part of the message, with which it is refused.

    `name` begins with the row: `row-07-rsa-e-3`.
    """

    make: Callable[[], str]
    reason: Reason
    phrase: str
    name: str


def named(*names: str | bytes, cn: str = "") -> Callable[[], str]:
    return lambda: pem(craft(names=names, subject=common_name(cn) if cn else b"0\0"))


def _with_san(*general_names: bytes) -> Callable[[], str]:
    return lambda: pem(
        craft(attributes=[extension_request(san_extension(dns_san("www.example.test"), *general_names))])
    )


def _with_extension(dotted: str, value: bytes, *, critical: bool = False) -> Callable[[], str]:
    request = extension_request(san_extension(dns_san("www.example.test")), extension(dotted, value, critical=critical))
    return lambda: pem(craft(attributes=[request]))


def _with_attributes(*more: bytes) -> Callable[[], str]:
    return lambda: pem(craft(attributes=[extension_request(san_extension(dns_san("www.example.test"))), *more]))


def _with_modulus(modulus: int, exponent: int = 65537) -> Callable[[], str]:
    # Nobody knows such a key's other half: it must be refused before the signature is looked at.
    return lambda: pem(craft(key=rsa_key(), public=rsa_spki(modulus, exponent)))


def _signed_with(private_key: rsa.RSAPrivateKey, algorithm: str, digest: hashes.HashAlgorithm) -> str:
    return pem(
        craft(
            key=private_key,
            algorithm=sequence(oid(algorithm), tlv(0x05)),
            sign=lambda data: private_key.sign(data, padding.PKCS1v15(), digest),
        )
    )


def _ecdsa_sha1() -> str:
    return pem(
        craft(
            algorithm=sequence(oid("1.2.840.10045.4.1")),
            sign=lambda data: ec_key().sign(data, ec.ECDSA(hashes.SHA1())),  # noqa: S303 - what is to be refused
        )
    )


def _library_csr(
    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey, digest: hashes.HashAlgorithm | None
) -> str:
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("www.example.test")]), critical=True)
    return builder.sign(key, digest).public_bytes(serialization.Encoding.PEM).decode()  # type: ignore[arg-type] # None goes with Ed25519


def _dsa() -> str:
    key = dsa.generate_private_key(2048)
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    algorithm = sequence(oid("2.16.840.1.101.3.4.3.2"))
    return pem(craft(public=der, algorithm=algorithm, sign=lambda data: key.sign(data, hashes.SHA256())))


def _pss() -> str:
    csr = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(
        x509.SubjectAlternativeName([x509.DNSName("www.example.test")]), critical=True
    )
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    return csr.sign(rsa_key(), hashes.SHA256(), rsa_padding=pss).public_bytes(serialization.Encoding.PEM).decode()


def compressed_point() -> str:
    point = ec_key().public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    algorithm = sequence(oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7"))
    return pem(craft(public=sequence(algorithm, tlv(0x03, b"\0", point))))


def _null() -> bytes:
    return tlv(0x05)


def _rsa_csr(public: bytes | None = None, algorithm: bytes | None = None) -> Callable[[], str]:
    return lambda: pem(craft(key=rsa_key(), public=public, algorithm=algorithm))


def _rsa_numbers(modulus: bytes, exponent: bytes, *, tail: bytes = b"", unused: int = 0) -> bytes:
    """An RSA key of two numbers that are encoded already."""
    algorithm = sequence(oid("1.2.840.113549.1.1.1"), _null())
    return sequence(algorithm, tlv(0x03, bytes([unused]), sequence(modulus, exponent), tail))


def _ec_spki(point: bytes, *parameters: bytes) -> bytes:
    return sequence(sequence(oid("1.2.840.10045.2.1"), *parameters), tlv(0x03, b"\0", point))


def _ec_point(point_format: serialization.PublicFormat) -> bytes:
    return ec_key().public_key().public_bytes(serialization.Encoding.X962, point_format)


def _hybrid_point() -> bytes:
    point = _ec_point(serialization.PublicFormat.UncompressedPoint)
    return bytes([6 + (point[-1] & 1)]) + point[1:]


def _explicit_curve() -> bytes:
    """P-256 written out as its numbers instead of its name (RFC 3279 2.3.5, which RFC 5480 forbids)."""
    prime = 2**256 - 2**224 + 2**192 + 2**96 - 1
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    base = bytes.fromhex(
        "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
    )
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    field = sequence(oid("1.2.840.10045.1.1"), integer(prime))
    curve = sequence(octets((prime - 3).to_bytes(32, "big")), octets(b.to_bytes(32, "big")))
    return sequence(integer(1), field, curve, octets(base), integer(order), integer(1))


def _long_length(element: bytes) -> bytes:
    """The same element with its length in one octet more than DER allows (BER does)."""
    assert element[1] == 0x82
    return element[:1] + b"\x83\x00" + element[2:]


def common_name_as(tag: int, value: bytes) -> Callable[[], str]:
    """A CSR for www.example.test whose common name is a string of this type."""
    subject = sequence(tlv(0x31, sequence(oid(NameOID.COMMON_NAME.dotted_string), tlv(tag, value))))
    return lambda: pem(craft(subject=subject))


def _unused_bits() -> str:
    """A signature whose BIT STRING says that its last bit isn't of it; that bit is 0, as DER has it."""
    for number in range(256):
        extensions = san_extension(dns_san("www.example.test")), extension("2.5.29.14", octets(bytes([number])))
        der = craft(key=rsa_key(), attributes=[extension_request(*extensions)])
        if not der[-1] & 1:
            break
    return pem(der[:-257] + b"\1" + der[-256:])


def _bad_point() -> str:
    algorithm = sequence(oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7"))
    return pem(craft(public=sequence(algorithm, tlv(0x03, b"\0\x04" + b"\x01" * 64))))


_ODD_2048 = (1 << 2047) + 1155  # divisible by a small prime, whatever else it is
_SOUND_LOOKING = rsa_key().public_key().public_numbers().n


def _square() -> int:
    prime: int = close_prime_key().private_numbers().p
    return prime * prime


_INVALID = Reason.CSR_INVALID
_WEAK = Reason.KEY_WEAK

BAD_CSRS = [
    # what a PEM text is
    BadCsr(lambda: "", _INVALID, "no PEM block", name="row-01-empty"),
    BadCsr(lambda: "hello", _INVALID, "no PEM block", name="row-01-no-pem"),
    BadCsr(lambda: "\ud800", _INVALID, "no PEM block", name="row-01-lone-surrogate"),
    BadCsr(lambda: pem(b"\x30\x03garbage"), _INVALID, "can't be read", name="row-01-garbage-der"),
    BadCsr(lambda: pem(craft()[:-7]), _INVALID, "can't be read", name="row-01-truncated-der"),
    BadCsr(lambda: GOOD_CSR.replace("M", "!", 1), _INVALID, "not base64 in line 2", name="row-01-bad-base64-character"),
    BadCsr(lambda: GOOD_CSR.replace("\n-----END", "A\n-----END"), _INVALID, "base64", name="row-01-bad-base64-length"),
    BadCsr(lambda: pem(craft(), "CERTIFICATE"), _INVALID, "'CERTIFICATE'", name="row-01-other-label"),
    BadCsr(lambda: pem(craft(version=1)), _INVALID, "can't be read", name="row-01-unknown-version"),
    BadCsr(lambda: GOOD_CSR + GOOD_CSR, _INVALID, "more than one", name="row-02-two"),
    BadCsr(lambda: GOOD_CSR + "\0", _INVALID, "control character (0x00)", name="row-02-trailing-nul"),
    BadCsr(lambda: "junk" + GOOD_CSR, _INVALID, "inside of line 1", name="row-02-text-in-the-begin-line"),
    BadCsr(lambda: GOOD_CSR[:-20] + "\n", _INVALID, "no line `-----END", name="row-02-cut-off"),
    BadCsr(lambda: GOOD_CSR + pem(b"key", "PRIVATE KEY"), _INVALID, "PRIVATE KEY", name="row-02-private-key-beside"),
    BadCsr(lambda: pem(craft() + b"\0"), _INVALID, "can't be read", name="row-02-trailing-der"),
    # the proof of possession
    BadCsr(
        lambda: pem(craft(sign=lambda data: ec_key().sign(data + b"x", ec.ECDSA(hashes.SHA256())))),
        _INVALID, "signature is not valid", name="row-03-signature-over-other-bytes",
    ),
    BadCsr(
        lambda: pem(craft(sign=lambda data: generate_private_key(KeyType.EC_P256).sign(data, ec.ECDSA(hashes.SHA256())))),  # type: ignore[call-arg,arg-type] # an EC key
        _INVALID, "signature is not valid", name="row-03-signed-by-another-key",
    ),
    BadCsr(lambda: pem(craft(sign=lambda _: b"junk")), _INVALID, "signature", name="row-03-signature-not-der"),
    BadCsr(lambda: GOOD_CSR + " " * MAX_CSR_LENGTH, _INVALID, "longer than 16384", name="row-04-over-16-kib"),
    # keys
    BadCsr(lambda: pem(craft(key=rsa_key(1024))), _WEAK, "1024 bits", name="row-06-rsa-1024"),
    BadCsr(_with_modulus((1 << 511) + 187), _WEAK, "512 bits", name="row-06-rsa-512"),
    BadCsr(_with_modulus(_SOUND_LOOKING, 1), _INVALID, "public key can't be used", name="row-07-rsa-e-1"),
    BadCsr(lambda: pem(craft(key=rsa_key(2048, 3))), _WEAK, "exponent", name="row-07-rsa-e-3"),
    BadCsr(_with_modulus(_SOUND_LOOKING, 65538), _INVALID, "can't be used", name="row-07-rsa-even-exponent"),
    BadCsr(_with_modulus(_SOUND_LOOKING, 1 << 256 | 1), _WEAK, "exponent", name="row-07-rsa-huge-exponent"),
    BadCsr(_with_modulus(_SOUND_LOOKING - 1), _WEAK, "small factor", name="row-08-even-modulus"),
    BadCsr(_with_modulus(_ODD_2048), _WEAK, "small factor", name="row-08-small-factor"),
    BadCsr(lambda: pem(craft(key=roca_key())), _WEAK, "CVE-2017-15361", name="row-08-roca"),
    BadCsr(lambda: pem(craft(key=close_prime_key())), _WEAK, "close", name="row-08-close-primes"),
    BadCsr(_with_modulus(_square()), _WEAK, "close", name="row-08-square-of-a-prime"),
    BadCsr(_with_modulus((1 << 8191) + 1155), _WEAK, "8192 bits", name="row-09-rsa-8192"),
    BadCsr(_with_modulus(_SOUND_LOOKING >> 1 | 1), _WEAK, "2047 bits", name="row-09-rsa-2047"),
    BadCsr(_with_modulus((_SOUND_LOOKING << 8) + 1), _WEAK, "2056 bits", name="row-09-rsa-2056"),
    BadCsr(lambda: _library_csr(ed25519.Ed25519PrivateKey.generate(), None), _WEAK, "Ed25519", name="row-10-ed25519"),
    BadCsr(lambda: _library_csr(ed448.Ed448PrivateKey.generate(), None), _WEAK, "Ed448", name="row-10-ed448"),  # type: ignore[arg-type] # one more kind
    BadCsr(
        lambda: _library_csr(ec.generate_private_key(ec.SECP521R1()), hashes.SHA512()), _WEAK, "secp521r1", name="row-10-p521"
    ),
    BadCsr(
        lambda: _library_csr(ec.generate_private_key(ec.SECP256K1()), hashes.SHA256()), _WEAK, "secp256k1", name="row-10-secp256k1"
    ),
    BadCsr(_dsa, _WEAK, "DSA", name="row-10-dsa"),
    BadCsr(_bad_point, _INVALID, "can't be used", name="row-10-point-not-on-curve"),
    BadCsr(_ecdsa_sha1, _INVALID, "signature algorithm", name="row-11-ecdsa-sha1"),
    BadCsr(
        lambda: _signed_with(rsa_key(), "1.2.840.113549.1.1.5", hashes.SHA1()),  # noqa: S303 - what is to be refused
        _INVALID, "signature algorithm", name="row-11-rsa-sha1",
    ),
    BadCsr(
        lambda: _signed_with(rsa_key(), "1.2.840.113549.1.1.4", hashes.MD5()),  # noqa: S303 - what is to be refused
        _INVALID, "signature algorithm", name="row-11-rsa-md5",
    ),
    BadCsr(_pss, _INVALID, "signature algorithm", name="row-11-rsa-pss"),
    BadCsr(
        lambda: pem(craft(algorithm=sequence(oid("1.2.3.4")))), _INVALID, "signature algorithm", name="row-11-unknown-algorithm"
    ),
    # encodings of sound keys that no public CA reads
    BadCsr(compressed_point, _INVALID, "uncompressed point", name="encoding-ec-compressed-point"),
    BadCsr(
        lambda: pem(craft(public=_ec_spki(_hybrid_point(), oid("1.2.840.10045.3.1.7")))),
        _INVALID, "public key", name="encoding-ec-hybrid-point",
    ),
    BadCsr(
        lambda: pem(craft(public=_ec_spki(_ec_point(serialization.PublicFormat.UncompressedPoint), _explicit_curve()))),
        _INVALID, "named curve", name="encoding-ec-explicit-curve",
    ),
    BadCsr(
        lambda: pem(craft(public=_ec_spki(_ec_point(serialization.PublicFormat.UncompressedPoint), _null()))),
        _INVALID, "public key", name="encoding-ec-null-instead-of-a-curve",
    ),
    BadCsr(
        lambda: pem(craft(public=_ec_spki(_ec_point(serialization.PublicFormat.UncompressedPoint)))),
        _INVALID, "", name="encoding-ec-no-curve",
    ),
    BadCsr(
        _rsa_csr(
            sequence(
                sequence(oid("1.2.840.113549.1.1.1")),
                tlv(0x03, b"\0", sequence(integer(_SOUND_LOOKING), integer(65537))),
            )
        ),
        _INVALID, "NULL parameters", name="encoding-rsa-without-null",
    ),
    BadCsr(
        _rsa_csr(_rsa_numbers(tlv(0x02, b"\0\0" + _SOUND_LOOKING.to_bytes(256, "big")), integer(65537))),
        _INVALID, "", name="encoding-rsa-padded-modulus",
    ),
    BadCsr(
        _rsa_csr(_rsa_numbers(integer(_SOUND_LOOKING), tlv(0x02, b"\0\x01\0\x01"))),
        _INVALID, "", name="encoding-rsa-padded-exponent",
    ),
    BadCsr(
        _rsa_csr(_rsa_numbers(tlv(0x02, _SOUND_LOOKING.to_bytes(256, "big")), integer(65537))),
        _INVALID, "", name="encoding-rsa-negative-modulus",
    ),
    BadCsr(
        _rsa_csr(_rsa_numbers(integer(_SOUND_LOOKING), integer(65537), tail=_null())),
        _INVALID, "", name="encoding-rsa-more-after-the-key",
    ),
    BadCsr(
        _rsa_csr(_rsa_numbers(_long_length(integer(_SOUND_LOOKING)), integer(65537))),
        _INVALID, "", name="encoding-rsa-ber-length",
    ),
    BadCsr(
        _rsa_csr(_long_length(spki(rsa_key().public_key()))), _INVALID, "", name="encoding-ber-length-of-the-key"
    ),
    BadCsr(lambda: pem(_long_length(craft(key=rsa_key()))), _INVALID, "", name="encoding-ber-length-of-all"),
    BadCsr(
        lambda: pem(craft(algorithm=sequence(oid("1.2.840.10045.4.3.2"), _null()))),
        _INVALID, "its signature algorithm has parameters", name="encoding-ecdsa-signature-with-null",
    ),
    BadCsr(
        common_name_as(0x12, b"www.example.test"), _INVALID, "NumericString", name="encoding-common-name-as-a-number"
    ),
    BadCsr(
        common_name_as(0x13, b"*.example.test"), _INVALID, "PrintableString", name="encoding-common-name-with-a-star"
    ),
    BadCsr(_unused_bits, _INVALID, "not whole octets", name="encoding-signature-of-unused-bits"),
    BadCsr(_with_modulus(_SOUND_LOOKING, 1 << 31 | 1), _WEAK, "2^31", name="encoding-rsa-exponent-of-32-bits"),
    # other names than DNS names
    BadCsr(_with_san(tlv(0x87, b"\x7f\0\0\1")), _INVALID, "IPAddress", name="row-14-ip"),
    BadCsr(named("127.0.0.1"), _INVALID, "ends with a number", name="row-14-ip-as-dns-name"),
    BadCsr(_with_san(tlv(0x81, b"a@example.test")), _INVALID, "RFC822Name", name="row-15-email"),
    BadCsr(named("a@example.test"), _INVALID, "letters, digits", name="row-15-email-as-dns-name"),
    BadCsr(_with_san(tlv(0x86, b"https://example.test/")), _INVALID, "UniformResourceIdentifier", name="row-16-uri"),
    BadCsr(
        _with_san(tlv(0xA0, oid("1.3.6.1.5.5.7.8.7"), tlv(0xA0, tlv(0x16, b"_http.example.test")))),
        _INVALID, "OtherName", name="row-16-other-name",
    ),
    BadCsr(_with_san(tlv(0x88, b"\x2a\x03")), _INVALID, "RegisteredID", name="row-16-registered-id"),
    BadCsr(_with_san(tlv(0xA4, common_name("x"))), _INVALID, "DirectoryName", name="row-16-directory-name"),
    BadCsr(_with_san(tlv(0xA3, b"")), _INVALID, "extensions can't be read", name="row-16-x400"),
    # which names
    BadCsr(named("www.example.test", cn="example.test"), _INVALID, "common name is not among", name="row-17-cn-outside"),
    BadCsr(named("www.example.test", cn="not a name"), _INVALID, "common name holds", name="row-17-cn-no-name"),
    BadCsr(
        lambda: pem(craft(subject=common_name("www.example.test"), attributes=[])), _INVALID, "no subjectAltName", name="row-18-cn-only"
    ),
    BadCsr(lambda: pem(craft(attributes=[])), _INVALID, "no subjectAltName", name="row-19-no-names"),
    BadCsr(named(), _INVALID, "no subjectAltName", name="row-19-empty-san"),
    BadCsr(named(*(f"w{n}.example.test" for n in range(101))), _INVALID, "101 names", name="row-21-101-names"),
    BadCsr(named(b"www.example.test\0.evil.example"), _INVALID, "letters, digits", name="row-22-nul-in-san"),
    BadCsr(named("www.example.test", cn="www.example.test\0"), _INVALID, "common name", name="row-22-nul-in-cn"),
    BadCsr(named("www.example.test."), _INVALID, "ends with a dot", name="row-23-trailing-dot"),
    BadCsr(named("www..example.test"), _INVALID, "empty label", name="row-23-empty-label"),
    BadCsr(named(".example.test"), _INVALID, "empty label", name="row-23-leading-dot"),
    BadCsr(named(""), _INVALID, "is empty", name="row-23-empty-name"),
    BadCsr(named(f"{'a' * 64}.example.test"), _INVALID, "longer than 63", name="row-24-label-64"),
    BadCsr(named(".".join(["a" * 61] * 4) + ".abcdef"), _INVALID, "longer than 253", name="row-24-name-254"),
    BadCsr(named("b\u00fccher.example"), _INVALID, "A-label", name="row-25-raw-unicode"),
    BadCsr(named(b"b\xfccher.example"), _INVALID, "A-label", name="row-25-latin-1"),
    BadCsr(named("www.example.test", cn="b\u00fccher.example"), _INVALID, "A-label", name="row-25-raw-unicode-cn"),
    BadCsr(named("xn--99999999999.example"), _INVALID, "Punycode", name="row-26-bad-punycode"),
    BadCsr(named("xn--abc-.example"), _INVALID, "isn't letters, digits", name="row-26-ascii-in-punycode"),
    BadCsr(named("xn--ls8h.example"), _INVALID, "IDNA 2008", name="row-26-not-idna"),
    BadCsr(named("under_score.example.test"), _INVALID, "letters, digits", name="row-27-underscore"),
    BadCsr(named("a b.example.test"), _INVALID, "letters, digits", name="row-27-space"),
    BadCsr(named("a/b.example.test"), _INVALID, "letters, digits", name="row-27-slash"),
    BadCsr(named("www.example.test\n"), _INVALID, "letters, digits", name="row-27-newline"),
    BadCsr(named("a.*.example.test"), _INVALID, "wildcard", name="row-29-inner-wildcard"),
    BadCsr(named("*.*.example.test"), _INVALID, "wildcard", name="row-29-two-wildcards"),
    BadCsr(named("f*.example.test"), _INVALID, "wildcard", name="row-29-partial-wildcard"),
    # everything else in a CSR
    BadCsr(
        _with_extension("2.5.29.19", sequence(tlv(0x01, b"\xff")), critical=True), _INVALID, "basicConstraints", name="row-32-ca-true"
    ),
    BadCsr(
        _with_extension("2.5.29.19", sequence(integer(0))), _INVALID, "extensions can't be read", name="row-32-path-length-of-no-ca"
    ),
    BadCsr(
        _with_extension("1.3.6.1.5.5.7.1.24", sequence(integer(5))), _INVALID, "must-staple", name="row-32-must-staple"
    ),
    BadCsr(
        _with_extension("2.5.29.37", sequence(oid(ExtendedKeyUsageOID.CODE_SIGNING.dotted_string))),
        _INVALID, "extendedKeyUsage", name="row-32-odd-eku",
    ),
    BadCsr(
        _with_extension("2.5.29.37", sequence(oid(ExtendedKeyUsageOID.SERVER_AUTH.dotted_string))),
        _INVALID, "extendedKeyUsage", name="row-32-usual-eku",
    ),
    BadCsr(_with_extension("2.5.29.15", tlv(0x03, b"\x05\xa0")), _INVALID, "keyUsage", name="row-32-usual-key-usage"),
    BadCsr(_with_extension("1.2.3.4.5", octets(b"")), _INVALID, "1.2.3.4.5", name="row-32-unknown-extension"),
    BadCsr(
        _with_extension("2.5.29.17", sequence(dns_san("other.example.test"))), _INVALID, "once", name="row-32-second-san"
    ),
    BadCsr(
        _with_attributes(attribute("1.2.840.113549.1.9.7", tlv(0x0C, b"secret"))),
        _INVALID, "challengePassword", name="row-32-challenge-password",
    ),
    BadCsr(_with_attributes(attribute("1.2.3.4.5", octets(b""))), _INVALID, "1.2.3.4.5", name="row-32-unknown-attribute"),
    BadCsr(
        _with_attributes(extension_request(san_extension(dns_san("other.example.test")))),
        _INVALID, "several", name="row-32-second-extension-request",
    ),
    BadCsr(
        lambda: pem(
            craft(
                attributes=[
                    attribute(
                        "1.2.840.113549.1.9.14",
                        sequence(san_extension(dns_san("www.example.test"))),
                        sequence(san_extension(dns_san("other.example.test"))),
                    )
                ]
            )
        ),
        _INVALID, "several values", name="row-32-extension-request-of-two-values",
    ),
    BadCsr(
        lambda: pem(craft(subject=name((NameOID.ORGANIZATION_NAME.dotted_string, "Example Ltd")))),
        _INVALID, "organizationName", name="row-32-organisation",
    ),
    BadCsr(
        lambda: pem(craft(subject=name(*[(NameOID.COMMON_NAME.dotted_string, "www.example.test")] * 2))),
        _INVALID, "several common names", name="row-32-two-common-names",
    ),
]  # fmt: skip
