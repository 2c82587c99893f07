"""The broker's one-time tokens at a real step-ca: taken once, for the name that they are for, while they hold."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certplane.broker.enrolling.provisioner_key import ProvisionerKey, ProvisionerKeyError
from certplane.broker.enrolling.tokens import IdentityCa
from certplane.ctl.show.machines import at_the_ca_lines
from certplane.sandbox.https_client import HttpAnswer
from certplane.sandbox.identity_authority import PROVISIONER_OID, provisioner_extension
from certplane.sandbox.identity_pki import certificate_request
from certplane.sandbox.ports import PROVISIONER
from certplane.sandbox.process import ServerProcess, accepts_tcp, start_on_free_port
from certplane.sandbox.step_ca import StepCa
from certplane.v1 import enrollment_pb2 as pb
from certplane.v1 import enrollment_pb2_grpc
from tests.fakes.secrets import FakeSecretSource
from tests.support.edge import HOST, OPERATOR, EdgeServer, serve_edge
from tests.support.parts import need_part
from tests.support.waiting import HANG

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def ca(tmp_path: Path) -> AsyncIterator[StepCa]:
    async with StepCa(tmp_path / "step-ca", part=need_part("step-ca")) as running:
        yield running


def of(ca: StepCa, **changes: Any) -> IdentityCa:
    """The CA as the broker's configuration has it."""
    facts: dict[str, Any] = {
        "url": ca.url,
        "root_fingerprint": ca.authority.fingerprint,
        "provisioner": PROVISIONER,
        "key_secret": "key",
        "max_lifetime": timedelta(minutes=5),
    }
    return IdentityCa(**{**facts, **changes})


async def token_of(edge: EdgeServer, *, shift: timedelta = timedelta()) -> str:
    """A token that the broker makes, by a clock that is `shift` from the CA's."""
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        edge.clock.shift = shift
        stub: Any = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
        answer = await stub.CreateBootstrapToken(pb.CreateBootstrapTokenRequest(identity=HOST), timeout=HANG)
        return str(answer.token)


async def sign(ca: StepCa, token: str, *names: str) -> HttpAnswer:
    """What the CA says to a CSR for these names, with the token."""
    request = certificate_request(ec.generate_private_key(ec.SECP256R1()), names[0], names)
    return await ca.post("/1.0/sign", {"csr": request.public_bytes(Encoding.PEM).decode(), "ott": token})


def jwk(ca: StepCa) -> str:
    return json.dumps(ca.provisioner_keys[PROVISIONER].private_jwk)


def pem(ca: StepCa) -> str:
    key = ca.provisioner_keys[PROVISIONER].key
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.mark.parametrize("key", [pytest.param(jwk, id="jwk"), pytest.param(pem, id="pem")])
async def test_the_ca_takes_a_token_once(ca: StepCa, key: Callable[[StepCa], str]) -> None:
    """The identity is for the policy's name, by the provisioner that the broker accepts; a second use is refused."""
    async with serve_edge(identity_ca=of(ca), secrets=FakeSecretSource({"key": key(ca)})) as edge:
        token = await token_of(edge)
    answer = await sign(ca, token, HOST)
    assert answer.status == 201, answer.body
    leaf = x509.load_pem_x509_certificate(answer.json()["crt"].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [HOST]
    mark = leaf.extensions.get_extension_for_oid(PROVISIONER_OID).value
    key_id = ca.provisioner_keys[PROVISIONER].key_id
    assert mark.public_bytes() == provisioner_extension(1, PROVISIONER, key_id).public_bytes()
    again = await sign(ca, token, HOST)
    assert again.status == 401, again.body


@pytest.mark.parametrize(
    ("names", "shift", "changes"),
    [
        pytest.param(("web2.example",), timedelta(), {}, id="for-another-name"),
        pytest.param((HOST, "web2.example"), timedelta(), {}, id="for-one-name-more"),
        pytest.param((HOST,), timedelta(minutes=-7), {}, id="expired"),
        pytest.param((HOST,), timedelta(minutes=5), {}, id="not-valid-yet"),
        pytest.param((HOST,), timedelta(), {"url": "https://ca.elsewhere.example"}, id="for-another-ca"),
        pytest.param((HOST,), timedelta(), {"provisioner": "nobody"}, id="of-another-provisioner"),
    ],
)
async def test_what_the_ca_refuses(
    ca: StepCa, names: tuple[str, ...], shift: timedelta, changes: dict[str, Any]
) -> None:
    """A token for another name or CA, one that has ended or hasn't begun, one of no provisioner: no identity."""
    async with serve_edge(identity_ca=of(ca, **changes), secrets=FakeSecretSource({"key": jwk(ca)})) as edge:
        token = await token_of(edge, shift=shift)
    answer = await sign(ca, token, *names)
    assert answer.status in (401, 403), answer.body


async def test_a_key_of_somebody_else(ca: StepCa) -> None:
    """A secret that isn't the provisioner's key makes tokens that the CA knows nothing of."""
    other = ec.generate_private_key(ec.SECP256R1())
    text = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    async with serve_edge(identity_ca=of(ca), secrets=FakeSecretSource({"key": text})) as edge:
        token = await token_of(edge)
    assert (await sign(ca, token, HOST)).status == 401


async def test_a_key_that_step_makes(tmp_path: Path) -> None:
    """`step crypto jwk create`, as docs/configuration.md has it, writes a secret that the broker signs with."""
    kind = ("--kty", "EC", "--crv", "P-256", "--use", "sig")
    process = await asyncio.create_subprocess_exec(
        need_part("step").path,
        *("crypto", "jwk", "create", "pub", "key", *kind, "--no-password", "--insecure", "--force"),
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "STEPPATH": str(tmp_path / "step"), "PATH": "/usr/bin:/bin"},
        stdin=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    key = ProvisionerKey((tmp_path / "key").read_text())
    assert key.key_id == json.loads((tmp_path / "pub").read_text())["kid"]


def typed(script: str, folder: Path, **options: Any) -> str:
    """What a shell prints whose `step` is the real one; it must end well."""
    programs = folder / "bin"
    if not programs.exists():
        programs.mkdir()
        (programs / "step").symlink_to(need_part("step").path)
    environment = {"HOME": str(folder), "STEPPATH": str(folder / "step"), "PATH": f"{programs}:/usr/bin:/bin"}
    done = subprocess.run(
        ["/bin/sh", "-euc", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def made(folder: Path, port: int) -> None:
    """A CA as docs/setup.md makes it, and the provisioner for the broker as docs/configuration.md does."""
    password = folder / "password"
    password.write_text("s3cret")
    typed(
        f"step ca init --deployment-type standalone --name Test --dns 127.0.0.1 --address 127.0.0.1:{port} "
        f"--provisioner admin --password-file {password} --provisioner-password-file {password}",
        folder,
    )
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(.*?)```", text.partition("### One-time tokens")[2].partition("\n## ")[0], re.DOTALL)
    block = re.sub(r"systemctl restart step-ca.service\n", "", block)
    typed(block.replace("/etc/step-ca", str(folder / "step")).replace("/root/", f"{folder}/"), folder)


def decrypted(folder: Path) -> str:
    """The key of step-ca's own provisioner, by the command that the documents and the broker's remedy name."""
    provisioners = json.loads((folder / "step" / "config" / "ca.json").read_text())["authority"]["provisioners"]
    (encrypted,) = (each["encryptedKey"] for each in provisioners if each["name"] == "admin")
    with pytest.raises(ProvisionerKeyError, match="step crypto jwe decrypt"):
        ProvisionerKey(encrypted)
    return typed(f"step crypto jwe decrypt --password-file {folder / 'password'}", folder, input=encrypted)


def revoked(folder: Path, serial_number: str, ca: str) -> None:
    """`step ca revoke`, as `host replace` shows it, keeps the old machine from renewing its identity."""
    lines = at_the_ca_lines(pb.DenyIdentityResponse(active_serial_number=serial_number))
    (line,) = (line for line in lines if line.startswith("  step ca revoke "))
    serial = line.split()[-1]  # a person is asked for the provisioner, and its password; a test has a token of it
    password = f"--provisioner admin --provisioner-password-file {folder / 'password'}"
    typed(f"{line.strip()} --token $(step ca token --revoke {password} {ca} {serial}) {ca}", folder)
    with pytest.raises(AssertionError, match="lacked necessary authorization"):
        typed(f"step ca renew admin.crt admin.key --force {ca}", folder)


async def test_a_provisioner_made_by_the_documents_commands(tmp_path: Path) -> None:
    """A real CA takes the tokens of the broker's own provisioner, and those of its first one's decrypted key."""
    part = need_part("step-ca")

    async def start(port: int) -> tuple[ServerProcess, int]:
        shutil.rmtree(tmp_path / "step", ignore_errors=True)
        await asyncio.to_thread(made, tmp_path, port)
        process = ServerProcess(
            "step-ca",
            [part.path, tmp_path / "step" / "config" / "ca.json", "--password-file", tmp_path / "password"],
            log=tmp_path / "step-ca.log",
            environment={"HOME": str(tmp_path), "STEPPATH": str(tmp_path / "step")},
        )
        await process.start(lambda: accepts_tcp("127.0.0.1", port))
        return process, port

    process, port = await start_on_free_port(start)
    try:
        root = tmp_path / "step" / "certs" / "root_ca.crt"
        certificate = x509.load_pem_x509_certificate(root.read_bytes())
        for provisioner, key in (
            ("certplane-broker", (tmp_path / "certplane.key").read_text()),
            ("admin", await asyncio.to_thread(decrypted, tmp_path)),
        ):
            ca = IdentityCa(
                f"https://127.0.0.1:{port}",
                certificate.fingerprint(hashes.SHA256()).hex(),
                provisioner,
                "key",
                timedelta(minutes=5),
            )
            async with serve_edge(identity_ca=ca, secrets=FakeSecretSource({"key": key})) as edge:
                token = await token_of(edge)
            command = f"step ca certificate {HOST} {provisioner}.crt {provisioner}.key --token {token} --force"
            await asyncio.to_thread(typed, f"{command} --ca-url {ca.url} --root {root}", tmp_path)
            leaf = x509.load_pem_x509_certificate((tmp_path / f"{provisioner}.crt").read_bytes())
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.DNSName) == [HOST]
        await asyncio.to_thread(revoked, tmp_path, f"{leaf.serial_number:x}", f"--ca-url {ca.url} --root {root}")
    finally:
        await process.stop()
