"""examples/go: a service in Go on generated stubs that keeps its own certificate fresh, against a running broker."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from certplane.sandbox.operator import Operator
from tests.support.go_service import GoModule, GoService
from tests.support.parts import need_part
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.e2e

_NAMES = ["api.certplane.test", "www.certplane.test"]
_TOLD = "the broker tells what becomes of the certificate"
_POLICY = {
    "version": 1,
    "profiles": {"api": {"type": "multi_san", "dns_names": _NAMES}},
    "services": {"shop": {"identity": "shop.certplane.test", "profiles": ["api"]}},
    "operators": {"alice": {"identity": "alice.certplane.test", "roles": ["operator"]}},
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, generated, looked at by go vet, tested and built with the pinned modules."""
    module = GoModule(tmp_path_factory.mktemp("go"))
    assert module.run("gofmt", "-l", "main.go", "keeper").stdout == ""
    module.build_as_documented()
    module.run("go", "vet", "./...")
    tested = module.run("go", "test", "./...").stdout
    assert "ok  \texample.net/certplane-service/keeper" in tested
    return module.folder / "certplane-service"


@pytest.fixture
async def deployment(program: Path, tmp_path: Path) -> AsyncIterator[Deployment]:
    need_part("pebble")
    async with Deployment(tmp_path / "deployment", DeploymentOptions(_POLICY)) as running:
        await running.start_broker()
        yield running


@pytest.fixture
async def service(deployment: Deployment, program: Path, tmp_path: Path) -> AsyncIterator[GoService]:
    identity = Operator(deployment, "shop.certplane.test")  # enrolled as any caller is
    enrolled = await identity.enroll()
    assert enrolled.status == 0, enrolled.stderr
    made = GoService(program, deployment, identity.identity, tmp_path / "keeper")
    yield made
    await made.stop()


def _kept(service: GoService) -> tuple[x509.Certificate, bytes]:
    """What it keeps: the leaf, and its public key (DER)."""
    text = (service.folder / "pair.pem").read_bytes()
    key = serialization.load_pem_private_key(text, None)
    leaf = x509.load_pem_x509_certificates(text)[0]
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return leaf, public


async def test_it_gets_a_certificate_and_serves_it_while_the_broker_is_away(
    deployment: Deployment, service: GoService
) -> None:
    """The key that it had begun with gets one certificate by one order; killed, it serves that without a broker."""
    begun = ec.generate_private_key(ec.SECP256R1())
    service.folder.mkdir(mode=0o700)
    (service.folder / "next-key.pem").write_bytes(
        begun.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )  # as one leaves it that died after it had asked
    await service.start()
    serial = await service.serial()
    leaf, public = _kept(service)
    assert format(leaf.serial_number, "x") == serial
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == _NAMES
    assert public == begun.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert [path.name for path in service.folder.iterdir()] == ["pair.pem"]
    assert stat.S_IMODE((service.folder / "pair.pem").stat().st_mode) == 0o600
    assert len(deployment.pebble.log.orders) == 1

    service.kill()
    await deployment.stop_broker()
    await service.start()
    assert await service.serial() == serial
    assert len(deployment.pebble.log.orders) == 1


async def test_it_renews_as_soon_as_an_operator_asks(deployment: Deployment, service: GoService) -> None:
    """A renewal that an operator asks for, also of a broker that came later, is done with a new key; with a new identity too."""
    operator = Operator(deployment, "alice.certplane.test")
    enrolled = await operator.enroll()
    assert enrolled.status == 0, enrolled.stderr
    await service.start()
    serial = await service.serial()
    _, public = _kept(service)
    await until(lambda: service.log_text().count(_TOLD) == 1, what="the watch")
    await deployment.start_broker()  # anew: the watch ends, and the service comes back by itself
    await until(lambda: service.log_text().count(_TOLD) == 2, what="the watch of the new broker")

    asked = await operator.run("renew", "--profile", "api", "--reason", "drill", "--yes")
    assert asked.status == 0, asked.stderr

    async def another() -> bool:
        return await service.serial() != serial

    await until(another, what="another certificate")
    assert _kept(service)[1] != public
    assert len(deployment.pebble.log.orders) == 2

    identity = Host(deployment, "shop.certplane.test")
    identity.write_token()
    enrolled = await identity.run("enroll", "--force")
    assert enrolled.status == 0, enrolled.stderr
    serial = await service.serial()
    asked = await operator.run("renew", "--profile", "api", "--reason", "drill", "--yes")
    assert asked.status == 0, asked.stderr
    await until(another, what="a certificate that was asked for with the new identity")
    await until(lambda: service.log_text().count(_TOLD) == 3, what="the watch with the new identity")


async def test_a_profile_that_it_does_not_have_is_said(deployment: Deployment, service: GoService) -> None:
    """A profile that policy doesn't give the service is a line with those that it gives; the service tries again."""
    service.settings["profile"] = "payments"
    await service.start()
    said = await until(lambda: "trying again in" in service.log_text() and service.log_text(), what="its complaint")
    assert 'gives shop.certplane.test no profile "payments"; it gives ["api"]' in said
    assert not (service.folder / "pair.pem").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param([], "-broker is missing", id="no-settings"),
        pytest.param(
            [f"-{name}=x" for name in ("broker", "identity-cert", "identity-key", "profile")]
            + ["-broker-ca=missing.pem", "-folder=kept"],
            "open x: no such file",
            id="no-identity",
        ),
    ],
)
def test_bad_settings_end_it(program: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    """A setting that is missing or names nothing ends the program with one line."""
    done = subprocess.run(
        [program, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("certplane-service: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
