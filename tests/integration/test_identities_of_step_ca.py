"""What a real step-ca signs, `certplane.pki.identity` verifies and reads; the sandbox's CA is held to the same."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.errors import Reason, RefusalError
from certplane.pki.identity import IdentityCertificate, verify_identity
from certplane.pki.trust_bundle import TrustBundle
from certplane.runtime.clock import SystemClock
from certplane.sandbox.certificates import Credential
from certplane.sandbox.ports import OTHER_JWK_PROVISIONER, PROVISIONER, X5C_PROVISIONER, IdentityCa

pytestmark = pytest.mark.integration


def _verify(credential: Credential, ca: IdentityCa) -> IdentityCertificate:
    leaf, *rest = (certificate.public_bytes(Encoding.PEM) for certificate in credential.chain)
    bundle = TrustBundle.from_pem(ca.roots_file.read_bytes())
    return verify_identity(leaf, b"".join(rest), bundle, SystemClock().now())


@pytest.mark.parametrize(
    ("provisioner", "kind"), [(PROVISIONER, "JWK"), (OTHER_JWK_PROVISIONER, "JWK"), (X5C_PROVISIONER, "X5C")]
)
async def test_row39_provisioner_is_read(any_identity_ca: IdentityCa, provisioner: str, kind: str) -> None:
    """The kind and name of the provisioner that step-ca wrote into the certificate."""
    credential = await any_identity_ca.issue("web1.certplane.test", provisioner=provisioner)
    identity = _verify(credential, any_identity_ca)
    assert (identity.provisioner_kind, identity.provisioner_name) == (kind, provisioner)
    assert identity.names == ("web1.certplane.test",)
    assert identity.common_name == "web1.certplane.test"
    assert identity.serial_number == format(credential.certificate.serial_number, "x")


async def test_names_of_both_kinds(any_identity_ca: IdentityCa) -> None:
    """DNS and URI SANs of the token arrive as names."""
    sans = ["web1.certplane.test", "spiffe://certplane.test/host/web1"]
    credential = await any_identity_ca.issue("web1.certplane.test", sans)
    assert set(_verify(credential, any_identity_ca).names) == set(sans)


async def test_without_its_intermediate(any_identity_ca: IdentityCa) -> None:
    """A leaf alone has no path to the root, however real."""
    credential = await any_identity_ca.issue("web1.certplane.test")
    with pytest.raises(RefusalError) as caught:
        _verify(Credential(credential.key, credential.chain[:1]), any_identity_ca)
    assert caught.value.refusal.reason is Reason.IDENTITY_UNKNOWN
