"""What the sandbox's own identity CA decides: the rules of step-ca 0.30 for the calls that an agent makes.

Statuses, messages and their order are step-ca's (api/*.go, authority/authorize.go, authority/tls.go,
provisioner/jwk.go, x5c.go); one contract suite runs over both. In particular a token is burned before its signature
is looked at, an unauthorised caller learns nothing of the reason, and what is signed comes from the token, not from
the CSR.

Left out: SSH, ACME, templates, webhooks, CRLs, name policies. Thread-safe.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID

from certplane.runtime.clock import Clock
from certplane.sandbox.certificates import CertificateAuthority, general_name, leaf_extensions
from certplane.sandbox.identity_pki import IdentityPki, IdentityRules
from certplane.sandbox.identity_requests import (
    NAME_KINDS,
    NOT_IMPLEMENTED,
    RefusedError,
    bad_request,
    by_kind,
    certificate_request,
    forbidden,
    json_object,
    moment,
    requested_names,
    serial_number,
    unauthorized,
)
from certplane.sandbox.ports import X5C_PROVISIONER
from certplane.sandbox.tokens import csr_fingerprint, parse_jws, verify_jws

PROVISIONER_OID = x509.ObjectIdentifier("1.3.6.1.4.1.37476.9000.64.1")
"""step-ca's extension that names the provisioner (provisioner/extension.go)."""
JWK, X5C = 1, 7
"""Provisioner types in that extension."""

_LEEWAY = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class _Grant:
    """What a good token allows."""

    subject: str
    sans: tuple[str, ...]
    csr_fingerprint: str | None
    common_names: tuple[str, ...]
    """What the CSR's common name may be."""
    kind: int
    provisioner: str
    credential: str
    not_after: datetime | None
    """No identity may live longer than this: the end of an X5C holder's certificate."""


class IdentityAuthority:
    """Signs, renews and revokes identities."""

    def __init__(self, pki: IdentityPki, rules: IdentityRules, clock: Clock, names: Collection[str]) -> None:
        """An authority that knows itself by these DNS names or addresses (step-ca's `dnsNames`)."""
        self._pki = pki
        self._rules = rules
        self._clock = clock
        self._names = tuple(names)
        self._lock = threading.Lock()
        self._used_tokens: set[str] = set()
        self._revoked: set[int] = set()
        self._started = clock.now()

    def restarted(self) -> None:
        """From now on tokens that were issued before now are refused."""
        self._started = self._clock.now()

    def sign(self, body: bytes) -> list[x509.Certificate]:
        """`POST /sign`: leaf first.

        Raises:
            RefusedError: 400 for the body, 401 for the token, 403 for what the token doesn't allow.
        """
        members = json_object(body)
        csr = certificate_request(members)
        not_before, not_after = (moment(members.get(name)) for name in ("notBefore", "notAfter"))
        token = members.get("ott", "")
        if not isinstance(token, str):
            raise bad_request("error decoding json")
        if not token:
            raise bad_request("missing ott")
        grant = self._grant(token)
        _check_csr(csr, grant)
        start, end = self._validity(not_before, not_after, grant.not_after)
        public_key = csr.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, grant.subject)]))
            .public_key(public_key)
            .not_valid_before(start)
            .not_valid_after(end)
        )
        for extension, critical in leaf_extensions(public_key, self._pki.intermediate.certificate):
            builder = builder.add_extension(extension, critical)
        names = x509.SubjectAlternativeName([general_name(san) for san in grant.sans])
        provisioner = provisioner_extension(grant.kind, grant.provisioner, grant.credential)
        builder = builder.add_extension(names, critical=False).add_extension(provisioner, critical=False)
        return self._signed(builder)

    def renew(self, leaf: x509.Certificate) -> list[x509.Certificate]:
        """`POST /renew` by the holder of `leaf`: the same names, key, extensions and length of life.

        Raises:
            RefusedError: 401 when it is revoked, expired without `renewal_after_expiry`, or renewal is switched off.
        """
        self._may_renew(leaf)
        return self._signed(self._again(leaf, leaf.public_key()))

    def rekey(self, leaf: x509.Certificate, body: bytes) -> list[x509.Certificate]:
        """`POST /rekey`: like `renew`, with the public key of the CSR in the body. Nothing else of the CSR counts.

        Raises:
            RefusedError: 400 for the body, else as for `renew`.
        """
        public_key = certificate_request(json_object(body)).public_key()
        self._may_renew(leaf)
        return self._signed(self._again(leaf, public_key))

    def leaf_of_renewal_token(self, token: str) -> x509.Certificate:
        """The certificate that a bearer token renews; burns the token.

        Raises:
            RefusedError: 401 when the chain, the signature or a claim is wrong, or the token was used before; 500 for
                a signature or an audience that doesn't match, as step-ca answers.
        """
        invalid = "error validating renew token"
        try:
            header, claims = parse_jws(token)
            chain = _certificates(header["x5cInsecure"])
            leaf = chain[0]
            self._verify_chain(chain, self._pki.root, at=leaf.not_valid_after_utc - timedelta(minutes=1))
        except (ValueError, KeyError, TypeError, verification.VerificationError) as error:
            raise unauthorized(invalid) from error
        try:
            verify_jws(token, _ec_key(leaf.public_key()))
        except (InvalidSignature, ValueError) as error:
            raise RefusedError(500, invalid) from error
        self._burn(token, claims)
        subject = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if subject and claims.get("sub") != subject[0].value:
            raise unauthorized(f"{invalid}: invalid subject claim (sub)")
        try:
            self._check_times(claims)
        except RefusedError as error:
            raise unauthorized(f"{invalid}: token is expired (exp)") from error
        if not self._is_for(claims, ("/1.0/renew", "/renew")):
            raise RefusedError(500, f"{invalid}: invalid audience claim (aud)")
        if claims.get("iss") not in {"step-ca-client/1.0", provisioner_name(leaf)}:
            raise unauthorized(f"{invalid}: invalid issuer claim (iss)")
        return leaf

    def revoke(self, body: bytes, leaf: x509.Certificate | None) -> None:
        """`POST /revoke`, by token or by the holder of `leaf`.

        Raises:
            RefusedError: 400, 401, 403, or 501 for active revocation.
        """
        members = json_object(body)
        serial = serial_number(members)
        if not members.get("passive"):
            raise RefusedError(501, NOT_IMPLEMENTED)
        if token := members.get("ott"):
            claims = self._authorize(str(token), ("/1.0/revoke", "/revoke"))[1]
            if claims.get("sub") != str(serial):
                raise forbidden(
                    f'request serial number "{serial}" and token subject "{claims.get("sub")}" do not match'
                )
        elif leaf is None:
            raise bad_request("missing ott or client certificate")
        elif leaf.serial_number != serial:
            raise forbidden(
                f'request serial number "{serial}" and certificate serial number "{leaf.serial_number}" do not match'
            )
        with self._lock:
            if serial in self._revoked:
                raise bad_request(f"certificate with serial number '{serial}' is already revoked")
            self._revoked.add(serial)

    def _grant(self, token: str) -> _Grant:
        header, claims = self._authorize(token, ("/1.0/sign", "/sign"))
        subject = claims.get("sub")
        if not isinstance(subject, str) or not subject:
            raise unauthorized()
        sans = tuple(claims.get("sans") or (subject,))
        fingerprint = (claims.get("cnf") or {}).get("x5rt#S256")
        if "x5c" in header:
            end = _certificates(header["x5c"])[0].not_valid_after_utc
            return _Grant(subject, sans, fingerprint, (subject,), X5C, X5C_PROVISIONER, "", end)
        issuer = str(claims["iss"])
        key_id = self._pki.jwk_keys[issuer].key_id
        return _Grant(subject, sans, fingerprint, (subject, *sans), JWK, issuer, key_id, None)

    def _authorize(self, token: str, paths: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Check a provisioner's token in step-ca's order: provisioner, `iat`, burn, signature, times, audience."""
        try:
            header, claims = parse_jws(token)
        except ValueError as error:
            raise unauthorized() from error
        x5c = _fragment(claims) == f"x5c/{X5C_PROVISIONER}"
        jwk = self._pki.jwk_keys.get(str(claims.get("iss")))
        if not x5c and (jwk is None or header.get("kid") != jwk.key_id):
            raise unauthorized()
        issued = claims.get("iat")
        if isinstance(issued, int | float) and issued < int(self._started.timestamp()):
            raise unauthorized()
        self._burn(token, claims)
        try:
            if x5c:
                chain = _certificates(header["x5c"])
                self._verify_chain(chain, self._pki.x5c_authority, at=self._clock.now())
                verify_jws(token, _ec_key(chain[0].public_key()))
            elif jwk is not None:
                verify_jws(token, jwk.key.public_key())
        except (InvalidSignature, ValueError, KeyError, TypeError, verification.VerificationError) as error:
            raise unauthorized() from error
        self._check_times(claims)
        if (x5c and claims.get("iss") != X5C_PROVISIONER) or not self._is_for(claims, paths):
            raise unauthorized()
        return header, claims

    def _burn(self, token: str, claims: Mapping[str, Any]) -> None:
        token_id = str(claims.get("jti") or hashlib.sha256(token.encode()).hexdigest())
        with self._lock:
            if token_id in self._used_tokens:
                raise unauthorized()
            self._used_tokens.add(token_id)

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now = self._clock.now().timestamp()
        leeway = _LEEWAY.total_seconds()
        for claim, wrong in _TIME_RULES.items():
            value = claims.get(claim)
            if value is not None and (not isinstance(value, int | float) or wrong(value, now, leeway)):
                raise unauthorized()

    def _is_for(self, claims: Mapping[str, Any], paths: Sequence[str]) -> bool:
        """Whether one of the audiences is ours; ports and fragments don't count."""
        audience = claims.get("aud", [])
        given = {_without_port(str(url)) for url in ([audience] if isinstance(audience, str) else audience)}
        return bool(given & {f"https://{name}{path}" for name in self._names for path in paths})

    def _verify_chain(self, chain: Sequence[x509.Certificate], root: CertificateAuthority, *, at: datetime) -> None:
        verifier = verification.PolicyBuilder().store(verification.Store([root.certificate])).time(at)
        verifier.build_client_verifier().verify(chain[0], list(chain[1:]))
        usage = chain[0].extensions.get_extension_for_class(x509.KeyUsage).value
        if not usage.digital_signature:
            raise ValueError("the certificate isn't for signatures")

    def _validity(
        self, not_before: datetime | timedelta | None, not_after: datetime | timedelta | None, latest: datetime | None
    ) -> tuple[datetime, datetime]:
        """Start and end, by the rules of provisioner/sign_options.go."""
        rules, now = self._rules, self._clock.now().replace(microsecond=0)
        backdate = rules.backdate if not_before is None else timedelta()
        start = _absolute(not_before, now) or now
        end = _absolute(not_after, start)
        if end is None:
            end = start + rules.lifetime if latest is None else min(start + rules.lifetime, latest)
        elif latest is not None and end > latest:
            raise forbidden("requested certificate notAfter is after the expiration of the provisioning credential")
        start -= backdate
        if end < now:
            raise bad_request(f"notAfter cannot be in the past; na={end:%Y-%m-%d %H:%M:%S} +0000 UTC")
        if end < start:
            raise bad_request("notAfter cannot be before notBefore")
        if end - start < rules.shortest:
            raise forbidden("requested duration is less than the authorized minimum certificate duration")
        if end - start > rules.longest + rules.backdate:
            raise forbidden("requested duration is more than the authorized maximum certificate duration")
        return start, end

    def _may_renew(self, leaf: x509.Certificate) -> None:
        now = self._clock.now().replace(microsecond=0)
        known = {*self._pki.jwk_keys, X5C_PROVISIONER, None}
        with self._lock:
            revoked = leaf.serial_number in self._revoked
        if revoked or provisioner_name(leaf) not in known or not self._rules.renewal or now < leaf.not_valid_before_utc:
            raise unauthorized()
        if now > leaf.not_valid_after_utc and not self._rules.renewal_after_expiry:
            expired = f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%S} +0000 UTC"
            raise unauthorized(
                f"The request lacked necessary authorization to be completed: certificate expired on {expired}"
            )

    def _again(self, leaf: x509.Certificate, public_key: Any) -> x509.CertificateBuilder:
        """`leaf` once more, from now on, for a key."""
        now = self._clock.now().replace(microsecond=0)
        life = leaf.not_valid_after_utc - leaf.not_valid_before_utc - self._rules.backdate
        builder = (
            x509.CertificateBuilder()
            .subject_name(leaf.subject)
            .public_key(public_key)
            .not_valid_before(now - self._rules.backdate)
            .not_valid_after(now + life)
        )
        renewed = {
            type(extension): (extension, critical)
            for extension, critical in leaf_extensions(public_key, self._pki.intermediate.certificate)
            if isinstance(extension, x509.SubjectKeyIdentifier | x509.AuthorityKeyIdentifier)
        }
        for old in leaf.extensions:
            extension, critical = renewed.get(type(old.value), (old.value, old.critical))
            builder = builder.add_extension(extension, critical)
        return builder

    def _signed(self, builder: x509.CertificateBuilder) -> list[x509.Certificate]:
        signer = self._pki.intermediate
        leaf = (
            builder.issuer_name(signer.certificate.subject)
            .serial_number(x509.random_serial_number())
            .sign(signer.key, hashes.SHA256())
        )
        return [leaf, *signer.intermediates]


def provisioner_extension(kind: int, name: str, credential: str) -> x509.UnrecognizedExtension:
    """step-ca's provisioner extension: SEQUENCE { INTEGER, OCTET STRING, OCTET STRING }."""
    parts = [(0x02, bytes([kind])), (0x04, name.encode()), (0x04, credential.encode())]
    content = b"".join(bytes([tag, len(value)]) + value for tag, value in parts)
    if len(content) > 127 or any(len(value) > 127 for _, value in parts):
        raise ValueError("names of sandbox provisioners are short")
    return x509.UnrecognizedExtension(PROVISIONER_OID, bytes([0x30, len(content)]) + content)


def provisioner_name(leaf: x509.Certificate) -> str | None:
    """The provisioner's name in an extension written by `provisioner_extension`; None without the extension."""
    try:
        value = leaf.extensions.get_extension_for_oid(PROVISIONER_OID).value
    except x509.ExtensionNotFound:
        return None
    assert isinstance(value, x509.UnrecognizedExtension)
    # 30 len 02 01 kind 04 len name ...
    der = value.value
    return der[7 : 7 + der[6]].decode()


def _check_csr(csr: x509.CertificateSigningRequest, grant: _Grant) -> None:
    if grant.csr_fingerprint and grant.csr_fingerprint != csr_fingerprint(csr.public_bytes(Encoding.DER)):
        raise forbidden(f'certificate request fingerprint does not match "{grant.csr_fingerprint}"')
    subject = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = str(subject[0].value) if subject else ""
    if name and name not in grant.common_names:
        allowed = f"[{' '.join(grant.common_names)}]" if grant.kind == JWK else grant.subject
        raise forbidden(f"certificate request does not contain the valid common name - got {name}, want {allowed}")
    key = csr.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < 2048:
        raise forbidden("certificate request RSA key must be at least 2048 bits (256 bytes)")
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | Ed25519PublicKey):
        raise bad_request("certificate request key is not supported")
    asked, allowed_names = by_kind(requested_names(csr)), by_kind([general_name(san) for san in grant.sans])
    for kind, label in NAME_KINDS.items():
        got, want = asked.get(kind, []), allowed_names.get(kind, [])
        if got and set(got) != set(want):
            raise forbidden(
                f"certificate request does not contain the valid {label} - "
                f"got [{' '.join(got)}], want [{' '.join(want)}]"
            )


_TIME_RULES: dict[str, Callable[[float, float, float], bool]] = {
    "nbf": lambda value, now, leeway: now + leeway < value,
    "exp": lambda value, now, leeway: now - leeway > value,
    "iat": lambda value, now, leeway: now + leeway < value,
}
"""Claim -> whether its value is wrong at `now` (go-jose's ValidateWithLeeway)."""


def _certificates(x5c: Sequence[str]) -> list[x509.Certificate]:
    chain = [x509.load_der_x509_certificate(base64.b64decode(entry, validate=True)) for entry in x5c]
    if not chain:
        raise ValueError("an empty chain")
    return chain


def _ec_key(key: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("only P-256 keys sign tokens here")  # noqa: TRY004 (bad input, not misuse)
    return key


def _fragment(claims: Mapping[str, Any]) -> str:
    audience = claims.get("aud", "")
    first = audience if isinstance(audience, str) else next(iter(audience), "")
    return str(first).partition("#")[2]


def _without_port(url: str) -> str:
    return re.sub(r"^(https://[^/]*?):\d+(?=/|$)", r"\1", url.partition("#")[0])


def _absolute(moment: datetime | timedelta | None, start: datetime) -> datetime | None:
    return start + moment if isinstance(moment, timedelta) else moment
