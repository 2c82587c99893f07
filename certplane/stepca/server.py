"""A server's own certificate of the internal CA: got with a one-time token, and renewed with itself. Blocks.

What comes back is believed only if it is for our key and our name, and its chain leads to a root that is believed. The
key is the caller's and stays: a renewal by step-ca is for the same one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from certplane.pki.csr import build_csr
from certplane.pki.keys import PrivateKey, private_key_pem, public_key_sha256
from certplane.pki.reading import READ_ERRORS
from certplane.stepca.errors import EnrollmentError, RefusedError
from certplane.stepca.exchange import Endpoint, Reply, exchange
from certplane.stepca.trust import PinnedRoots

_CREATED = 201


def sign(
    endpoint: Endpoint, roots: PinnedRoots, *, token: str, name: str, key: PrivateKey, now: datetime, timeout: timedelta
) -> str:
    """A certificate for `name`, PEM, leaf first, with its issuers but for the root.

    Args:
        endpoint: the CA.
        roots: what it is known by, and what the chain must lead to.
        token: a one-time token for that name; it counts as spent from here on.
        name: the server's DNS name.
        key: its key.
        now: this machine's time.
        timeout: as of `exchange`.

    Raises:
        UnreachableError: nothing was sent.
        EnrollmentError: the CA refused, or what came can't be used.
    """
    csr = build_csr(key, common_name=name if len(name) <= 64 else "", sans=(name,))
    reply = exchange(
        endpoint, "POST", "/sign", context=roots.context(), timeout=timeout, body={"csr": csr, "ott": token}
    )
    if reply.status != _CREATED:
        said = reply.said or f"HTTP {reply.status}"
        raise RefusedError(
            f"the internal CA at {endpoint.origin} gave no certificate for {name}: {said}",
            status=reply.status,
            said=said,
            remedy="the token was used before, is older than the CA's last start, or isn't for this CA: get a new "
            "token and run the same command again (the key is kept)",
            token_spent=True,
        )
    return _accepted(reply, name, key, roots, now)


def renew(
    endpoint: Endpoint,
    roots: PinnedRoots,
    *,
    chain_pem: str,
    name: str,
    key: PrivateKey,
    now: datetime,
    timeout: timedelta,
) -> str:
    """The next certificate for the same key and name; `chain_pem` is the one in force. Otherwise as `sign`.

    Raises:
        UnreachableError: nothing was sent.
        EnrollmentError: the CA refused, or what came can't be used.
    """
    context = roots.context()
    with tempfile.TemporaryDirectory(prefix="certplane-") as folder:  # ssl reads a pair from files alone
        pair = Path(folder) / "pair.pem"
        pair.touch(mode=0o600)
        pair.write_bytes(private_key_pem(key) + chain_pem.encode())
        context.load_cert_chain(pair)
    reply = exchange(endpoint, "POST", "/renew", context=context, timeout=timeout)
    if reply.status != _CREATED:
        said = reply.said or f"HTTP {reply.status}"
        raise RefusedError(
            f"the internal CA at {endpoint.origin} didn't renew the certificate of {name}: {said}",
            status=reply.status,
            said=said,
            remedy="if it is revoked or has ended, run `certplane-broker init` with a new token",
        )
    return _accepted(reply, name, key, roots, now)


def why_unusable(chain_pem: str, name: str, key: PrivateKey, roots: PinnedRoots, now: datetime) -> str:
    """Why a certificate isn't one for this name, key and CA at this time; empty if it is."""
    try:
        certificates = x509.load_pem_x509_certificates(chain_pem.encode())
        _check(certificates, name, key, roots, now)
    except READ_ERRORS as error:
        return str(error)
    return ""


def _accepted(reply: Reply, name: str, key: PrivateKey, roots: PinnedRoots, now: datetime) -> str:
    try:
        certificates = _certificates(reply)
        leaf = certificates[0]
        # The CA's clock counts for what it has just made, as in `certplane.agent.enrollment.answers`.
        judged_at = min(max(now, leaf.not_valid_before_utc), leaf.not_valid_after_utc)
        _check(certificates, name, key, roots, judged_at)
    except READ_ERRORS as error:
        raise EnrollmentError(
            f"the certificate from the internal CA is not usable: {error}",
            remedy="check the provisioner's template and the CA's intermediate",
        ) from error
    known = set(roots.certificates)
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in certificates if each not in known)


def _check(
    certificates: Sequence[x509.Certificate], name: str, key: PrivateKey, roots: PinnedRoots, at: datetime
) -> None:
    """Raises `ValueError` with what is wrong."""
    leaf, *issuers = certificates
    if public_key_sha256(leaf.public_key()) != public_key_sha256(key.public_key()):
        raise ValueError("it is for another key")
    verifier = PolicyBuilder().store(Store([*roots.certificates])).time(at).build_server_verifier(x509.DNSName(name))
    try:
        verifier.verify(leaf, issuers)
    except VerificationError as error:
        raise ValueError(f"it is none of {name} that leads to the internal CA's root: {error}") from error


def _certificates(reply: Reply) -> list[x509.Certificate]:
    """Leaf first; older CAs send only leaf and issuer (`certplane.agent.enrollment.answers`)."""
    answer = reply.json()
    pems = answer.get("certChain") or [pem for pem in (answer.get("crt"), answer.get("ca")) if pem]
    if not isinstance(pems, list) or not pems or not all(isinstance(pem, str) for pem in pems):
        raise ValueError("the answer holds no certificate")
    return [x509.load_pem_x509_certificate(pem.encode()) for pem in pems]
