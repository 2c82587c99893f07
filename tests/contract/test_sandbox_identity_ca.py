"""The `IdentityCa` contract, on a real step-ca and on the sandbox's own CA: what an agent and the broker rely on."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certplane.runtime.clock import SystemClock
from certplane.sandbox.certificates import CertificateAuthority, Credential
from certplane.sandbox.errors import ServerRefusedError
from certplane.sandbox.https_client import HttpAnswer
from certplane.sandbox.identity_authority import provisioner_extension
from certplane.sandbox.identity_ca import SandboxIdentityCa
from certplane.sandbox.identity_pki import IdentityCaClient, IdentityRules, certificate_request
from certplane.sandbox.ports import OTHER_JWK_PROVISIONER, PROVISIONER, X5C_PROVISIONER
from certplane.sandbox.step_ca import StepCa
from certplane.sandbox.tokens import TokenClaims, csr_fingerprint, mint_jwk_token, mint_renewal_token
from tests.support.parts import need_part

pytestmark = pytest.mark.integration

NAME = "web1.certplane.test"
SPIFFE = "spiffe://certplane.test/host/web1"
UNAUTHORIZED = (
    "The request lacked necessary authorization to be completed. "
    "Please see the certificate authority logs for more info."
)


@pytest.fixture
def ca(any_identity_ca: IdentityCaClient) -> IdentityCaClient:
    return any_identity_ca


@pytest.fixture(params=["step-ca", "sandbox"])
def open_ca(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[IdentityRules], StepCa | SandboxIdentityCa]:
    """Makes a CA with other rules, to be entered by the test."""
    if request.param == "step-ca":
        part = need_part("step-ca")
        return lambda rules: StepCa(tmp_path / "step-ca", rules, part=part)
    return lambda rules: SandboxIdentityCa(tmp_path / "identity-ca", rules)


def csr(*sans: str, subject: str = NAME, key: ec.EllipticCurvePrivateKey | None = None) -> str:
    request = certificate_request(key or ec.generate_private_key(ec.SECP256R1()), subject, sans)
    return request.public_bytes(Encoding.PEM).decode()


def extension(certificate: x509.Certificate) -> bytes:
    value = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.4.1.37476.9000.64.1")).value
    assert isinstance(value, x509.UnrecognizedExtension)
    return value.value


def leaf_of(answer: HttpAnswer) -> x509.Certificate:
    assert answer.status == 201, answer.body
    return x509.load_pem_x509_certificate(answer.json()["crt"].encode())


def refusal(answer: HttpAnswer) -> tuple[int, str]:
    body = answer.json()
    assert body["status"] == answer.status
    return answer.status, body["message"]


@pytest.mark.parametrize("prefix", ["", "/1.0"])
async def test_gives_its_root_by_fingerprint(ca: IdentityCaClient, prefix: str) -> None:
    """A client that knows only the fingerprint gets the certificate that has it; dashes in it don't matter."""
    fingerprint = ca.authority.fingerprint
    dashed = "-".join(fingerprint[i : i + 2] for i in range(0, 64, 2)).upper()
    for spelling in (fingerprint, dashed):
        answer = await ca.get(f"{prefix}/root/{spelling}")
        root = x509.load_pem_x509_certificate(answer.json()["ca"].encode())
        assert (answer.status, hashlib.sha256(root.public_bytes(Encoding.DER)).hexdigest()) == (200, fingerprint)


async def test_knows_no_other_root(ca: IdentityCaClient) -> None:
    """A fingerprint of something else is a 404."""
    assert refusal(await ca.get("/root/00")) == (404, 'root certificate with fingerprint "00" was not found')


async def test_lists_roots_and_health(ca: IdentityCaClient) -> None:
    """`/health` says ok; `/roots` answers 201, as step-ca does."""
    assert (await ca.get("/health")).json() == {"status": "ok"}
    answer = await ca.get("/1.0/roots")
    assert (answer.status, answer.json()["crts"]) == (201, [ca.authority.pem.decode()])
    assert (await ca.get("/roots.pem")).body == ca.authority.pem
    assert (await ca.get("/intermediates")).json()["crts"] == [ca.intermediate.pem.decode()]


async def test_lists_its_provisioners(ca: IdentityCaClient) -> None:
    """The public keys of the JWK provisioners can be looked up by name."""
    listed = {entry["name"]: entry for entry in (await ca.get("/provisioners")).json()["provisioners"]}
    assert listed[PROVISIONER]["key"] == ca.provisioner_keys[PROVISIONER].public_jwk
    assert listed[X5C_PROVISIONER]["type"] == "X5C"


async def test_signs_what_the_token_says(ca: IdentityCaClient) -> None:
    """The identity has the token's names, both EKUs, a day of life, and verifies as a TLS client up to the root."""
    identity = await ca.issue(NAME, [NAME, SPIFFE])
    leaf = identity.certificate
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [NAME, SPIFFE]
    assert [attribute.value for attribute in leaf.subject] == [NAME]
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(hours=24, minutes=1)
    store = verification.Store([ca.authority.certificate])
    verified = verification.PolicyBuilder().store(store).build_client_verifier().verify(leaf, list(identity.chain[1:]))
    assert len(verified.chain) == 3


async def test_answers_leaf_issuer_and_chain(ca: IdentityCaClient) -> None:
    """The reply has the leaf, its issuer, the chain without the root, and step-ca's TLS options."""
    answer = await ca.post("/1.0/sign", {"csr": csr(NAME), "ott": ca.mint_token(NAME)})
    reply = answer.json()
    assert answer.status == 201
    assert reply["certChain"] == [reply["crt"], reply["ca"]]
    assert reply["ca"] == ca.intermediate.pem.decode()
    assert set(reply["tlsOptions"]) == {"cipherSuites", "minVersion", "maxVersion", "renegotiation"}


@pytest.mark.parametrize(
    ("provisioner", "kind"),
    [
        pytest.param(PROVISIONER, 1, id="jwk"),
        pytest.param(OTHER_JWK_PROVISIONER, 1, id="other-jwk"),
        pytest.param(X5C_PROVISIONER, 7, id="x5c"),
    ],
)
async def test_marks_the_provisioner(ca: IdentityCaClient, provisioner: str, kind: int) -> None:
    """The leaf says which provisioner made it, of what kind, with which key, in step-ca's extension."""
    identity = await ca.issue(NAME, [NAME], provisioner=provisioner)
    key = ca.provisioner_keys.get(provisioner)
    expected = provisioner_extension(kind, provisioner, key.key_id if key else "")
    assert extension(identity.certificate) == expected.value


async def test_fills_in_names_that_the_csr_leaves_out(ca: IdentityCaClient) -> None:
    """A CSR without names, or with a part of the kinds, gets all names of the token."""
    for request in (csr(subject=""), csr(NAME)):
        answer = await ca.post("/sign", {"csr": request, "ott": ca.mint_token(NAME, [NAME, SPIFFE])})
        names = leaf_of(answer).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [str(name.value) for name in names] == [NAME, SPIFFE]


@pytest.mark.parametrize(
    ("request_names", "subject", "message"),
    [
        pytest.param(
            ["db1.certplane.test"],
            NAME,
            f"certificate request does not contain the valid DNS names - got [db1.certplane.test], want [{NAME}]",
            id="another-name",
        ),
        pytest.param(
            [NAME, "more.certplane.test"],
            NAME,
            "certificate request does not contain the valid DNS names - "
            f"got [{NAME} more.certplane.test], want [{NAME}]",
            id="one-name-more",
        ),
        pytest.param(
            [NAME, "spiffe://certplane.test/host/db1"],
            NAME,
            "certificate request does not contain the valid URIs - "
            f"got [spiffe://certplane.test/host/db1], want [{SPIFFE}]",
            id="another-uri",
        ),
        pytest.param(
            [NAME],
            "db1.certplane.test",
            "certificate request does not contain the valid common name - "
            f"got db1.certplane.test, want [{NAME} {NAME} {SPIFFE}]",
            id="another-common-name",
        ),
    ],
)
async def test_refuses_what_the_token_doesnt_say(
    ca: IdentityCaClient, request_names: list[str], subject: str, message: str
) -> None:
    """A CSR that asks for other names than the token's is a 403 that says which."""
    body = {"csr": csr(*request_names, subject=subject), "ott": ca.mint_token(NAME, [NAME, SPIFFE])}
    expected = (403, f"The request was forbidden by the certificate authority: {message}.")
    assert refusal(await ca.post("/sign", body)) == expected


async def test_a_token_can_be_tied_to_a_csr(ca: IdentityCaClient) -> None:
    """With `cnf` only that CSR is signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = certificate_request(key, NAME, [NAME])
    der = request.public_bytes(Encoding.DER)
    wrong = await ca.post("/sign", {"csr": csr(NAME), "ott": ca.mint_token(NAME, csr_der=der)})
    expected = f'certificate request fingerprint does not match "{csr_fingerprint(der)}"'
    assert refusal(wrong) == (403, f"The request was forbidden by the certificate authority: {expected}.")
    body = {"csr": request.public_bytes(Encoding.PEM).decode(), "ott": ca.mint_token(NAME, csr_der=der)}
    assert leaf_of(await ca.post("/sign", body)).public_key() == key.public_key()


async def test_a_token_is_good_once(ca: IdentityCaClient) -> None:
    """The second use of a token is a 401."""
    token = ca.mint_token(NAME)
    assert (await ca.post("/sign", {"csr": csr(NAME), "ott": token})).status == 201
    assert refusal(await ca.post("/sign", {"csr": csr(NAME), "ott": token})) == (401, UNAUTHORIZED)


async def test_a_token_is_burned_before_anything_is_signed(ca: IdentityCaClient) -> None:
    """A refused CSR costs the token: the same token with a good CSR afterwards is a 401."""
    token = ca.mint_token(NAME)
    assert (await ca.post("/sign", {"csr": csr("db1.certplane.test"), "ott": token})).status == 403
    assert refusal(await ca.post("/sign", {"csr": csr(NAME), "ott": token})) == (401, UNAUTHORIZED)


async def test_of_simultaneous_uses_one_wins(ca: IdentityCaClient) -> None:
    """Eight redemptions of one token at once make exactly one identity."""
    body = {"csr": csr(NAME), "ott": ca.mint_token(NAME)}
    answers = await asyncio.gather(*(ca.post("/sign", body) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [201] + [401] * 7


def _claims(ca: IdentityCaClient, **changes: Any) -> TokenClaims:
    members: dict[str, Any] = {
        "issuer": PROVISIONER,
        "audience": f"{ca.url}/1.0/sign",
        "subject": NAME,
        "issued_at": SystemClock().now(),
        "lifetime": timedelta(minutes=5),
    }
    return TokenClaims(**{**members, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"issuer": "stranger"}, id="unknown-provisioner"),
        pytest.param({"issuer": OTHER_JWK_PROVISIONER}, id="another-provisioners-name"),
        pytest.param({"audience": "https://elsewhere.example/1.0/sign"}, id="another-ca"),
        pytest.param({"audience": "https://127.0.0.1/1.0/revoke"}, id="another-call"),
        pytest.param({"subject": ""}, id="no-subject"),
        pytest.param({"lifetime": timedelta(minutes=-2)}, id="expired"),
        pytest.param({"issued_at": SystemClock().now() + timedelta(hours=1)}, id="from-the-future"),
        pytest.param({"issued_at": SystemClock().now() - timedelta(hours=1)}, id="older-than-the-ca"),
    ],
)
async def test_refuses_a_wrong_token_without_saying_why(ca: IdentityCaClient, changes: dict[str, Any]) -> None:
    """Each wrong claim is the same 401."""
    token = mint_jwk_token(ca.provisioner_keys[PROVISIONER], _claims(ca, **changes))
    assert refusal(await ca.post("/sign", {"csr": csr(NAME), "ott": token})) == (401, UNAUTHORIZED)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda token: token[:-8] + "AAAAAAAA", id="signature"),
        pytest.param(lambda token: token.rpartition(".")[0] + ".", id="no-signature"),
        pytest.param(lambda token: "x." + token, id="four-parts"),
        pytest.param(lambda token: "nonsense", id="no-token-at-all"),
    ],
)
async def test_refuses_a_spoiled_token(ca: IdentityCaClient, spoil: Callable[[str], str]) -> None:
    """What wasn't signed by the provisioner's key is a 401."""
    body = {"csr": csr(NAME), "ott": spoil(ca.mint_token(NAME))}
    assert refusal(await ca.post("/sign", body)) == (401, UNAUTHORIZED)


@pytest.mark.parametrize("port", ["", ":1"])
async def test_the_port_of_an_audience_doesnt_count(ca: IdentityCaClient, port: str) -> None:
    """A token for the CA's name is good whatever port it says."""
    claims = _claims(ca, audience=f"https://localhost{port}/sign")
    token = mint_jwk_token(ca.provisioner_keys[PROVISIONER], claims)
    assert (await ca.post("/sign", {"csr": csr(NAME), "ott": token})).status == 201


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        pytest.param("/sign", {"ott": "x"}, "missing csr", id="sign-without-csr"),
        pytest.param("/sign", {"csr": csr(NAME)}, "missing ott", id="sign-without-token"),
        pytest.param("/sign", {"csr": "nonsense", "ott": "x"}, "error decoding json", id="sign-nonsense"),
        pytest.param("/sign", [], "error decoding json", id="sign-list"),
        pytest.param("/renew", None, "missing client certificate", id="renew-as-nobody"),
        pytest.param("/rekey", {"csr": csr(NAME)}, "missing client certificate", id="rekey-as-nobody"),
        pytest.param("/revoke", {}, "missing serial", id="revoke-without-serial"),
        pytest.param(
            "/revoke", {"serial": "1", "passive": True}, "missing ott or client certificate", id="revoke-as-nobody"
        ),
    ],
)
async def test_says_what_is_missing(ca: IdentityCaClient, path: str, body: object, why: str) -> None:
    """A malformed request is a 400 that says what is wrong with it."""
    assert refusal(await ca.post(path, body)) == (400, f"The request could not be completed: {why}.")


async def test_refuses_a_csr_with_a_bad_signature(ca: IdentityCaClient) -> None:
    """A CSR that its own key didn't sign is a 400 and costs no token."""
    der = bytearray(certificate_request(ec.generate_private_key(ec.SECP256R1()), NAME).public_bytes(Encoding.DER))
    der[-1] ^= 1
    token = ca.mint_token(NAME)
    spoiled = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    assert (await ca.post("/sign", {"csr": spoiled, "ott": token})).status == 400
    assert (await ca.post("/sign", {"csr": csr(NAME), "ott": token})).status == 201


async def test_an_unknown_path_is_not_found(ca: IdentityCaClient) -> None:
    """404 for a path, 405 for a method."""
    assert (await ca.get("/nonesuch")).status == 404
    assert (await ca.get("/sign")).status == 405


async def test_renews_the_same_identity(ca: IdentityCaClient) -> None:
    """`/renew` keeps key, subject, names, provisioner and length of life; serial and dates are new."""
    identity = await ca.issue(NAME, [NAME, SPIFFE], lifetime=timedelta(hours=1))
    old, new = identity.certificate, leaf_of(await ca.post("/1.0/renew", None, holder=identity))
    assert new.serial_number != old.serial_number
    assert (new.public_key(), new.subject) == (old.public_key(), old.subject)
    assert extension(new) == extension(old)
    san = x509.SubjectAlternativeName
    assert new.extensions.get_extension_for_class(san) == old.extensions.get_extension_for_class(san)
    assert new.not_valid_after_utc - new.not_valid_before_utc == timedelta(hours=1, minutes=1)


async def test_rekeys_with_the_key_of_a_csr(ca: IdentityCaClient) -> None:
    """`/rekey` takes the public key of the CSR and nothing else of it."""
    identity = await ca.issue(NAME, [NAME])
    key = ec.generate_private_key(ec.SECP256R1())
    body = {"csr": csr("db1.certplane.test", subject="db1.certplane.test", key=key)}
    new = leaf_of(await ca.post("/1.0/rekey", body, holder=identity))
    names = new.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert (new.public_key(), [name.value for name in names]) == (key.public_key(), [NAME])
    rekeyed = Credential(key, (new, *identity.chain[1:]))
    assert leaf_of(await ca.post("/renew", None, holder=rekeyed)).public_key() == key.public_key()


async def test_a_client_of_another_ca_gets_no_connection(ca: IdentityCaClient) -> None:
    """A certificate that doesn't chain up to the root breaks the handshake."""
    stranger = CertificateAuthority.root("Stranger").issue(NAME, [NAME])
    with pytest.raises((ssl.SSLError, OSError, EOFError)):
        await ca.post("/renew", None, holder=stranger)


async def test_a_revoked_identity_isnt_renewed(ca: IdentityCaClient) -> None:
    """After its serial was revoked neither renew nor rekey work; a second revocation is refused."""
    identity = await ca.issue(NAME, [NAME])
    serial = identity.certificate.serial_number
    await ca.revoke(serial)
    assert refusal(await ca.post("/renew", None, holder=identity)) == (401, UNAUTHORIZED)
    assert refusal(await ca.post("/rekey", {"csr": csr(NAME)}, holder=identity)) == (401, UNAUTHORIZED)
    with pytest.raises(ServerRefusedError, match="already revoked"):
        await ca.revoke(serial)


async def test_a_holder_may_revoke_itself_only(ca: IdentityCaClient) -> None:
    """With a client certificate only that certificate's serial can be revoked."""
    identity = await ca.issue(NAME, [NAME])
    body = {"serial": str(identity.certificate.serial_number), "passive": True}
    assert (await ca.post("/revoke", {**body, "serial": "12"}, holder=identity)).status == 403
    assert (await ca.post("/revoke", body, holder=identity)).json() == {"status": "ok"}
    assert (await ca.post("/renew", None, holder=identity)).status == 401


async def test_active_revocation_isnt_implemented(ca: IdentityCaClient) -> None:
    """Without `passive` the answer is 501."""
    assert (await ca.post("/revoke", {"serial": "1"})).status == 501


async def test_tokens_of_before_a_restart_are_refused(ca: IdentityCaClient) -> None:
    """A restart keeps identities renewable and burned tokens burned, and refuses tokens minted earlier."""
    identity = await ca.issue(NAME, [NAME])
    early = mint_jwk_token(ca.provisioner_keys[PROVISIONER], _claims(ca))
    await asyncio.sleep(1.1)  # `iat` counts whole seconds
    await ca.restart()
    assert refusal(await ca.post("/sign", {"csr": csr(NAME), "ott": early})) == (401, UNAUTHORIZED)
    assert (await ca.post("/renew", None, holder=identity)).status == 201


async def test_lifetimes_are_within_the_rules(
    open_ca: Callable[[IdentityRules], StepCa | SandboxIdentityCa],
) -> None:
    """A request may name a lifetime between the shortest and the longest; the default applies when it names none."""
    rules = IdentityRules(lifetime=timedelta(hours=2), shortest=timedelta(minutes=30), longest=timedelta(hours=3))
    async with open_ca(rules) as ca:
        default = (await ca.issue(NAME)).certificate
        assert default.not_valid_after_utc - default.not_valid_before_utc == timedelta(hours=2, minutes=1)
        for lifetime in (timedelta(hours=4), timedelta(minutes=5)):
            with pytest.raises(ServerRefusedError) as refused:
                await ca.issue(NAME, lifetime=lifetime)
            assert refused.value.status == 403
        with pytest.raises(ServerRefusedError) as refused:
            await ca.issue(NAME, lifetime=timedelta(hours=-1))
        assert refused.value.status == 400


async def _expired(ca: StepCa | SandboxIdentityCa) -> Credential:
    identity = await ca.issue(NAME, [NAME], lifetime=timedelta(seconds=1))
    await asyncio.sleep(2.2)  # certificates count whole seconds
    return identity


def _bearer(ca: StepCa | SandboxIdentityCa, identity: Credential, audience: str = "/1.0/renew") -> str:
    return mint_renewal_token(identity, ca.url + audience, SystemClock().now(), timedelta(minutes=5))


async def test_an_expired_identity_is_renewed_where_the_ca_allows_it(
    open_ca: Callable[[IdentityRules], StepCa | SandboxIdentityCa],
) -> None:
    """By a bearer token of its own key, once per token, without a client certificate; its key stays the same."""
    async with open_ca(IdentityRules(renewal_after_expiry=True)) as ca:
        identity = await _expired(ca)
        with pytest.raises((ssl.SSLError, OSError, EOFError)):
            await ca.post("/renew", None, holder=identity)
        token = _bearer(ca, identity)
        assert leaf_of(await ca.post("/renew", None, bearer=token)).public_key() == identity.key.public_key()
        assert (await ca.post("/renew", None, bearer=token)).status == 401


async def test_an_expired_identity_isnt_renewed_otherwise(
    open_ca: Callable[[IdentityRules], StepCa | SandboxIdentityCa],
) -> None:
    """By default the answer is a 401 that says when it expired."""
    async with open_ca(IdentityRules()) as ca:
        identity = await _expired(ca)
        status, message = refusal(await ca.post("/renew", None, bearer=_bearer(ca, identity)))
        assert (status, "certificate expired on" in message) == (401, True)


async def test_a_renewal_token_must_be_right(ca: IdentityCaClient) -> None:
    """Nonsense, another key's signature, another subject and a stranger's chain renew nothing."""
    identity = await ca.issue(NAME, [NAME])
    thief = Credential(ec.generate_private_key(ec.SECP256R1()), identity.chain)
    stranger = CertificateAuthority.root("Stranger").issue(NAME, [NAME])
    for holder, status in ((thief, 500), (stranger, 401)):
        assert (await ca.post("/renew", None, bearer=_bearer(ca, holder))).status == status  # type: ignore[arg-type]
    assert (await ca.post("/renew", None, bearer="nonsense")).status == 401
    elsewhere = _bearer(ca, identity, "/1.0/sign")  # type: ignore[arg-type]
    assert (await ca.post("/renew", None, bearer=elsewhere)).status == 500
    assert (await ca.post("/renew", None, bearer=_bearer(ca, identity))).status == 201  # type: ignore[arg-type]


async def test_renewal_can_be_switched_off(open_ca: Callable[[IdentityRules], StepCa | SandboxIdentityCa]) -> None:
    """A provisioner may refuse all renewals."""
    async with open_ca(IdentityRules(renewal=False)) as ca:
        identity = await ca.issue(NAME, [NAME])
        assert refusal(await ca.post("/renew", None, holder=identity)) == (401, UNAUTHORIZED)


async def test_a_certificate_without_the_extension_is_renewed(ca: IdentityCaClient) -> None:
    """step-ca renews what its CA key signed without a provisioner; the broker must therefore look at the extension."""
    legacy = ca.intermediate.issue(NAME, [NAME])
    renewed = leaf_of(await ca.post("/renew", None, holder=legacy))
    assert [attribute.value for attribute in renewed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [NAME]


async def test_a_certificate_of_an_unknown_provisioner_isnt_renewed(ca: IdentityCaClient) -> None:
    """A provisioner that was removed renews nothing any more."""
    gone = ca.intermediate.issue(NAME, [NAME], extensions=[provisioner_extension(1, "removed", "x")])
    assert refusal(await ca.post("/renew", None, holder=gone)) == (401, UNAUTHORIZED)
