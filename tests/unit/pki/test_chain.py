"""What a CA returns is what was asked for, in order and valid, or it is refused before anything is stored."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable
from datetime import timedelta
from functools import cache

import pytest
from cryptography import x509
from hypothesis import example, given
from hypothesis import strategies as st

from certplane.errors import Reason
from certplane.pki.chain import (
    MAX_CERTIFICATES,
    MAX_CHAIN_LENGTH,
    MOST_CAME,
    check_issued_chain,
    found_chain,
    leaf_facts,
    split_chain,
    top_issuer,
)
from certplane.pki.chain_path import ChainError
from certplane.pki.keys import public_key_sha256
from tests.support.authority import NOW, Authority, IssuedLeaf, certificate_pem
from tests.support.csr import SAN, dns_san, ec_key, pem, sequence, tlv

NAMES = ("*.example.com", "example.com")
DAY = timedelta(days=1)


@cache
def _authority(key_kind: str = "ec", name: str = "Test") -> Authority:
    return Authority(name, key_kind)


@cache
def _leaf() -> IssuedLeaf:
    return _authority().issue(*NAMES, key=ec_key(), lifetime=90 * DAY)


def _check(text: str) -> None:
    check_issued_chain(text, public_key_sha256=public_key_sha256(ec_key().public_key()), dns_names=NAMES, now=NOW)


@pytest.mark.parametrize("key_kind", ["ec", "rsa"])
def test_accepts_what_was_asked_for(key_kind: str) -> None:
    """Leaf and issuers come back apart, with the leaf's facts."""
    leaf = _authority(key_kind).issue(*NAMES, key=ec_key(), lifetime=90 * DAY, serial_number=0x0ABC)
    issued = check_issued_chain(
        leaf.fullchain_pem, public_key_sha256=public_key_sha256(ec_key().public_key()), dns_names=set(NAMES), now=NOW
    )
    assert issued.certificate_pem == leaf.pem
    assert issued.chain_pem == leaf.chain_pem
    assert issued.facts.dns_names == NAMES
    assert issued.facts.serial_number == "abc"
    assert issued.facts.issuer == "CN=Test Intermediate"
    assert issued.facts.not_after == NOW - timedelta(minutes=1) + 90 * DAY
    assert issued.facts.not_before.tzinfo is not None
    assert issued.facts.public_key_sha256 == public_key_sha256(ec_key().public_key())


@pytest.mark.parametrize(
    ("make", "chain"),
    [
        pytest.param(
            lambda: _leaf().fullchain_pem + certificate_pem(_authority().root),
            lambda: certificate_pem(_authority().intermediate), id="root-is-dropped",
        ),
        pytest.param(
            lambda: _authority().issue(*NAMES, key=ec_key(), by_root=True).pem + certificate_pem(_authority().root),
            lambda: "", id="root-is-the-issuer",
        ),
        pytest.param(lambda: _leaf().pem, lambda: "", id="leaf-alone"),
        pytest.param(
            lambda: "\n" + _leaf().fullchain_pem.replace("\n", "\r\n") + "\r\n", lambda: _leaf().chain_pem, id="crlf"
        ),
        pytest.param(
            lambda: _authority().issue("Example.COM", "*.example.com", key=ec_key()).fullchain_pem,
            lambda: _leaf().chain_pem, id="names-in-other-case-and-order",
        ),
        pytest.param(
            lambda: _authority().issue(*NAMES, key=ec_key(), not_before=timedelta(minutes=4)).fullchain_pem,
            lambda: _leaf().chain_pem, id="ca-clock-a-little-ahead",
        ),
    ],
)  # fmt: skip
def test_accepts(make: Callable[[], str], chain: Callable[[], str]) -> None:
    """What differs in form only is accepted, and normalised."""
    issued = check_issued_chain(
        make(), public_key_sha256=public_key_sha256(ec_key().public_key()), dns_names=NAMES, now=NOW
    )
    assert issued.chain_pem == chain()
    assert "\r" not in issued.certificate_pem


def _short_lived_intermediate() -> str:
    authority = _authority()
    intermediate = authority.certificate_authority(
        "Test Intermediate", authority.intermediate_key, path_length=0, issuer=authority.root,
        issuer_key=authority.root_key, lifetime=-timedelta(hours=1),
    )  # fmt: skip
    return _leaf().pem + certificate_pem(intermediate)


def _signed_by_no_ca() -> str:
    authority = _authority()
    impostor = authority.certificate_authority(
        "Test Intermediate", authority.intermediate_key, path_length=0, issuer=authority.root,
        issuer_key=authority.root_key, ca=False,
    )  # fmt: skip
    return _leaf().pem + certificate_pem(impostor)


@cache
def _namesake() -> x509.Certificate:
    authority = _authority()
    key = _authority(name="Other").intermediate_key
    return authority.certificate_authority(
        "Test Intermediate", key, path_length=0, issuer=authority.root, issuer_key=authority.root_key
    )


def _unreadable_leaf() -> str:
    """A leaf with an x400Address among its names, which `cryptography` has no type for."""
    value = sequence(dns_san(NAMES[0]), dns_san(NAMES[1]), tlv(0xA3, b""))
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(SAN), value)
    return _authority().issue(key=ec_key(), extra=[(extension, False)]).pem


@cache
def _cross_sign(*, lifetime: timedelta = 365 * DAY) -> x509.Certificate:
    """The root's name and key, signed by another, older root."""
    authority, old = _authority(), _authority(name="Old")
    return authority.certificate_authority(
        "Test Root", authority.root_key, path_length=1, issuer=old.root, issuer_key=old.root_key, lifetime=lifetime
    )


@cache
def _expired_root() -> x509.Certificate:
    authority = _authority(name="Old")
    return authority.certificate_authority("Old Root", authority.root_key, path_length=2, lifetime=-timedelta(hours=1))


def _ca(*name: str) -> str:
    return certificate_pem((_authority(name=name[0]) if name else _authority()).intermediate)


def _root(*name: str) -> str:
    return certificate_pem((_authority(name=name[0]) if name else _authority()).root)


FOUND = [
    pytest.param(lambda: _leaf().pem * 2 + _ca(), _ca, ["certificate 2 of 3: it came twice"], id="leaf-twice"),
    pytest.param(lambda: _leaf().pem * 2, lambda: "", ["certificate 2 of 2: it came twice"], id="leaf-twice-alone"),
    pytest.param(lambda: _leaf().pem + _ca() * 2, _ca, ["certificate 3 of 3: it came twice"], id="issuer-twice"),
    pytest.param(lambda: _leaf().pem + _root() + _ca(), _ca, [], id="wrong-order"),
    pytest.param(lambda: _ca() + _leaf().pem, _ca, [], id="leaf-last"),
    pytest.param(lambda: _root() + _ca() + _leaf().pem, _ca, [], id="all-the-other-way-round"),
    pytest.param(
        lambda: _leaf().pem + _ca("Other") + _ca(), _ca,
        ["certificate 2 of 3: CN=Other Intermediate does not lead upwards from the certificate"], id="extra-between",
    ),
    pytest.param(
        lambda: _leaf().pem + _ca() + _root("Other"), _ca,
        ["certificate 3 of 3: CN=Other Root does not lead upwards from the certificate"], id="unrelated-root",
    ),
    pytest.param(
        lambda: _leaf().pem + certificate_pem(_namesake()) + _ca(), _ca,
        ["certificate 2 of 3: CN=Test Intermediate does not lead upwards from the certificate"], id="namesake-first",
    ),
    pytest.param(
        lambda: _leaf().pem + _ca() + certificate_pem(_cross_sign()), lambda: _ca() + certificate_pem(_cross_sign()),
        [], id="cross-sign-by-a-root-that-did-not-come",
    ),
    pytest.param(
        lambda: _leaf().pem + _ca() + certificate_pem(_cross_sign(), _expired_root()),
        lambda: _ca() + certificate_pem(_cross_sign()),
        ["certificate 4 of 4: CN=Old Root expired at 2026-11-23T11:00:00Z"], id="expired-root-at-the-end",
    ),
    pytest.param(
        lambda: _leaf().pem + _ca() + certificate_pem(_cross_sign(lifetime=-timedelta(hours=1))), _ca,
        ["certificate 3 of 3: CN=Test Root expired at 2026-11-23T11:00:00Z"], id="expired-cross-sign-at-the-end",
    ),
    pytest.param(
        lambda: _leaf().pem + _ca() + certificate_pem(_cross_sign(lifetime=-timedelta(hours=1)), _expired_root()), _ca,
        [
            "certificate 3 of 4: CN=Test Root expired at 2026-11-23T11:00:00Z",
            "certificate 4 of 4: CN=Old Root expired at 2026-11-23T11:00:00Z",
        ],
        id="add-trust-of-may-2020",
    ),
    pytest.param(
        lambda: _leaf().pem + _ca() + _root() + certificate_pem(_cross_sign()),
        lambda: _ca() + certificate_pem(_cross_sign()), [], id="root-and-its-cross-sign",
    ),
    pytest.param(
        lambda: _short_lived_intermediate() + _ca(), _ca,
        ["certificate 2 of 3: CN=Test Intermediate expired at 2026-11-23T11:00:00Z"], id="issuer-in-two-editions",
    ),
    pytest.param(
        lambda: _leaf().fullchain_pem + pem(b"junk", "CERTIFICATE"), _ca,
        ["certificate 3 of 3: the certificate chain has a certificate that can't be read"], id="junk-at-the-end",
    ),
    pytest.param(
        lambda: _unreadable_leaf() + _leaf().fullchain_pem, _ca,
        ["certificate 1 of 3:  does not lead upwards from the certificate"], id="x400-address-in-another",
    ),
    pytest.param(
        lambda: _authority().issue("example.com", key=ec_key()).pem + _leaf().fullchain_pem, _ca,
        ["certificate 1 of 3:  does not lead upwards from the certificate"], id="another-certificate-of-the-key-first",
    ),
    pytest.param(
        lambda: f"\ufeff# the certificate\n{_leaf().pem}\nits issuer:\n{_ca()}the end\n", _ca, [], id="comments"
    ),
    pytest.param(
        lambda: _leaf().fullchain_pem.replace("CERTIFICATE", "X509 CERTIFICATE"), _ca, [], id="older-label"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "chain", "dropped"), FOUND)
def test_takes_what_leads_upwards(make: Callable[[], str], chain: Callable[[], str], dropped: list[str]) -> None:
    """Of whatever a CA sends, the issuers of the certificate are taken in their order; the rest is dropped and told."""
    issued = check_issued_chain(
        make(), public_key_sha256=public_key_sha256(ec_key().public_key()), dns_names=NAMES, now=NOW
    )
    assert issued.certificate_pem == _leaf().pem
    assert issued.chain_pem == chain()
    assert list(issued.dropped) == dropped


@given(st.permutations(range(6)))
def test_the_order_does_not_matter(order: list[int]) -> None:
    """The same certificates in any order are the same chain."""
    parts = [_leaf().pem, _ca(), _root(), _ca("Other"), _root("Other"), _leaf().pem]
    issued = check_issued_chain(
        "".join(parts[number] for number in order),
        public_key_sha256=public_key_sha256(ec_key().public_key()), dns_names=NAMES, now=NOW,
    )  # fmt: skip
    assert (issued.certificate_pem, issued.chain_pem) == (_leaf().pem, _ca())


def test_two_cas_that_sign_each_other_end() -> None:
    """A circle of cross-signs is a path that ends, with each of them once."""
    one, two = _authority(), _authority(name="Two")
    first = one.certificate_authority(
        "Test Root", one.root_key, path_length=3, issuer=two.root, issuer_key=two.root_key
    )
    second = two.certificate_authority(
        "Two Root", two.root_key, path_length=3, issuer=one.root, issuer_key=one.root_key
    )
    issued = check_issued_chain(
        _leaf().fullchain_pem + certificate_pem(second, first),
        public_key_sha256=public_key_sha256(ec_key().public_key()), dns_names=NAMES, now=NOW,
    )  # fmt: skip
    assert issued.chain_pem == _ca() + certificate_pem(first, second)


def _poisoned() -> str:
    return _authority().issue(*NAMES, key=ec_key(), extra=[(x509.PrecertPoison(), True)]).fullchain_pem


def _other(*names: str | x509.GeneralName) -> Callable[[], str]:
    return lambda: _authority().issue(*names, key=ec_key()).fullchain_pem


@pytest.mark.parametrize(
    ("make", "phrase"),
    [
        pytest.param(lambda: "", "no PEM block", id="empty"),
        pytest.param(lambda: "junk", "no PEM block", id="junk"),
        pytest.param(lambda: pem(b"junk", "CERTIFICATE"), "can't be read", id="junk-in-pem"),
        pytest.param(lambda: _leaf().fullchain_pem + "\0", "control character", id="nul"),
        pytest.param(lambda: _leaf().fullchain_pem[:-30], "cut off", id="cut-off"),
        pytest.param(lambda: _leaf().fullchain_pem + pem(b"x", "PRIVATE KEY"), "PRIVATE KEY", id="private-key"),
        pytest.param(lambda: _leaf().pem + pem(b"junk", "CERTIFICATE"), "can't be read", id="junk-instead-of-a-chain"),
        pytest.param(lambda: _leaf().pem * (MAX_CERTIFICATES + 1), "over 10", id="too-many"),
        pytest.param(lambda: _leaf().fullchain_pem + " " * MAX_CHAIN_LENGTH, "longer than", id="too-long"),
        pytest.param(lambda: _authority().issue(*NAMES).fullchain_pem, "another key", id="another-key"),
        pytest.param(_other("example.com"), "is for example.com instead", id="name-missing"),
        pytest.param(_other(*NAMES, "evil.example"), "evil.example", id="name-more"),
        pytest.param(_other(), "no DNS name", id="no-names"),
        pytest.param(_other(*NAMES, x509.IPAddress(ipaddress.ip_address("192.0.2.1"))), "instead", id="ip-more"),
        pytest.param(_other(*NAMES, "https://example.com/"), "instead", id="uri-more"),
        pytest.param(
            lambda: _authority().issue(*NAMES, key=ec_key(), not_before=timedelta(minutes=6)).fullchain_pem,
            "not valid before", id="not-yet-valid",
        ),
        pytest.param(
            lambda: _authority().issue(*NAMES, key=ec_key(), not_before=-DAY, lifetime=DAY).fullchain_pem,
            "expired at 2026-11-23T12:00:00Z", id="expires-now",
        ),
        pytest.param(_short_lived_intermediate, "certificate 2 of the chain expired", id="intermediate-expired"),
        pytest.param(
            lambda: _leaf().pem + certificate_pem(_authority(name="Other").intermediate),
            "not signed by any", id="another-cas-intermediate",
        ),
        pytest.param(
            lambda: _leaf().pem + certificate_pem(_authority().root), "not signed by any", id="intermediate-missing"
        ),
        pytest.param(
            lambda: _leaf().pem + certificate_pem(_namesake()), "has not signed it", id="issuer-of-the-same-name"
        ),
        pytest.param(
            lambda: certificate_pem(_authority().intermediate, _authority().root), "another key", id="no-leaf"
        ),
        pytest.param(
            lambda: _authority().issue("example.com", key=ec_key()).fullchain_pem + _unreadable_leaf(),
            "is for example.com instead", id="other-names-and-one-that-cannot-be-read",
        ),
        pytest.param(lambda: _unreadable_leaf() + _leaf().chain_pem, "can't be read", id="x400-address-among-the-names"),
        pytest.param(_signed_by_no_ca, "no CA's", id="issuer-is-no-ca"),
        pytest.param(_poisoned, "precertificate", id="precertificate"),
    ],
)  # fmt: skip
def test_refuses(make: Callable[[], str], phrase: str) -> None:
    """Whatever is wrong is ISSUER_REJECTED, and said."""
    with pytest.raises(ChainError) as caught:
        _check(make())
    assert caught.value.refusal.reason is Reason.ISSUER_REJECTED
    assert phrase in caught.value.refusal.message


def test_refuses_a_ca_as_leaf() -> None:
    """A certificate that can sign others is nobody's server certificate."""
    authority = _authority()
    leaf = authority.issue(*NAMES, key=ec_key(), extra=[(x509.BasicConstraints(ca=True, path_length=None), True)])
    with pytest.raises(ChainError, match="a CA's"):
        _check(leaf.fullchain_pem)


def test_a_cas_answer_of_very_many_certificates() -> None:
    """Only so many are looked at, the first ones; the others are counted as left out."""
    kept, passed = found_chain(_leaf().fullchain_pem + certificate_pem(_authority(name="Other").intermediate) * 200)
    assert kept.count("BEGIN") == MOST_CAME
    assert passed == 200 + _leaf().fullchain_pem.count("BEGIN") - MOST_CAME
    issued = check_issued_chain(
        kept, public_key_sha256=public_key_sha256(ec_key().public_key()), dns_names=NAMES, now=NOW, most=MOST_CAME
    )
    assert issued.certificate_pem == _leaf().pem
    with pytest.raises(ChainError, match="longer than") as caught:
        _check(kept)
    assert caught.value.may_heal


def test_split_chain() -> None:
    """The first certificate, and all after it."""
    assert split_chain(_leaf().fullchain_pem) == (_leaf().pem, _leaf().chain_pem)
    assert split_chain(_leaf().pem) == (_leaf().pem, "")


def test_leaf_facts() -> None:
    """Names and URIs apart, whatever else the chain holds."""
    leaf = _authority().issue("web1.example", "spiffe://example/host/web1", common_name="web1.example")
    facts = leaf_facts(leaf.fullchain_pem)
    assert facts.dns_names == ("web1.example",)
    assert facts.uris == ("spiffe://example/host/web1",)
    assert facts.serial_number == format(leaf.certificate.serial_number, "x")


@given(st.one_of(st.text(), st.binary().map(lambda der: pem(der, "CERTIFICATE"))))
def test_never_raises_anything_else(text: str) -> None:
    """Any text ends in a chain or a ChainError."""
    for call in (_check, leaf_facts, split_chain, found_chain, lambda text: top_issuer(text, NOW)):
        with contextlib.suppress(ChainError):
            call(text)


@pytest.mark.filterwarnings("ignore:Parsed a serial number:cryptography.utils.CryptographyDeprecationWarning")
@example(15, 0x80).via("the serial number's sign")
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_flipped_byte_passes(position: int, mask: int) -> None:
    """Whatever octet of a leaf is changed, the chain is refused."""
    der = bytearray(_leaf_der())
    der[position % len(der)] ^= mask
    with pytest.raises(ChainError):
        _check(pem(bytes(der), "CERTIFICATE") + _leaf().chain_pem)


def test_a_signature_with_unused_bits_is_refused() -> None:
    """The same content in another encoding is another certificate, and no CA's: X.690 8.6.2.2, outside the signature."""
    from cryptography.hazmat.primitives.serialization import Encoding

    leaves = (_authority().issue(*NAMES, key=ec_key(), lifetime=90 * DAY) for _ in range(100))
    leaf = next(leaf for leaf in leaves if not leaf.certificate.signature[-1] & 1)  # else it is no padding to a parser
    der = bytearray(leaf.certificate.public_bytes(Encoding.DER))
    der[-len(leaf.certificate.signature) - 1] = 1
    with pytest.raises(ChainError, match="whole number"):
        _check(pem(bytes(der), "CERTIFICATE") + leaf.chain_pem)


@cache
def _leaf_der() -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return _leaf().certificate.public_bytes(Encoding.DER)
