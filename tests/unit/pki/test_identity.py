"""A client certificate is believed only along a valid path, at this very moment, and for what it says."""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from certplane.errors import Reason, RefusalError
from certplane.pki.bundle import BundleError
from certplane.pki.identity import IdentityVerifier, PresentedLeaf, verify_identity
from certplane.pki.trust_bundle import TrustBundle
from tests.support.authority import NOW, PROVISIONER, Authority, IssuedLeaf, certificate_pem, provisioner_extension
from tests.support.csr import integer, octets, pem, sequence, tlv

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@cache
def _authority(key_kind: str = "ec", name: str = "Test") -> Authority:
    return Authority(name, key_kind)


@cache
def _bundle(*authorities: Authority) -> TrustBundle:
    return TrustBundle.from_pem(b"".join(authority.root_pem for authority in authorities or (_authority(),)))


@cache
def _leaf() -> IssuedLeaf:
    return _authority().issue("web1.example", common_name="web1.example", provisioner=provisioner_extension())


@pytest.mark.parametrize("key_kind", ["ec", "rsa"])
def test_reads_a_step_ca_certificate(key_kind: str) -> None:
    """Root, intermediate and leaf as step-ca makes them: verified, and read in full."""
    authority = _authority(key_kind)
    leaf = authority.issue(
        "Web1.example", "spiffe://example/host/web1", common_name="Web1.example", serial_number=0xBEEF,
        provisioner=provisioner_extension(1, "certplane"),
    )  # fmt: skip
    identity = verify_identity(leaf.pem.encode(), leaf.chain_pem.encode(), _bundle(authority), NOW)
    assert identity.names == ("web1.example", "spiffe://example/host/web1")
    assert identity.common_name == "web1.example"
    assert identity.serial_number == "beef"
    assert identity.issuer == "CN=Test Intermediate"
    assert (identity.provisioner_kind, identity.provisioner_name) == ("JWK", "certplane")
    assert identity.not_before == NOW - timedelta(minutes=1)
    assert identity.not_after == NOW - timedelta(minutes=1) + DAY


@pytest.mark.parametrize(
    ("make", "names"),
    [
        pytest.param(lambda: _authority().issue("web1.example"), ("web1.example",), id="no-common-name"),
        pytest.param(lambda: _authority().issue("spiffe://example/x"), ("spiffe://example/x",), id="uri-only"),
        pytest.param(
            lambda: _authority().issue(
                "web1.example", x509.IPAddress(ipaddress.ip_address("192.0.2.1")), x509.RFC822Name("a@example.com")
            ),
            ("web1.example",), id="other-kinds-name-nobody",
        ),
        pytest.param(
            lambda: _authority().issue("web1.example", usages=[ExtendedKeyUsageOID.CLIENT_AUTH]),
            ("web1.example",), id="client-auth-only",
        ),
        pytest.param(lambda: _authority().issue("web1.example", by_root=True), ("web1.example",), id="issued-by-root"),
        pytest.param(
            lambda: _authority().issue("Web1.example", "web1.EXAMPLE", common_name="The Web Server"),
            ("web1.example",), id="one-name-in-two-writings",
        ),
    ],
)  # fmt: skip
def test_accepts(make: Callable[[], IssuedLeaf], names: tuple[str, ...]) -> None:
    """DNS and URI SANs are names; the rest of the SAN names nobody."""
    leaf = make()
    identity = verify_identity(leaf.pem.encode(), leaf.chain_pem.encode(), _bundle(), NOW)
    assert identity.names == names


@pytest.mark.parametrize(
    "chain",
    [
        pytest.param(lambda: _leaf().fullchain_pem, id="leaf-among-them"),
        pytest.param(lambda: certificate_pem(_authority().root, _authority().intermediate), id="root-first"),
        pytest.param(
            lambda: certificate_pem(_authority(name="Other").intermediate, _authority().intermediate),
            id="a-stranger-among-them",
        ),
        pytest.param(lambda: _leaf().chain_pem * 2, id="twice"),
    ],
)
def test_finds_the_path_in_any_order(chain: Callable[[], str]) -> None:
    """The chain comes as the client sent it: order and company don't matter."""
    assert verify_identity(_leaf().pem.encode(), chain().encode(), _bundle(), NOW).names == ("web1.example",)


def test_an_intermediate_can_be_the_anchor() -> None:
    """A bundle that holds the intermediate alone trusts what that one signed, and nothing needs to be sent."""
    bundle = TrustBundle.from_pem(_authority().intermediate_pem)
    assert verify_identity(_leaf().pem.encode(), b"", bundle, NOW).names == ("web1.example",)


REFUSED = [
    pytest.param(lambda: ("", ""), "client certificate can't be read", id="nothing"),
    pytest.param(lambda: ("junk", ""), "client certificate can't be read", id="junk"),
    pytest.param(lambda: (pem(b"junk", "CERTIFICATE"), ""), "client certificate can't be read", id="junk-in-pem"),
    pytest.param(lambda: (_leaf().fullchain_pem, ""), "client certificate can't be read", id="two-leaves"),
    pytest.param(lambda: (_leaf().pem + "\ud800", ""), "client certificate can't be read", id="surrogate"),
    pytest.param(lambda: (_leaf().pem, "junk"), "chain can't be read", id="junk-chain"),
    pytest.param(lambda: (_leaf().pem, pem(b"junk", "CERTIFICATE")), "chain can't be read", id="junk-in-chain-pem"),
    pytest.param(lambda: (_leaf().pem, _leaf().chain_pem * 11), "chain can't be read", id="chain-of-11"),
    pytest.param(lambda: (_leaf().pem, _leaf().chain_pem + " " * 70000), "chain can't be read", id="chain-of-70-kb"),
    pytest.param(lambda: (_leaf().pem, ""), "no valid path", id="intermediate-missing"),
    pytest.param(lambda: _pair(_authority(name="Other").issue("web1.example")), "this broker trusts", id="row38-foreign-ca"),
    pytest.param(lambda: _pair(Authority("Test").issue("web1.example")), "no valid path", id="row38-foreign-ca-of-the-same-name"),
    pytest.param(
        lambda: _pair(_authority().issue("web1.example", usages=[ExtendedKeyUsageOID.SERVER_AUTH])), "trusts: required EKU not found", id="server-auth-only"
    ),
    pytest.param(lambda: _pair(_authority().issue("web1.example", usages=[])), "clientAuth", id="no-usages"),
    pytest.param(lambda: _pair(_authority().issue(common_name="web1.example")), "no subjectAltName", id="no-san"),
    pytest.param(lambda: _pair(_signed_by_leaf()), "no valid path", id="signed-by-a-leaf"),
    pytest.param(lambda: _pair(_authority().issue("web1.example", not_before=HOUR)), "not valid before", id="not-yet-valid"),
    pytest.param(
        lambda: _pair(_authority().issue("web1.example", common_name=["a.example", "b.example"])), "several common names", id="two-common-names"
    ),
    pytest.param(
        lambda: _pair(_authority().issue("web1.example", extra=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"x"), True)])),
        "trusts: invalid extension: 1.2.3: certificate contains", id="unknown-critical-extension",
    ),
    pytest.param(lambda: _pair(_authority().issue("web1.example", provisioner=b"")), "provisioner extension", id="provisioner-empty"),
    pytest.param(lambda: _pair(_authority().issue("web1.example", provisioner=b"\x30\x80\0\0")), "provisioner extension", id="provisioner-indefinite"),
    pytest.param(
        lambda: _pair(_authority().issue("web1.example", provisioner=provisioner_extension() + b"\0\0")), "provisioner extension", id="provisioner-trailing"
    ),
    pytest.param(
        lambda: _pair(_authority().issue("web1.example", provisioner=sequence(octets(b"JWK"), octets(b"x"), octets(b"y")))),
        "provisioner extension", id="provisioner-of-other-types",
    ),
    pytest.param(
        lambda: _pair(_authority().issue("web1.example", provisioner=sequence(integer(1), octets(b"x")))), "provisioner extension", id="provisioner-short"
    ),
    pytest.param(
        lambda: _pair(_authority().issue("web1.example", provisioner=sequence(integer(1), octets(b"\xff"), octets(b"")))),
        "provisioner extension", id="provisioner-name-not-utf-8",
    ),
]  # fmt: skip


def _pair(leaf: IssuedLeaf) -> tuple[str, str]:
    return leaf.pem, leaf.chain_pem


def _signed_by_leaf() -> IssuedLeaf:
    """A holder of an identity plays CA with it."""
    rogue = Authority("Rogue")
    rogue.intermediate, rogue.intermediate_key = _leaf().certificate, _leaf().key
    forged = rogue.issue("web2.example")
    return IssuedLeaf(forged.certificate, forged.key, (_leaf().certificate, _authority().intermediate))


@pytest.mark.parametrize(("make", "phrase"), REFUSED)
def test_refuses(make: Callable[[], tuple[str, str]], phrase: str) -> None:
    """Anything but a valid path and a readable certificate is an unknown identity."""
    leaf, chain = make()
    with pytest.raises(RefusalError) as caught:
        verify_identity(leaf.encode("utf-8", "surrogatepass"), chain.encode(), _bundle(), NOW)
    assert caught.value.refusal.reason is Reason.IDENTITY_UNKNOWN
    assert phrase in caught.value.refusal.message


def test_row37_expired() -> None:
    """An expired certificate says so: its holder has to renew, not to look for a mistake."""
    with pytest.raises(RefusalError) as caught:
        verify_identity(_leaf().pem.encode(), _leaf().chain_pem.encode(), _bundle(), NOW + DAY)
    assert caught.value.refusal.reason is Reason.IDENTITY_EXPIRED
    assert "2026-11-24T11:59:00Z" in caught.value.refusal.message


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (1, "JWK"), (2, "OIDC"), (3, "GCP"), (4, "AWS"), (5, "Azure"), (6, "ACME"), (7, "X5C"), (8, "K8sSA"),
        (9, "SSHPOP"), (10, "SCEP"), (11, "Nebula"), (12, "Wire"), (13, "unknown-13"), (0, "unknown-0"),
    ],
)  # fmt: skip
def test_row39_provisioner_kinds(kind: int, name: str) -> None:
    """Each kind of step-ca's provisioners by its name; a newer one is told apart from all known."""
    leaf = _authority().issue("web1.example", provisioner=provisioner_extension(kind, "p"))
    identity = verify_identity(leaf.pem.encode(), leaf.chain_pem.encode(), _bundle(), NOW)
    assert identity.provisioner_kind == name


def test_provisioner_with_key_value_pairs() -> None:
    """The optional pairs after the three fields are passed over."""
    value = sequence(integer(6), octets(b"acme"), octets(b""), sequence(tlv(0x13, b"key"), tlv(0x13, b"value")))
    leaf = _authority().issue("web1.example", provisioner=value)
    identity = verify_identity(leaf.pem.encode(), leaf.chain_pem.encode(), _bundle(), NOW)
    assert (identity.provisioner_kind, identity.provisioner_name) == ("ACME", "acme")


def test_absent_provisioner_is_empty() -> None:
    """A certificate without the extension has no kind; whether that is allowed is configured elsewhere."""
    leaf = _authority().issue("web1.example")
    identity = verify_identity(leaf.pem.encode(), leaf.chain_pem.encode(), _bundle(), NOW)
    assert (identity.provisioner_kind, identity.provisioner_name) == ("", "")


def test_oid_is_step_cas() -> None:
    """The extension's number is written out once more here, so that a typing error can't agree with itself."""
    assert PROVISIONER.dotted_string == "1.3.6.1.4.1.37476.9000.64.1"


@pytest.mark.parametrize(
    "disguised",
    [
        pytest.param(x509.DNSName("spiffe://example/host/web1"), id="uri-as-dns-name"),
        pytest.param(x509.UniformResourceIdentifier("web1.example"), id="dns-name-as-uri"),
    ],
)
def test_a_name_of_another_kind_names_nobody(disguised: x509.GeneralName) -> None:
    """What a CA has let through as one kind of name is not taken for the identity of the same text of the other."""
    leaf = _authority().issue("other.example", disguised)
    assert verify_identity(leaf.pem.encode(), leaf.chain_pem.encode(), _bundle(), NOW).names == ("other.example",)


def test_a_text_that_is_no_name_names_nobody() -> None:
    """What no policy can hold is passed on as it stands, to be found nowhere."""
    leaf = _authority().issue("web1.example", common_name="The Web Server")
    identity = verify_identity(leaf.pem.encode(), leaf.chain_pem.encode(), _bundle(), NOW)
    assert identity.common_name == "The Web Server"


# What a stranger presents beside its leaf: the attack is X, which has the intermediate's name and key and is issued by Y,
# before Ys that issue each other.


def _tbs_key(kind: int) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    """A key that costs whoever verifies with it; nobody holds it."""
    if not kind:
        return ec.generate_private_key(ec.SECP384R1()).public_key()
    return rsa.RSAPublicNumbers((1 << 63) + 29, (1 << (kind - 1)) + 1).public_key()


def _junk(crosses: int, loops: int, *, name: str = "Y", key: int = 0) -> list[x509.Certificate]:
    genuine, signer = _authority().intermediate, ec.generate_private_key(ec.SECP384R1())
    made = []
    for number in range(crosses + loops):
        cross = number < crosses
        builder = (
            x509.CertificateBuilder()
            .subject_name(genuine.subject if cross else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .public_key(genuine.public_key() if cross else _tbs_key(key) if key else signer.public_key())  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - DAY)
            .not_valid_after(NOW + DAY)
            .add_extension(x509.BasicConstraints(True, None), critical=True)
            .add_extension(genuine.extensions.get_extension_for_class(x509.KeyUsage).value, critical=True)
        )
        if cross:
            subject_id = genuine.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            builder = builder.add_extension(subject_id, critical=False)
        made.append(builder.sign(signer, hashes.SHA384()))
    return made


def _thread_time(leaf: IssuedLeaf, chain: str) -> float:
    """The least of some, with nothing remembered: a new bundle each time."""
    times = []
    for _ in range(5):
        bundle = TrustBundle.from_pem(_authority().root_pem)
        begun = time.thread_time()
        with contextlib.suppress(RefusalError):
            verify_identity(leaf.pem.encode(), chain.encode(), bundle, NOW)
        times.append(time.thread_time() - begun)
    return min(times)


@pytest.mark.parametrize(
    "junk",
    [
        pytest.param(lambda: _junk(3, 6), id="the-attack"),
        pytest.param(lambda: _junk(1, 1), id="as-much-as-is-read"),
        pytest.param(lambda: _junk(2, 0), id="crosses-alone"),
        pytest.param(lambda: _junk(0, 2, name="Test Root"), id="self-issued-with-the-root-s-name"),
        pytest.param(lambda: _junk(1, 1, name="Test Root"), id="a-loop-with-the-root-s-name"),
        pytest.param(lambda: _junk(1, 1, key=8192), id="rsa-8192"),
        pytest.param(lambda: _junk(1, 1, key=16384), id="rsa-16384-with-an-exponent-of-64-bits"),
        pytest.param(lambda: _junk(3, 6, key=16384), id="nine-of-rsa-16384"),
    ],
)
def test_junk_beside_a_good_chain_costs_next_to_nothing(junk: Callable[[], list[x509.Certificate]]) -> None:
    """A path search never sees what the bundle's CAs haven't signed: the attack's chain cost 50 to 700 times a good one."""
    presented = certificate_pem(*junk(), _authority().intermediate)
    good = _thread_time(_leaf(), _leaf().chain_pem)
    assert _thread_time(_leaf(), presented) < 5 * good


@pytest.mark.parametrize("name", ["Y", "Test Root"])
def test_junk_does_not_hide_a_good_chain(name: str) -> None:
    """Junk is passed over as long as it is little: the genuine intermediate is found behind it."""
    presented = certificate_pem(*_junk(1, 1, name=name), _authority().intermediate)
    identity = verify_identity(_leaf().pem.encode(), presented.encode(), _bundle(), NOW)
    assert identity.names == ("web1.example",)


def test_too_many_certificates_are_told_with_a_remedy() -> None:
    """Who sends a whole bundle along is told to send the intermediates alone."""
    presented = certificate_pem(*_junk(2, 2), _authority().intermediate)
    with pytest.raises(RefusalError, match="holds over 4 blocks; present the intermediates alone"):
        verify_identity(_leaf().pem.encode(), presented.encode(), _bundle(), NOW)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(tlv(0xA3, tlv(0x30, b"")), id="x400-address"),
        pytest.param(tlv(0xA5, tlv(0xA1, tlv(0x0C, b"x"))), id="edi-party-name"),
        pytest.param(tlv(0x9F, b"x"), id="a-kind-that-does-not-exist"),
        pytest.param(tlv(0x82, b"\xff"), id="dns-name-beyond-ascii"),
        pytest.param(tlv(0x87, b"123"), id="address-of-three-octets"),
        pytest.param(tlv(0xA4, b"junk"), id="broken-directory-name"),
        pytest.param(tlv(0x88, b"\x80"), id="broken-registered-id"),
    ],
)
def test_names_that_cannot_be_read_are_a_refusal(value: bytes) -> None:
    """Whatever the library raises over a name of a kind that it doesn't know, the caller is an unknown identity."""
    sans = sequence(tlv(0x82, b"web1.example"), value)
    leaf = _authority().issue(extra=[(x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, sans), True)])
    with pytest.raises(RefusalError) as caught:
        verify_identity(leaf.pem.encode(), leaf.chain_pem.encode(), _bundle(), NOW)
    assert caught.value.refusal.reason is Reason.IDENTITY_UNKNOWN


def test_an_identity_has_no_hundred_names() -> None:
    """A certificate of a whole estate is nobody's identity."""
    leaf = _authority().issue(*(f"w{number}.example" for number in range(101)))
    with pytest.raises(RefusalError, match="has 101 names; an identity has at most 100"):
        verify_identity(leaf.pem.encode(), leaf.chain_pem.encode(), _bundle(), NOW)


class TestTrustBundle:
    def test_is_never_empty(self) -> None:
        """A bundle that trusts nobody is a mistake, not a policy."""
        with pytest.raises(BundleError, match="no certificate"):
            TrustBundle(())

    def test_hash_is_of_the_content(self) -> None:
        """Order, comments and repetition don't make another bundle; another certificate does."""
        one, two = _authority().root_pem, _authority(name="Other").root_pem
        bundle = TrustBundle.from_pem(one + two)
        assert TrustBundle.from_pem(b"# two roots\n" + two + b"\nsecond:\n" + one + one).hash == bundle.hash
        assert TrustBundle.from_pem(one).hash != bundle.hash
        assert len(bundle.certificates) == 2

    @pytest.mark.parametrize(
        ("content", "phrase"),
        [
            pytest.param(lambda: b"", "no PEM block", id="empty"),
            pytest.param(lambda: b"\xff\xfe", "UTF-16", id="utf-16"),
            pytest.param(lambda: b"\x30\x82\x01\x00", "binary", id="der"),
            pytest.param(lambda: b"only a comment", "no PEM block", id="no-certificate"),
            pytest.param(lambda: pem(b"junk", "CERTIFICATE").encode(), "can't be read", id="junk"),
            pytest.param(lambda: _authority().root_pem + pem(b"x", "EC PRIVATE KEY").encode(), "private key", id="key"),
            pytest.param(lambda: _authority().root_pem + pem(b"x", "X509 CRL").encode(), "X509 CRL", id="crl"),
            pytest.param(lambda: _authority().root_pem[:-40], "it is cut off", id="cut-off"),
            pytest.param(lambda: certificate_pem(_leaf().certificate).encode(), "no CA's: CN=web1.example", id="leaf"),
        ],
    )
    def test_refuses(self, content: Callable[[], bytes], phrase: str) -> None:
        """A file that isn't CA certificates and nothing else is refused whole."""
        with pytest.raises(BundleError, match=phrase):
            TrustBundle.from_pem(content())


class TestIdentityVerifier:
    def _verify(self, verifier: IdentityVerifier, bundle: TrustBundle, after: timedelta = timedelta()) -> str:
        leaf = _leaf()
        return verifier.verify(leaf.pem.encode(), leaf.chain_pem.encode(), bundle, NOW + after).identity.names[0]

    def test_remembers_the_path(self) -> None:
        """The second time, the very same facts come back."""
        verifier = IdentityVerifier(8)
        leaf, chain = _leaf().pem.encode(), _leaf().chain_pem.encode()
        assert verifier.verify(leaf, chain, _bundle(), NOW) is verifier.verify(leaf, chain, _bundle(), NOW + HOUR)
        assert len(verifier) == 1

    def test_a_remembered_success_hides_no_expiry(self) -> None:
        """The time is looked at on every call, at both ends."""
        verifier = IdentityVerifier(8)
        self._verify(verifier, _bundle())
        with pytest.raises(RefusalError) as caught:
            self._verify(verifier, _bundle(), DAY)
        assert caught.value.refusal.reason is Reason.IDENTITY_EXPIRED
        with pytest.raises(RefusalError) as caught:
            self._verify(verifier, _bundle(), -HOUR)
        assert caught.value.refusal.reason is Reason.IDENTITY_UNKNOWN
        assert self._verify(verifier, _bundle()) == "web1.example"

    def test_a_remembered_success_hides_no_expired_intermediate(self) -> None:
        """A path is as short-lived as its shortest part."""
        authority = Authority()
        authority.intermediate = authority.certificate_authority(
            "Test Intermediate", authority.intermediate_key, path_length=0, issuer=authority.root,
            issuer_key=authority.root_key, lifetime=HOUR,
        )  # fmt: skip
        leaf = authority.issue("web1.example")
        verifier = IdentityVerifier(8)
        bundle = TrustBundle.from_pem(authority.root_pem)
        verifier.verify(leaf.pem.encode(), leaf.chain_pem.encode(), bundle, NOW)
        with pytest.raises(RefusalError) as caught:
            verifier.verify(leaf.pem.encode(), leaf.chain_pem.encode(), bundle, NOW + 2 * HOUR)
        assert caught.value.refusal.reason is Reason.IDENTITY_UNKNOWN

    def test_a_remembered_success_hides_no_removed_ca(self) -> None:
        """Under a bundle without the CA, the path is looked for anew and not found."""
        verifier = IdentityVerifier(8)
        both = _bundle(_authority(), _authority(name="Other"))
        assert self._verify(verifier, both) == "web1.example"
        with pytest.raises(RefusalError):
            self._verify(verifier, _bundle(_authority(name="Other")))

    def test_tells_leaf_from_chain(self) -> None:
        """The same bytes cut elsewhere are not the same question."""
        verifier = IdentityVerifier(8)
        self._verify(verifier, _bundle())
        with pytest.raises(RefusalError):
            verifier.verify(_leaf().fullchain_pem.encode(), b"", _bundle(), NOW)

    def test_remembers_a_refusal_for_some_seconds(self) -> None:
        """A refused chain costs once; a few seconds later it is looked at anew, and a clock set back forgets it."""
        verifier, asked = IdentityVerifier(8), []
        leaf = _authority(name="Other").issue("web1.example")

        def refused(after: timedelta) -> str:
            with pytest.raises(RefusalError) as caught:
                verifier.verify(leaf.pem.encode(), leaf.chain_pem.encode(), _bundle(), NOW + after, permit=asked.append)
            return caught.value.refusal.message

        messages = {refused(timedelta(seconds=seconds)) for seconds in (0, 1, 4, 4.9)}
        assert (len(messages), len(asked)) == (1, 1)
        refused(timedelta(seconds=5))
        assert len(asked) == 2
        refused(timedelta(seconds=1))
        assert len(asked) == 3
        assert len(verifier) == 0

    def test_a_remembered_refusal_is_of_these_very_bytes(self) -> None:
        """Another chain, another leaf or another bundle is another question."""
        verifier = IdentityVerifier(8)
        foreign = _authority(name="Other").issue("web1.example")
        with pytest.raises(RefusalError):
            verifier.verify(foreign.pem.encode(), foreign.chain_pem.encode(), _bundle(), NOW)
        both = _bundle(_authority(), _authority(name="Other"))
        assert verifier.verify(foreign.pem.encode(), foreign.chain_pem.encode(), both, NOW).identity.names
        with pytest.raises(RefusalError):
            verifier.verify(_leaf().pem.encode(), b"", _bundle(), NOW)
        assert self._verify(verifier, _bundle()) == "web1.example"

    def test_asks_for_permission_before_it_searches(self) -> None:
        """The one who permits learns hash, issuer and serial number, and what it raises is not remembered."""
        verifier, leaf = IdentityVerifier(8), _leaf()
        asked: list[PresentedLeaf] = []

        def forbid(presented: PresentedLeaf) -> None:
            asked.append(presented)
            raise RefusalError(Reason.RATE_LIMITED, "not now")

        for _ in range(2):
            with pytest.raises(RefusalError, match="not now"):
                verifier.verify(leaf.pem.encode(), leaf.chain_pem.encode(), _bundle(), NOW, permit=forbid)
        assert asked[0] == asked[1]
        assert asked[0].issuer == "CN=Test Intermediate"
        assert asked[0].serial_number == format(leaf.certificate.serial_number, "x")
        assert self._verify(verifier, _bundle()) == "web1.example"
        verifier.verify(leaf.pem.encode(), leaf.chain_pem.encode(), _bundle(), NOW, permit=forbid)  # known by now

    def test_remembers_not_too_much(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Strangers' junk takes no path's place, and the oldest goes when it is full, of refusals too."""
        monkeypatch.setattr("certplane.pki.identity._MAX_REFUSALS", 2)
        verifier = IdentityVerifier(2)
        for junk in (b"junk", b"x" * 100_000, b"more", b"and more"):
            with pytest.raises(RefusalError):
                verifier.verify(junk, b"", _bundle(), NOW)
        assert len(verifier) == 0
        assert len(verifier._refusals) == 2
        for number in range(3):
            leaf = _authority().issue(f"web{number}.example")
            verifier.verify(leaf.pem.encode(), leaf.chain_pem.encode(), _bundle(), NOW)
        assert len(verifier) == 2


@given(st.binary(), st.binary())
def test_never_raises_anything_else(leaf: bytes, chain: bytes) -> None:
    """Whatever is presented ends in an identity or a refusal."""
    with contextlib.suppress(RefusalError):
        verify_identity(leaf, chain, _bundle(), NOW)
    with contextlib.suppress(RefusalError):
        verify_identity(pem(leaf, "CERTIFICATE").encode(), pem(chain, "CERTIFICATE").encode(), _bundle(), NOW)


@pytest.mark.filterwarnings("ignore:Parsed a serial number:cryptography.utils.CryptographyDeprecationWarning")
@example(15, 0x80).via("the serial number's sign")
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_flipped_byte_passes(position: int, mask: int) -> None:
    """Whatever octet of an identity is changed, it is refused."""
    from cryptography.hazmat.primitives.serialization import Encoding

    der = bytearray(_leaf().certificate.public_bytes(Encoding.DER))
    der[position % len(der)] ^= mask
    with pytest.raises(RefusalError):
        verify_identity(pem(bytes(der), "CERTIFICATE").encode(), _leaf().chain_pem.encode(), _bundle(), NOW)
