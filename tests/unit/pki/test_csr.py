"""Reading CSRs of strangers: the numbers are the rows of the bad-input table that the project's test plan follows."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from certplane.errors import Reason, RefusalError
from certplane.pki.csr import MAX_CSR_LENGTH, CsrCache, build_csr, parse_csr
from certplane.pki.keys import KeyType, generate_private_key, public_key_sha256
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
    load,
    name,
    octets,
    oid,
    pem,
    roca_key,
    rsa_key,
    rsa_spki,
    san_extension,
    sequence,
    tlv,
)

GOOD = pem(craft())


def _named(*names: str | bytes, cn: str = "") -> Callable[[], str]:
    return lambda: pem(craft(names=names, subject=common_name(cn) if cn else b"0\0"))


def _with_san(*general_names: bytes) -> Callable[[], str]:
    return lambda: pem(craft(attributes=[extension_request(san_extension(dns_san("www.example.com"), *general_names))]))


def _with_extension(dotted: str, value: bytes, *, critical: bool = False) -> Callable[[], str]:
    request = extension_request(san_extension(dns_san("www.example.com")), extension(dotted, value, critical=critical))
    return lambda: pem(craft(attributes=[request]))


def _with_attributes(*more: bytes) -> Callable[[], str]:
    return lambda: pem(craft(attributes=[extension_request(san_extension(dns_san("www.example.com"))), *more]))


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
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("www.example.com")]), critical=True)
    return builder.sign(key, digest).public_bytes(serialization.Encoding.PEM).decode()  # type: ignore[arg-type] # None goes with Ed25519


def _dsa() -> str:
    key = dsa.generate_private_key(2048)
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    algorithm = sequence(oid("2.16.840.1.101.3.4.3.2"))
    return pem(craft(public=der, algorithm=algorithm, sign=lambda data: key.sign(data, hashes.SHA256())))


def _pss() -> str:
    csr = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(
        x509.SubjectAlternativeName([x509.DNSName("www.example.com")]), critical=True
    )
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    return csr.sign(rsa_key(), hashes.SHA256(), rsa_padding=pss).public_bytes(serialization.Encoding.PEM).decode()


def _compressed_point() -> str:
    point = ec_key().public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    algorithm = sequence(oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7"))
    return pem(craft(public=sequence(algorithm, tlv(0x03, b"\0", point))))


def _bad_point() -> str:
    algorithm = sequence(oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7"))
    return pem(craft(public=sequence(algorithm, tlv(0x03, b"\0\x04" + b"\x01" * 64))))


ODD_2048 = (1 << 2047) + 1155  # divisible by a small prime, whatever else it is
SOUND_LOOKING = rsa_key().public_key().public_numbers().n


def _square() -> int:
    prime: int = close_prime_key().private_numbers().p
    return prime * prime


INVALID = Reason.CSR_INVALID
WEAK = Reason.KEY_WEAK

REFUSED = [
    # what a PEM text is
    pytest.param(lambda: "", INVALID, "no PEM block", id="row01-empty"),
    pytest.param(lambda: "hello", INVALID, "not a PEM block", id="row01-no-pem"),
    pytest.param(lambda: "\ud800", INVALID, "not a PEM block", id="row01-lone-surrogate"),
    pytest.param(lambda: pem(b"\x30\x03garbage"), INVALID, "can't be read", id="row01-garbage-der"),
    pytest.param(lambda: pem(craft()[:-7]), INVALID, "can't be read", id="row01-truncated-der"),
    pytest.param(lambda: GOOD.replace("M", "!", 1), INVALID, "not a PEM block", id="row01-bad-base64-character"),
    pytest.param(lambda: GOOD.replace("\n-----END", "A\n-----END"), INVALID, "base64", id="row01-bad-base64-length"),
    pytest.param(lambda: pem(craft(), "CERTIFICATE"), INVALID, "'CERTIFICATE'", id="row01-other-label"),
    pytest.param(lambda: pem(craft(version=1)), INVALID, "can't be read", id="row01-unknown-version"),
    pytest.param(lambda: GOOD + GOOD, INVALID, "more than one", id="row02-two"),
    pytest.param(lambda: GOOD + "junk\n", INVALID, "not a PEM block", id="row02-trailing-text"),
    pytest.param(lambda: "junk\n" + GOOD, INVALID, "not a PEM block", id="row02-leading-text"),
    pytest.param(lambda: GOOD + "\0", INVALID, "not a PEM block", id="row02-trailing-nul"),
    pytest.param(lambda: GOOD + pem(b"key", "PRIVATE KEY"), INVALID, "PRIVATE KEY", id="row02-private-key-beside"),
    pytest.param(lambda: pem(craft() + b"\0"), INVALID, "can't be read", id="row02-trailing-der"),
    # the proof of possession
    pytest.param(
        lambda: pem(craft(sign=lambda data: ec_key().sign(data + b"x", ec.ECDSA(hashes.SHA256())))),
        INVALID, "signature is not valid", id="row03-signature-over-other-bytes",
    ),
    pytest.param(
        lambda: pem(craft(sign=lambda data: generate_private_key(KeyType.EC_P256).sign(data, ec.ECDSA(hashes.SHA256())))),  # type: ignore[call-arg,arg-type] # an EC key
        INVALID, "signature is not valid", id="row03-signed-by-another-key",
    ),
    pytest.param(lambda: pem(craft(sign=lambda _: b"junk")), INVALID, "signature", id="row03-signature-not-der"),
    pytest.param(lambda: GOOD + " " * MAX_CSR_LENGTH, INVALID, "longer than 16384", id="row04-over-16-kib"),
    # keys
    pytest.param(lambda: pem(craft(key=rsa_key(1024))), WEAK, "1024 bits", id="row06-rsa-1024"),
    pytest.param(_with_modulus((1 << 511) + 187), WEAK, "512 bits", id="row06-rsa-512"),
    pytest.param(_with_modulus(SOUND_LOOKING, 1), INVALID, "public key can't be used", id="row07-rsa-e-1"),
    pytest.param(lambda: pem(craft(key=rsa_key(2048, 3))), WEAK, "exponent", id="row07-rsa-e-3"),
    pytest.param(_with_modulus(SOUND_LOOKING, 65538), INVALID, "can't be used", id="row07-rsa-even-exponent"),
    pytest.param(_with_modulus(SOUND_LOOKING, 1 << 256 | 1), WEAK, "exponent", id="row07-rsa-huge-exponent"),
    pytest.param(_with_modulus(SOUND_LOOKING - 1), WEAK, "small factor", id="row08-even-modulus"),
    pytest.param(_with_modulus(ODD_2048), WEAK, "small factor", id="row08-small-factor"),
    pytest.param(lambda: pem(craft(key=roca_key())), WEAK, "CVE-2017-15361", id="row08-roca"),
    pytest.param(lambda: pem(craft(key=close_prime_key())), WEAK, "close", id="row08-close-primes"),
    pytest.param(_with_modulus(_square()), WEAK, "close", id="row08-square-of-a-prime"),
    pytest.param(_with_modulus((1 << 8191) + 1155), WEAK, "8192 bits", id="row09-rsa-8192"),
    pytest.param(_with_modulus(SOUND_LOOKING >> 1 | 1), WEAK, "2047 bits", id="row09-rsa-2047"),
    pytest.param(_with_modulus((SOUND_LOOKING << 8) + 1), WEAK, "2056 bits", id="row09-rsa-2056"),
    pytest.param(lambda: _library_csr(ed25519.Ed25519PrivateKey.generate(), None), WEAK, "Ed25519", id="row10-ed25519"),
    pytest.param(lambda: _library_csr(ed448.Ed448PrivateKey.generate(), None), WEAK, "Ed448", id="row10-ed448"),  # type: ignore[arg-type] # one more kind
    pytest.param(
        lambda: _library_csr(ec.generate_private_key(ec.SECP521R1()), hashes.SHA512()), WEAK, "secp521r1", id="row10-p521"
    ),
    pytest.param(
        lambda: _library_csr(ec.generate_private_key(ec.SECP256K1()), hashes.SHA256()), WEAK, "secp256k1", id="row10-secp256k1"
    ),
    pytest.param(_dsa, WEAK, "DSA", id="row10-dsa"),
    pytest.param(_bad_point, INVALID, "can't be used", id="row10-point-not-on-curve"),
    pytest.param(_ecdsa_sha1, INVALID, "signature algorithm", id="row11-ecdsa-sha1"),
    pytest.param(
        lambda: _signed_with(rsa_key(), "1.2.840.113549.1.1.5", hashes.SHA1()),  # noqa: S303 - what is to be refused
        INVALID, "signature algorithm", id="row11-rsa-sha1",
    ),
    pytest.param(
        lambda: _signed_with(rsa_key(), "1.2.840.113549.1.1.4", hashes.MD5()),  # noqa: S303 - what is to be refused
        INVALID, "signature algorithm", id="row11-rsa-md5",
    ),
    pytest.param(_pss, INVALID, "signature algorithm", id="row11-rsa-pss"),
    pytest.param(
        lambda: pem(craft(algorithm=sequence(oid("1.2.3.4")))), INVALID, "signature algorithm", id="row11-unknown-algorithm"
    ),
    # other names than DNS names
    pytest.param(_with_san(tlv(0x87, b"\x7f\0\0\1")), INVALID, "IPAddress", id="row14-ip"),
    pytest.param(_named("127.0.0.1"), INVALID, "ends with a number", id="row14-ip-as-dns-name"),
    pytest.param(_with_san(tlv(0x81, b"a@example.com")), INVALID, "RFC822Name", id="row15-email"),
    pytest.param(_named("a@example.com"), INVALID, "letters, digits", id="row15-email-as-dns-name"),
    pytest.param(_with_san(tlv(0x86, b"https://example.com/")), INVALID, "UniformResourceIdentifier", id="row16-uri"),
    pytest.param(
        _with_san(tlv(0xA0, oid("1.3.6.1.5.5.7.8.7"), tlv(0xA0, tlv(0x16, b"_http.example.com")))),
        INVALID, "OtherName", id="row16-other-name",
    ),
    pytest.param(_with_san(tlv(0x88, b"\x2a\x03")), INVALID, "RegisteredID", id="row16-registered-id"),
    pytest.param(_with_san(tlv(0xA4, common_name("x"))), INVALID, "DirectoryName", id="row16-directory-name"),
    pytest.param(_with_san(tlv(0xA3, b"")), INVALID, "extensions can't be read", id="row16-x400"),
    # which names
    pytest.param(_named("www.example.com", cn="example.com"), INVALID, "common name is not among", id="row17-cn-outside"),
    pytest.param(_named("www.example.com", cn="not a name"), INVALID, "common name holds", id="row17-cn-no-name"),
    pytest.param(
        lambda: pem(craft(subject=common_name("www.example.com"), attributes=[])), INVALID, "no subjectAltName", id="row18-cn-only"
    ),
    pytest.param(lambda: pem(craft(attributes=[])), INVALID, "no subjectAltName", id="row19-no-names"),
    pytest.param(_named(), INVALID, "no subjectAltName", id="row19-empty-san"),
    pytest.param(_named(*(f"w{n}.example.com" for n in range(101))), INVALID, "101 names", id="row21-101-names"),
    pytest.param(_named(b"www.example.com\0.evil.example"), INVALID, "letters, digits", id="row22-nul-in-san"),
    pytest.param(_named("www.example.com", cn="www.example.com\0"), INVALID, "common name", id="row22-nul-in-cn"),
    pytest.param(_named("www.example.com."), INVALID, "ends with a dot", id="row23-trailing-dot"),
    pytest.param(_named("www..example.com"), INVALID, "empty label", id="row23-empty-label"),
    pytest.param(_named(".example.com"), INVALID, "empty label", id="row23-leading-dot"),
    pytest.param(_named(""), INVALID, "is empty", id="row23-empty-name"),
    pytest.param(_named(f"{'a' * 64}.example.com"), INVALID, "longer than 63", id="row24-label-64"),
    pytest.param(_named(".".join(["a" * 61] * 4) + ".abcdef"), INVALID, "longer than 253", id="row24-name-254"),
    pytest.param(_named("b\u00fccher.example"), INVALID, "A-label", id="row25-raw-unicode"),
    pytest.param(_named(b"b\xfccher.example"), INVALID, "A-label", id="row25-latin-1"),
    pytest.param(_named("www.example.com", cn="b\u00fccher.example"), INVALID, "A-label", id="row25-raw-unicode-cn"),
    pytest.param(_named("xn--99999999999.example"), INVALID, "Punycode", id="row26-bad-punycode"),
    pytest.param(_named("xn--abc-.example"), INVALID, "isn't letters, digits", id="row26-ascii-in-punycode"),
    pytest.param(_named("xn--ls8h.example"), INVALID, "IDNA 2008", id="row26-not-idna"),
    pytest.param(_named("under_score.example.com"), INVALID, "letters, digits", id="row27-underscore"),
    pytest.param(_named("a b.example.com"), INVALID, "letters, digits", id="row27-space"),
    pytest.param(_named("a/b.example.com"), INVALID, "letters, digits", id="row27-slash"),
    pytest.param(_named("www.example.com\n"), INVALID, "letters, digits", id="row27-newline"),
    pytest.param(_named("a.*.example.com"), INVALID, "wildcard", id="row29-inner-wildcard"),
    pytest.param(_named("*.*.example.com"), INVALID, "wildcard", id="row29-two-wildcards"),
    pytest.param(_named("f*.example.com"), INVALID, "wildcard", id="row29-partial-wildcard"),
    # everything else in a CSR
    pytest.param(
        _with_extension("2.5.29.19", sequence(tlv(0x01, b"\xff")), critical=True), INVALID, "basicConstraints", id="row32-ca-true"
    ),
    pytest.param(_with_extension("2.5.29.19", sequence()), INVALID, "basicConstraints", id="row32-ca-false"),
    pytest.param(
        _with_extension("1.3.6.1.5.5.7.1.24", sequence(integer(5))), INVALID, "must-staple", id="row32-must-staple"
    ),
    pytest.param(
        _with_extension("2.5.29.37", sequence(oid(ExtendedKeyUsageOID.CODE_SIGNING.dotted_string))),
        INVALID, "extendedKeyUsage", id="row32-odd-eku",
    ),
    pytest.param(
        _with_extension("2.5.29.37", sequence(oid(ExtendedKeyUsageOID.SERVER_AUTH.dotted_string))),
        INVALID, "extendedKeyUsage", id="row32-usual-eku",
    ),
    pytest.param(_with_extension("2.5.29.15", tlv(0x03, b"\x05\xa0")), INVALID, "keyUsage", id="row32-usual-key-usage"),
    pytest.param(_with_extension("1.2.3.4.5", octets(b"")), INVALID, "1.2.3.4.5", id="row32-unknown-extension"),
    pytest.param(
        _with_extension("2.5.29.17", sequence(dns_san("other.example.com"))), INVALID, "once", id="row32-second-san"
    ),
    pytest.param(
        _with_attributes(attribute("1.2.840.113549.1.9.7", tlv(0x0C, b"secret"))),
        INVALID, "challengePassword", id="row32-challenge-password",
    ),
    pytest.param(_with_attributes(attribute("1.2.3.4.5", octets(b""))), INVALID, "1.2.3.4.5", id="row32-unknown-attribute"),
    pytest.param(
        _with_attributes(extension_request(san_extension(dns_san("other.example.com")))),
        INVALID, "several", id="row32-second-extension-request",
    ),
    pytest.param(
        lambda: pem(
            craft(
                attributes=[
                    attribute(
                        "1.2.840.113549.1.9.14",
                        sequence(san_extension(dns_san("www.example.com"))),
                        sequence(san_extension(dns_san("other.example.com"))),
                    )
                ]
            )
        ),
        INVALID, "several values", id="row32-extension-request-of-two-values",
    ),
    pytest.param(
        lambda: pem(craft(subject=name((NameOID.ORGANIZATION_NAME.dotted_string, "Example Ltd")))),
        INVALID, "organizationName", id="row32-organisation",
    ),
    pytest.param(
        lambda: pem(craft(subject=name(*[(NameOID.COMMON_NAME.dotted_string, "www.example.com")] * 2))),
        INVALID, "several common names", id="row32-two-common-names",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "reason", "phrase"), REFUSED)
def test_refuses(make: Callable[[], str], reason: Reason, phrase: str) -> None:
    """A CSR that is wrong anywhere is refused with the reason, the field, and what is wrong with it."""
    with pytest.raises(RefusalError) as caught:
        parse_csr(make())
    refusal = caught.value.refusal
    assert refusal.reason is reason
    assert phrase in refusal.message
    assert [violation.subject for violation in refusal.violations] == ["csr_pem"]
    assert refusal.message.isprintable()


@pytest.mark.parametrize(
    "der",
    [
        pytest.param(
            craft(sign=lambda data: ec_key().sign(data + b"x", ec.ECDSA(hashes.SHA256()))), id="bad-signature"
        ),
        pytest.param(craft(key=rsa_key(), public=rsa_spki(SOUND_LOOKING - 1)), id="even-modulus"),
        pytest.param(craft(names=[b"www.example.com\0.evil.example"]), id="nul"),
    ],
)
def test_the_library_alone_would_accept(der: bytes) -> None:
    """What these tests refuse is what `cryptography` loads without a word, so the checks are not idle."""
    csr = load(der)
    assert list(csr.extensions)
    csr.public_key()


ACCEPTED = [
    pytest.param(_named("www.example.com"), ("www.example.com",), id="one-name"),
    pytest.param(
        _named("WWW.Example.com", "www.example.com", "a.example.com"),
        ("a.example.com", "www.example.com"), id="row20-duplicate-and-mixed-case",
    ),
    pytest.param(_named("www.example.com", cn="WWW.example.com"), ("www.example.com",), id="row20-cn-in-other-case"),
    pytest.param(_named("*.example.com", "example.com"), ("*.example.com", "example.com"), id="wildcard-and-apex"),
    pytest.param(_named("*.com", "*"), ("*", "*.com"), id="row28-wildcards-that-policy-refuses"),
    pytest.param(_named("xn--bcher-kva.example"), ("xn--bcher-kva.example",), id="a-label"),
    pytest.param(_named("xn--pypal-4ve.example"), ("xn--pypal-4ve.example",), id="row26-homograph-that-policy-refuses"),
    pytest.param(_named("printer.local"), ("printer.local",), id="row31-special-use-that-policy-refuses"),
    pytest.param(_named(f"{'a' * 63}.example.com"), (f"{'a' * 63}.example.com",), id="label-63"),
    pytest.param(_named(".".join(["a" * 61] * 4) + ".abcde"), (".".join(["a" * 61] * 4) + ".abcde",), id="name-253"),
    pytest.param(lambda: "\n " + GOOD.replace("\n", "\r\n") + "\r\n\t", ("www.example.com",), id="crlf-and-white-space"),
    pytest.param(lambda: GOOD.replace("CERTIFICATE", "NEW CERTIFICATE"), ("www.example.com",), id="old-label"),
    pytest.param(_compressed_point, ("www.example.com",), id="compressed-point"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "names"), ACCEPTED)
def test_accepts(make: Callable[[], str], names: tuple[str, ...]) -> None:
    """A CSR's names come out canonical, sorted and once each."""
    assert parse_csr(make()).dns_names == names


def test_accepts_a_hundred_names() -> None:
    """The largest profile of the public CAs fits."""
    assert len(parse_csr(_named(*(f"w{n}.example.com" for n in range(100)))()).dns_names) == 100


@pytest.mark.parametrize("key_type", list(KeyType))
def test_a_built_csr_parses(key_type: KeyType) -> None:
    """What the agent builds, the broker accepts, and both call the key by the same hash."""
    key = generate_private_key(key_type)
    request = parse_csr(build_csr(key, common_name="example.com", sans=["*.example.com", "example.com"]))
    assert request.key_type is key_type
    assert request.public_key_sha256 == public_key_sha256(key.public_key())
    assert request.dns_names == ("*.example.com", "example.com")
    assert request.sha256 == hashlib.sha256(request.der).hexdigest()


def test_a_compressed_point_is_the_same_key() -> None:
    """Two encodings of one key have one hash, so that a blocked key can't come back in other clothes."""
    assert parse_csr(_compressed_point()).public_key_sha256 == parse_csr(GOOD).public_key_sha256


def test_build_csr_takes_uris() -> None:
    """A SAN with :// is a URI; an empty subject makes the SAN critical (RFC 5280 4.2.1.6)."""
    csr = x509.load_pem_x509_csr(build_csr(ec_key(), sans=["web1.example", "spiffe://example/host/web1"]).encode())
    extension = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert extension.critical
    assert extension.value.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example/host/web1"]
    assert extension.value.get_values_for_type(x509.DNSName) == ["web1.example"]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(craft()) - 1), st.integers(1, 255))
def test_no_flipped_byte_passes(position: int, mask: int) -> None:
    """Whatever octet of a CSR is changed, it is refused: nothing in it is outside the checks."""
    der = bytearray(DER)
    der[position % len(der)] ^= mask
    with pytest.raises(RefusalError):
        parse_csr(pem(bytes(der)))


DER = craft()


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.binary().map(pem), st.text().map(lambda text: GOOD + text)))
def test_never_raises_anything_else(text: str) -> None:
    """Any text ends in a request or a refusal."""
    with contextlib.suppress(RefusalError):
        parse_csr(text)


class TestCsrCache:
    def test_returns_the_verified_request_again(self) -> None:
        """The same text is the same value, without a second verification."""
        cache = CsrCache(2)
        first = cache.parse(GOOD)
        assert cache.parse(GOOD) is first
        assert first == parse_csr(GOOD)

    def test_keeps_no_refusal(self) -> None:
        """What was refused is checked anew and takes no place."""
        cache = CsrCache(2)
        for text in ("junk", "\ud800", GOOD + GOOD, "x" * (MAX_CSR_LENGTH + 1)):
            with pytest.raises(RefusalError):
                cache.parse(text)
        assert len(cache) == 0

    def test_forgets_the_least_used(self) -> None:
        """It holds as many as it was made for and drops the one unused for longest."""
        cache = CsrCache(2)
        texts = [pem(craft(names=[f"w{n}.example.com"])) for n in range(3)]
        kept, dropped = cache.parse(texts[0]), cache.parse(texts[1])
        cache.parse(texts[0])
        cache.parse(texts[2])
        assert len(cache) == 2
        assert cache.parse(texts[0]) is kept
        assert cache.parse(texts[1]) is not dropped
