"""The memory of verified CSRs, held to `parse_csr`: the same request or the same refusal, whatever was verified before."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from certplane.broker.issuance import verified_csrs
from certplane.broker.issuance.verified_csrs import VerifiedCsrs
from certplane.errors import RefusalError
from certplane.pki.csr import MAX_CSR_LENGTH, CertificateRequest, build_csr, parse_csr
from certplane.pki.csr_again import CsrCut
from certplane.pki.der import read_element
from certplane.pki.keys import KeyType, generate_private_key
from tests.support.bad_csrs import BAD_CSRS, GOOD_CSR, BadCsr
from tests.support.csr import craft, ec_key, load, pem, rsa_key, sequence, tlv

DER = craft()
OTHER_KEY = generate_private_key(KeyType.EC_P256)


def outcome(parse: object, text: str) -> CertificateRequest | tuple[object, str]:
    """What a parser says of a text."""
    try:
        request = parse(text)  # type: ignore[operator]
    except RefusalError as error:
        return error.refusal.reason, error.refusal.message
    assert isinstance(request, CertificateRequest)
    return request


def primed() -> VerifiedCsrs:
    """A memory that has seen `GOOD_CSR`'s octets signed."""
    csrs = VerifiedCsrs(64)
    csrs.parse(pem(DER))
    return csrs


def parts(der: bytes) -> tuple[bytes, bytes, bytes]:
    """What a CSR says, its algorithm, and its signature's BIT STRING, each encoded."""
    whole = read_element(der)
    info = read_element(der, whole.content)
    algorithm = read_element(der, info.end)
    return info.encoded, algorithm.encoded, read_element(der, algorithm.end).encoded


def test_the_same_text_is_the_same_request() -> None:
    """Without a second verification."""
    csrs = VerifiedCsrs(2)
    first = csrs.parse(GOOD_CSR)
    assert csrs.parse(GOOD_CSR) is first
    assert first == parse_csr(GOOD_CSR)


@pytest.mark.parametrize("key_type", list(KeyType))
def test_another_csr_of_key_and_names_costs_a_signature_alone(key_type: KeyType) -> None:
    """The second is not parsed as a whole, and comes to what `parse_csr` says: with its own octets and hash."""
    key = generate_private_key(key_type)
    first, second = (build_csr(key, sans=["www.example.test"]) for _ in range(2))
    csrs = VerifiedCsrs(8)
    csrs.parse(first)
    expected = parse_csr(second)
    with patch.object(verified_csrs, "parse_csr", side_effect=AssertionError):
        assert csrs.parse(second) == expected


def test_each_signature_is_verified() -> None:
    """A signature of another key, or over other octets, over what was verified before is refused as ever."""
    csrs = primed()
    info, algorithm, _ = parts(DER)
    for signed, key in ((info, OTHER_KEY), (b"something else", ec_key())):
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        made = key.sign(signed, load(DER).signature_algorithm_parameters)  # type: ignore[arg-type] # ECDSA
        text = pem(sequence(info, algorithm, tlv(0x03, b"\0", made)))
        assert outcome(csrs.parse, text) == outcome(parse_csr, text)
        assert not isinstance(outcome(csrs.parse, text), CertificateRequest)


def test_keeps_no_refusal() -> None:
    """What was refused is checked anew and takes no place."""
    csrs = VerifiedCsrs(2)
    for text in ("junk", "\ud800", GOOD_CSR + GOOD_CSR, "x" * (MAX_CSR_LENGTH + 1)):
        with pytest.raises(RefusalError):
            csrs.parse(text)
    assert len(csrs) == 0


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in BAD_CSRS])
def test_what_is_wrong_stays_wrong(case: BadCsr) -> None:
    """Whatever was verified before."""
    csrs, text = primed(), case.make()
    assert outcome(csrs.parse, text) == outcome(parse_csr, text)


_INFO, _ALGORITHM, _SIGNATURE = parts(DER)
_LONG = len(DER).to_bytes(4, "big")
_BENT = [
    pytest.param(DER + b"\0", id="trailing-octet"),
    pytest.param(b"\x30\x84" + _LONG + DER[read_element(DER).content :], id="padded-length"),
    pytest.param(b"\x31" + DER[1:], id="a-set"),
    pytest.param(sequence(_INFO, _ALGORITHM, _SIGNATURE, b"\5\0"), id="one-element-more"),
    pytest.param(sequence(_INFO, _ALGORITHM), id="no-signature"),
    pytest.param(sequence(_INFO, _ALGORITHM, b"\4" + _SIGNATURE[1:]), id="an-octet-string"),
    pytest.param(sequence(_INFO, _ALGORITHM, tlv(0x03, b"\1", _SIGNATURE[3:])), id="not-whole-octets"),
    pytest.param(sequence(_INFO, _ALGORITHM, tlv(0x03)), id="an-empty-bit-string"),
    pytest.param(sequence(_INFO, _ALGORITHM, tlv(0x03, b"\0")), id="an-empty-signature"),
    pytest.param(sequence(_INFO, _ALGORITHM, tlv(0x03, _SIGNATURE[2:], b"\0")), id="octet-behind-the-signature"),
    pytest.param(sequence(_INFO, sequence(tlv(0x06, b"\x2a\x86\x48\xce\x3d\4\3\3")), _SIGNATURE),
                 id="another-hash"),
    pytest.param(sequence(_INFO, sequence(_ALGORITHM[2:], b"\5\0"), _SIGNATURE), id="algorithm-with-null"),
    pytest.param(sequence(_ALGORITHM, _INFO, _SIGNATURE), id="turned-round"),
]  # fmt: skip


@pytest.mark.parametrize("der", _BENT)
def test_a_structure_that_is_bent_is_no_match(der: bytes) -> None:
    """It is refused with the words that `parse_csr` has for it."""
    text = pem(der)
    assert outcome(primed().parse, text) == outcome(parse_csr, text)
    assert not isinstance(outcome(parse_csr, text), CertificateRequest)


_EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert"]), st.integers(0, len(DER)), st.integers(1, 255)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(_EDITS)
def test_says_what_the_plain_parser_says_of_any_octets(edits: list[tuple[str, int, int]]) -> None:
    """Octets of a verified CSR that are changed, left out or put in."""
    der = bytearray(DER)
    for kind, position, octet in edits:
        if kind == "flip" and position < len(der):
            der[position] ^= octet
        elif kind == "cut":
            del der[position : position + 1]
        else:
            der.insert(position, octet)
    text = pem(bytes(der))
    assert outcome(primed().parse, text) == outcome(parse_csr, text)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "rsa"]),
            st.sampled_from([("w1.example.test",), ("w2.example.test", "w1.example.test")]),
            st.sampled_from([None, (), ("w1.example.test",)]),
            st.booleans(),
        ),
        max_size=12,
    ),
    st.integers(1, 5),
)
def test_any_history_says_what_the_plain_parser_says(
    history: list[tuple[str, tuple[str, ...], tuple[str, ...] | None, bool]], size: int
) -> None:
    """Whatever came before and was forgotten, of several keys and names, bent or whole."""
    csrs = VerifiedCsrs(size)
    for key, names, known, bent in history:
        private = {"a": ec_key(), "b": OTHER_KEY, "rsa": rsa_key()}[key]
        text = build_csr(private, sans=names)  # type: ignore[arg-type] # both are keys of ours
        if bent:
            der = bytearray(parse_csr(text).der)
            der[-1] ^= 1
            text = pem(bytes(der))
        said = outcome(lambda text: csrs.parse(text, known=known, owner=key), text)  # noqa: B023 - called at once
        assert said == outcome(lambda text: parse_csr(text, known=known), text)  # noqa: B023
        assert len(csrs) <= size


def test_a_caller_that_makes_csrs_without_end_keeps_those_of_others() -> None:
    """Above its share it loses its own."""
    csrs = VerifiedCsrs(8)
    kept = csrs.parse(GOOD_CSR, owner="web1.test")
    for number in range(12):
        csrs.parse(pem(craft(names=[f"w{number}.example.test"])), owner="web2.test")
    assert csrs.parse(GOOD_CSR, owner="web1.test") is kept
    assert len(csrs) == 3


def test_what_openssl_signs_over_is_what_was_cut() -> None:
    """The octets that a signature is verified over are those that the library takes out of the CSR."""
    cut = CsrCut.of(DER)
    assert cut is not None
    csr = load(DER)
    assert (cut.signed, cut.signature) == (csr.tbs_certrequest_bytes, csr.signature)
