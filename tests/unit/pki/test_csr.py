"""Reading CSRs of strangers: the numbers are the rows of the bad-input table that the project's test plan follows."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from certplane.errors import Reason, RefusalError
from certplane.pki.csr import build_csr, parse_csr
from certplane.pki.keys import KeyType, generate_private_key, public_key_sha256
from certplane.pki.names import _a_label_problem
from tests.support.bad_csrs import BAD_CSRS, GOOD_CSR, BadCsr, common_name_as, named
from tests.support.csr import (
    craft,
    dns_san,
    ec_key,
    extension,
    extension_request,
    load,
    octets,
    pem,
    rsa_key,
    rsa_spki,
    san_extension,
    sequence,
)
from tests.support.waiting import HANG


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in BAD_CSRS])
def test_refuses(case: BadCsr) -> None:
    """A CSR that is wrong anywhere is refused with the reason, the field, and what is wrong with it."""
    with pytest.raises(RefusalError) as caught:
        parse_csr(case.make())
    refusal = caught.value.refusal
    assert refusal.reason is case.reason
    assert case.phrase in refusal.message
    assert [violation.subject for violation in refusal.violations] == ["csr_pem"]
    assert refusal.message.isprintable()


@pytest.mark.parametrize(
    "der",
    [
        pytest.param(
            craft(sign=lambda data: ec_key().sign(data + b"x", ec.ECDSA(hashes.SHA256()))), id="bad-signature"
        ),
        pytest.param(
            craft(key=rsa_key(), public=rsa_spki(rsa_key().public_key().public_numbers().n - 1)), id="even-modulus"
        ),
        pytest.param(craft(names=[b"www.example.test\0.evil.example"]), id="nul"),
    ],
)
def test_the_library_alone_would_accept(der: bytes) -> None:
    """What these tests refuse is what `cryptography` loads without a word, so the checks are not idle."""
    csr = load(der)
    assert list(csr.extensions)
    csr.public_key()


CASES = Path(__file__).parents[2] / "cases"
NAMES_OF_CASES = ("api.certplane.test", "www.certplane.test")


def with_extensions(*more: bytes) -> Callable[[], str]:
    return lambda: pem(craft(attributes=[extension_request(san_extension(dns_san("www.example.test")), *more)]))


@pytest.mark.parametrize(
    ("file", "phrase"),
    [
        ("F1/nonull-both.csr", "public key is not in the encoding"),
        ("F1/nonull-spki.csr", "public key is not in the encoding"),
        ("F2/certtool.csr", "keyUsage"),
        ("F2/certtool-web.csr", "keyUsage"),
        ("F3/keytool-rsa.csr", "organizationName"),
    ],
)
def test_refuses_files_of_tools(file: str, phrase: str) -> None:
    """What other tools wrote, and a CA would refuse or drop a part of, is refused with what it is."""
    with pytest.raises(RefusalError) as caught:
        parse_csr((CASES / file).read_text())
    assert caught.value.refusal.reason is Reason.CSR_INVALID
    assert phrase in caught.value.refusal.message


@pytest.mark.skipif(shutil.which("keytool") is None, reason="no keytool on this machine")
@pytest.mark.parametrize("algorithm", ["EC", "RSA"])
def test_accepts_what_keytool_makes_today(algorithm: str, tmp_path: Path) -> None:
    """Java's own tool, which adds a subjectKeyIdentifier that nobody can leave out, makes CSRs that pass."""
    store = ["-keystore", str(tmp_path / "keys.p12"), "-storepass", "changeit", "-alias", "web"]
    size = ["-groupname", "secp256r1"] if algorithm == "EC" else ["-keysize", "2048"]
    subprocess.run(
        ["keytool", "-genkeypair", *store, "-keyalg", algorithm, *size, "-dname", "CN=www.example.test"],
        check=True, capture_output=True, timeout=HANG,
    )  # fmt: skip
    made = subprocess.run(
        ["keytool", "-certreq", *store, "-ext", "SAN=dns:www.example.test"],
        check=True,
        capture_output=True,
        timeout=HANG,
    )
    assert parse_csr(made.stdout.decode()).dns_names == ("www.example.test",)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")
@pytest.mark.parametrize("form", ["compressed", "explicit"])
def test_refuses_what_openssl_can_be_told_to_make(form: str, tmp_path: Path) -> None:
    """A key in another encoding, made by a tool that everybody has, is told with its remedy before an order exists."""
    key = tmp_path / "key.pem"
    made = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key)]
    subprocess.run(
        [*made, *(["-pkeyopt", "ec_param_enc:explicit"] if form == "explicit" else [])], check=True, timeout=HANG
    )
    if form == "compressed":
        subprocess.run(
            ["openssl", "ec", "-in", str(key), "-conv_form", "compressed", "-out", str(key)],
            check=True, capture_output=True, timeout=HANG,
        )  # fmt: skip
    request = ["openssl", "req", "-new", "-key", str(key), "-subj", "/CN=www.example.test"]
    done = subprocess.run(
        [*request, "-addext", "subjectAltName=DNS:www.example.test"], check=True, capture_output=True, timeout=HANG
    )
    with pytest.raises(RefusalError, match=r"openssl|use one of"):
        parse_csr(done.stdout.decode())


ACCEPTED = [
    pytest.param(named("www.example.test"), ("www.example.test",), id="one-name"),
    pytest.param(
        named("WWW.Example.test", "www.example.test", "a.example.test"),
        ("a.example.test", "www.example.test"), id="row-20-duplicate-and-mixed-case",
    ),
    pytest.param(named("www.example.test", cn="WWW.example.test"), ("www.example.test",), id="row-20-cn-in-other-case"),
    pytest.param(named("*.example.test", "example.test"), ("*.example.test", "example.test"), id="wildcard-and-apex"),
    pytest.param(named("*.com", "*"), ("*", "*.com"), id="row-28-wildcards-that-policy-refuses"),
    pytest.param(named("xn--bcher-kva.example"), ("xn--bcher-kva.example",), id="a-label"),
    pytest.param(named("xn--pypal-4ve.example"), ("xn--pypal-4ve.example",), id="row-26-homograph-that-policy-refuses"),
    pytest.param(named("printer.local"), ("printer.local",), id="row-31-special-use-that-policy-refuses"),
    pytest.param(named(f"{'a' * 63}.example.test"), (f"{'a' * 63}.example.test",), id="label-63"),
    pytest.param(named(".".join(["a" * 61] * 4) + ".abcde"), (".".join(["a" * 61] * 4) + ".abcde",), id="name-253"),
    pytest.param(lambda: "\n " + GOOD_CSR.replace("\n", "\r\n") + "\r\n\t", ("www.example.test",), id="crlf-and-white-space"),
    pytest.param(lambda: GOOD_CSR.replace("CERTIFICATE", "NEW CERTIFICATE"), ("www.example.test",), id="old-label"),
    pytest.param(lambda: "\ufeff" + GOOD_CSR, ("www.example.test",), id="byte-order-mark"),
    pytest.param(lambda: "Key Id: b\u00fccher\n\n" + GOOD_CSR + "the end\n", ("www.example.test",), id="text-beside"),
    pytest.param(lambda: GOOD_CSR + "\x1a", ("www.example.test",), id="dos-end-of-file"),
    pytest.param(
        with_extensions(extension("2.5.29.14", octets(b"\1" * 20))), ("www.example.test",), id="subject-key-identifier"
    ),
    pytest.param(with_extensions(extension("2.5.29.19", sequence())), ("www.example.test",), id="ca-false"),
    pytest.param(
        with_extensions(extension("2.5.29.19", sequence(), critical=True), extension("2.5.29.14", octets(b"id"))),
        ("www.example.test",), id="both-that-ask-for-nothing",
    ),
    pytest.param((CASES / "F1/null-both.csr").read_text, NAMES_OF_CASES, id="F1-the-right-one"),
    pytest.param((CASES / "F1/nonull-sig.csr").read_text, NAMES_OF_CASES, id="F1-signature-without-null"),
    pytest.param(
        common_name_as(0x1C, "www.example.test".encode("utf-32-be")), ("www.example.test",), id="common-name-of-32-bits"
    ),
    pytest.param(common_name_as(0x0C, b""), ("www.example.test",), id="empty-common-name"),
    pytest.param((CASES / "F2/fmt-text.csr").read_text, NAMES_OF_CASES, id="F2-openssl-req-text"),
    pytest.param((CASES / "F3/keytool.csr").read_text, NAMES_OF_CASES, id="F3-keytool"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "names"), ACCEPTED)
def test_accepts(make: Callable[[], str], names: tuple[str, ...]) -> None:
    """A CSR's names come out canonical, sorted and once each."""
    assert parse_csr(make()).dns_names == names


def test_accepts_a_hundred_names() -> None:
    """The largest profile of the public CAs fits."""
    assert len(parse_csr(named(*(f"w{n}.example.test" for n in range(100)))()).dns_names) == 100


@pytest.mark.parametrize("key_type", list(KeyType))
def test_a_built_csr_parses(key_type: KeyType) -> None:
    """What the agent builds, the broker accepts, and both call the key by the same hash."""
    key = generate_private_key(key_type)
    request = parse_csr(build_csr(key, common_name="example.test", sans=["*.example.test", "example.test"]))
    assert request.key_type is key_type
    assert request.public_key_sha256 == public_key_sha256(key.public_key())
    assert request.dns_names == ("*.example.test", "example.test")
    assert request.sha256 == hashlib.sha256(request.der).hexdigest()


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
@given(st.one_of(st.text(), st.binary().map(pem), st.text().map(lambda text: GOOD_CSR + text)))
def test_never_raises_anything_else(text: str) -> None:
    """Any text ends in a request or a refusal."""
    with contextlib.suppress(RefusalError):
        parse_csr(text)


def _a_label(number: int) -> str:
    letters = (chr(0x3B1 + (number >> shift) % 17) for shift in range(0, 12, 2))
    return "xn--" + "".join(letters).encode("punycode").decode()


class TestKnownNames:
    def test_costs_of_strangers_do_not_grow_with_their_number(self) -> None:
        """Of a hundred names that the profile doesn't have, a few are validated: the rest is refused by policy anyway."""
        strangers = [f"{_a_label(number)}.example.test" for number in range(100)]
        before = _a_label_problem.cache_info().misses
        request = parse_csr(pem(craft(names=strangers)), known=("www.example.test",))
        assert _a_label_problem.cache_info().misses - before <= 4
        assert request.dns_names == tuple(sorted(set(strangers)))

    def test_known_names_are_not_validated_again(self) -> None:
        """A name of the profile was validated when policy was read."""
        name = f"{_a_label(4000)}.example.test"
        before = _a_label_problem.cache_info().misses
        assert parse_csr(pem(craft(names=[name.upper()])), known=(name,)).dns_names == (name,)
        assert _a_label_problem.cache_info().misses == before

    @pytest.mark.parametrize("bad", BAD_CSRS, ids=lambda bad: bad.name)
    def test_what_is_refused_is_refused_beside_known_names_too(self, bad: BadCsr) -> None:
        """The short way lets nothing through that the long one refuses."""
        with pytest.raises(RefusalError) as caught:
            parse_csr(bad.make(), known=("www.example.test",))
        assert caught.value.refusal.reason is bad.reason
