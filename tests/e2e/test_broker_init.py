"""`certplane-broker init` as a program, against a real step-ca and a real ACME CA: from nothing to a broker that serves."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
import yaml
from cryptography import x509

from certplane.sandbox.deployment import Deployment, DeploymentOptions, Finished
from certplane.sandbox.loopback import LOOPBACK, free_port
from certplane.sandbox.process import ServerProcess, accepts_tcp
from certplane.sandbox.step_ca import StepCa
from certplane.sandbox.tokens import ProvisionerKey
from tests.support.init_host import InitHost
from tests.support.parts import need_part
from tests.support.waiting import no_hang

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

NAME = "localhost"
KILLED = -9
HOST = "web1.certplane.test"
POLICY = f"""\
version: 1
profiles:
  web: {{type: multi_san, dns_names: [www.certplane.test]}}
hosts:
  web1: {{identity: {HOST}, profiles: [web]}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    """The servers around a broker; the deployment's own one isn't started."""
    need_part("step-ca")
    need_part("pebble")
    options = DeploymentOptions(policy={"version": 1, "profiles": {}, "hosts": {}})
    async with Deployment(tmp_path_factory.mktemp("broker-init"), options) as deployment:
        assert isinstance(deployment.identity_ca, StepCa)
        yield deployment


class NewBroker:
    """A machine with nothing on it; `arguments` are those of a person who has all at hand."""

    def __init__(self, world: Deployment, folder: Path, secret: Path) -> None:
        self.world = world
        self.folder = folder
        self.config = folder / "etc" / "broker.yml"
        self.state = folder / "var" / "certplane"
        self.own = folder / "etc" / "broker"
        self.secret = secret
        self.port = free_port()
        self.user = "root" if os.geteuid() == 0 else ""
        secret.write_text(world.dns.endpoint.key.secret)
        secret.chmod(0o600)

    @property
    def arguments(self) -> list[str]:
        ca, dns = self.world.identity_ca, self.world.dns.endpoint
        return [
            *("-c", str(self.config), "--state-dir", str(self.state), "--name", NAME),
            *("--address", f"{LOOPBACK}:{self.port}"),
            *("--ca-url", ca.url, "--ca-fingerprint", ca.authority.fingerprint),
            *("--directory-url", self.world.pebble.directory_url, "--email", "operator@certplane.test"),
            *("--acme-ca", str(self.world.pebble.https_roots_file)),
            *("--dns-provider", "rfc2136", "--dns", f"server={dns.host_port}", "--dns", f"tsig_name={dns.key.name}"),
            *("--dns-secret", str(self.secret), "--operator", "alice.ops.certplane.test"),
            *(["--user", self.user] if self.user else []),
        ]

    def mint(self, name: str = NAME) -> str:
        return self.world.identity_ca.mint_token(name)

    async def init(
        self, *more: str, token: str | None = None, arguments: list[str] | None = None, **environment: str
    ) -> Finished:
        given = [*(self.arguments if arguments is None else arguments), *more]
        if token is not None:
            given += ["--token", "-"]
        return await self.run("init", *given, told=token, environment=environment)

    async def run(self, *arguments: str, told: str | None = None, environment: Mapping[str, str] = {}) -> Finished:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "certplane.broker", *arguments),
            env={**kept, "LANG": "C.UTF-8", **environment},
            stdin=subprocess.DEVNULL if told is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        async with no_hang():
            out, errors = await process.communicate(None if told is None else f"{told}\n".encode())
        assert process.returncode is not None
        return Finished(process.returncode, out.decode(), errors.decode())

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.own / "server.crt").read_bytes())

    def snapshot(self) -> dict[str, tuple[int, int, int, str]]:
        found = {}
        for path in sorted(self.folder.rglob("*")):
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            changed = status.st_mtime_ns if path.is_file() else 0
            found[str(path.relative_to(self.folder))] = (status.st_uid, status.st_mode, changed, content)
        return found


@pytest.fixture
def broker(world: Deployment, tmp_path: Path) -> NewBroker:
    """Nothing but the secret of the DNS."""
    folder = tmp_path / "machine"
    folder.mkdir()
    return NewBroker(world, folder, tmp_path / "secret")


async def test_one_line_sets_a_broker_up_that_serves_a_host_set_up_by_one_line(
    broker: NewBroker, world: Deployment, tmp_path: Path
) -> None:
    """From two empty machines and a step-ca to a certificate on the host: init, policy.yml, serve; init, run."""
    done = await broker.init(token=broker.mint())
    assert done.status == 0, done.stderr
    assert "checked: a start would get as far as its port" in done.stdout
    check = await broker.run("-c", str(broker.config), "check")
    assert check.status == 0, check.stderr
    policy = broker.config.with_name("policy.yml")
    assert "alice: {identity: alice.ops.certplane.test, roles: [admin]}" in policy.read_text()
    policy.write_text(POLICY)
    settings = yaml.safe_load(broker.config.read_text())
    settings["issuer"]["acme"]["propagation"] = {"nameservers": [world.dns.endpoint.host_port], "interval": "100ms"}
    broker.config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-P", "-m", "certplane.broker", "-c", broker.config, "serve"]
    serving = ServerProcess("certplane-broker", command, tmp_path / "broker.log", environment={})
    await serving.start(lambda: accepts_tcp(LOOPBACK, broker.port))
    try:
        folder = tmp_path / "host"
        folder.mkdir()
        host = InitHost(world, folder, HOST)
        host.user = broker.user
        ca = world.identity_ca
        line = [
            *("-c", str(host.config), "--state-dir", str(host.state), "--name", HOST, "--profile", "web"),
            *("--ca-url", ca.url, "--ca-fingerprint", ca.authority.fingerprint),
            *("--broker", f"https://localhost:{broker.port}", *(["--user", host.user] if host.user else [])),
        ]
        enrolled = await host.init(arguments=line, token=host.mint())
        assert enrolled.status == 0, enrolled.stderr
        once = await host.run("-c", str(host.config), "run", "--once")
        assert once.status == 0, f"{once.stderr}\n{serving.log_tail()}"
        assert "BEGIN CERTIFICATE" in (host.tls / "web.pem").read_text()
    finally:
        await serving.stop()


async def test_a_second_run_changes_nothing_and_says_so(broker: NewBroker) -> None:
    """The same line, without a token and with one: nothing is touched, also not a policy that was written meanwhile."""
    assert (await broker.init(token=broker.mint())).status == 0
    broker.config.with_name("policy.yml").write_text(POLICY)
    before = broker.snapshot()
    again = await broker.init()
    assert again.status == 0, again.stderr
    assert "nothing to do: this broker is set up as localhost" in again.stdout
    assert (await broker.init(token=broker.mint())).status == 0
    assert broker.snapshot() == before


async def test_a_dry_run_shows_all_and_makes_nothing(broker: NewBroker) -> None:
    """The files' texts but no secret, the certificate that would be got; the same token serves the run after it."""
    token = broker.mint()
    shown = await broker.init("--dry-run", token=token)
    assert shown.status == 0, shown.stderr
    assert f"would make {broker.config} (mode 0640" in shown.stdout
    assert "would get a certificate for localhost" in shown.stdout
    assert f'    directory_url: "{broker.world.pebble.directory_url}"' in shown.stdout
    for secret in (token, broker.secret.read_text()):
        assert secret not in shown.stdout + shown.stderr
    assert list(broker.folder.iterdir()) == []
    assert (await broker.init(token=token)).status == 0


async def test_modes_are_those_that_the_broker_needs(broker: NewBroker) -> None:
    """Keys and secrets are their owner's alone, and nothing that says who gets what can be read by others."""
    assert (await broker.init(token=broker.mint())).status == 0
    modes = {
        str(path.relative_to(broker.folder)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in broker.folder.rglob("*")
    }
    assert {key: value for key, value in modes.items() if not key.startswith("var/")} == {
        "etc": "0o755",
        "var": "0o755",
        "etc/broker": "0o700",
        "etc/broker/server.key": "0o600",
        "etc/broker/server.crt": "0o644",
        "etc/secrets": "0o750",  # root's here, and the broker's group may pass
        "etc/secrets/dns-api-token": "0o600",
        "etc/agent-ca.pem": "0o644",
        "etc/acme-ca.pem": "0o644",
        "etc/broker.yml": "0o640",
        "etc/policy.yml": "0o640",
    }
    assert modes["var/certplane"] == "0o711"


async def test_a_provisioner_s_key_lets_the_broker_make_tokens(broker: NewBroker, tmp_path: Path) -> None:
    """The key is among the secrets and in no output, `check` can use it, and the next run needs no file of it."""
    key = tmp_path / "provisioner.key"
    key.write_text(json.dumps(ProvisionerKey.generate().private_jwk))
    key.chmod(0o600)
    done = await broker.init("--provisioner", "hosts", "--provisioner-key", str(key), token=broker.mint())
    assert done.status == 0, done.stderr
    assert key.read_text() not in done.stdout
    secret = broker.config.parent / "secrets" / "bootstrap-key"
    assert (secret.read_text(), stat.S_IMODE(secret.stat().st_mode)) == (key.read_text(), 0o600)
    again = await broker.init("--provisioner", "hosts")
    assert "nothing to do" in again.stdout, again.stderr
    secret.write_text("no key")
    broken = await broker.init("--provisioner", "hosts")
    assert broken.status == 1
    assert "bootstrap.key_secret" in broken.stderr


async def test_a_key_that_could_make_no_token_is_found_before_anything_is_made(
    broker: NewBroker, tmp_path: Path
) -> None:
    """The public half, which lies beside the private one: told by its argument; the token is not spent."""
    key = tmp_path / "provisioner.pub"
    private = ProvisionerKey.generate().private_jwk
    key.write_text(json.dumps({name: value for name, value in private.items() if name != "d"}))
    key.chmod(0o600)
    token = broker.mint()
    refused = await broker.init("--provisioner", "hosts", "--provisioner-key", str(key), token=token)
    assert refused.status == 2
    assert f"--provisioner-key: {key} is a public key" in refused.stderr
    assert list(broker.folder.iterdir()) == []
    assert (await broker.init(token=token)).status == 0


async def test_missing_arguments_are_told_at_once_without_a_terminal(broker: NewBroker) -> None:
    """Status 2, each by its name, nothing made."""
    bare = await broker.init(arguments=["-c", str(broker.config)])
    assert bare.status == 2
    for argument in ("--name", "--ca-url", "--ca-fingerprint", "--directory-url", "--dns-provider", "--operator"):
        assert f"certplane-broker init: {argument}: is required" in bare.stderr
    without_token = await broker.init()
    assert without_token.status == 2
    assert "--token: is required: the broker has no certificate of its own yet" in without_token.stderr
    wrong_key = await broker.init("--dns", "sever=x", token=broker.mint())
    assert wrong_key.status == 2
    assert "issuer.acme.rfc2136.sever: is not a known key" in wrong_key.stderr
    assert list(broker.folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["of-another-host", "expired", "of-another-ca"])
async def test_a_token_of_no_use_is_found_before_anything_is_made(
    broker: NewBroker, world: Deployment, tmp_path: Path, kind: str
) -> None:
    """Nothing is sent and nothing made; the arguments are named, and no setting of an agent's."""
    if kind == "of-another-ca":
        async with StepCa(tmp_path / "another", part=need_part("step-ca")) as other:
            refused = await broker.init(token=other.mint_token(NAME))
        said = "the token is for a CA whose root has the fingerprint"
    elif kind == "expired":
        refused = await broker.init(
            token=world.identity_ca.mint_token(NAME, issued_at=datetime.now(UTC) - timedelta(hours=1))
        )
        said = "the bootstrap token expired at"
    else:
        refused = await broker.init(token=broker.mint("elsewhere.certplane.test"))
        said = "the token is for elsewhere.certplane.test, but this host is localhost"
    assert refused.status == 1
    assert said in refused.stderr
    assert "identity." not in refused.stderr
    assert list(broker.folder.iterdir()) == []


async def test_a_used_token_is_refused_and_a_new_one_goes_on_with_the_same_key(
    broker: NewBroker, world: Deployment
) -> None:
    """step-ca's refusal is told with what to do; the key that was made stays."""
    token = broker.mint()
    other = NewBroker(world, broker.folder / "first", broker.secret)
    other.folder.mkdir()
    assert (await other.init(token=token)).status == 0
    refused = await broker.init(token=token)
    assert refused.status == 1
    assert "the token was used before" in refused.stderr
    key = (broker.own / "server.key").read_bytes()
    assert (await broker.init(token=broker.mint())).status == 0
    assert (broker.own / "server.key").read_bytes() == key


async def test_a_broker_yml_of_somebody_is_never_overwritten_unasked(broker: NewBroker) -> None:
    """The difference is shown, no token is spent; with --replace the old one is kept beside it."""
    broker.config.parent.mkdir()
    broker.config.write_text("server: {}\n")
    broker.config.chmod(0o640)
    token = broker.mint()
    refused = await broker.init(token=token)
    assert refused.status == 1
    assert "broker.yml has another text; nothing was changed" in refused.stderr
    assert "-server: {}" in refused.stdout
    assert not broker.state.exists()
    done = await broker.init("--replace", token=token)
    assert done.status == 0, done.stderr
    assert broker.config.with_name("broker.yml.before-init").read_text() == "server: {}\n"


async def test_a_ca_that_is_away_fails_the_check_and_not_the_files(broker: NewBroker) -> None:
    """`check` says what is wrong, all files are in place, and the line ends well once that is mended."""
    arguments = [each if "/dir" not in each else "https://127.0.0.1:1/dir" for each in broker.arguments]
    failed = await broker.init(token=broker.mint(), arguments=arguments)
    assert failed.status == 1
    assert "issuer.acme.directory_url" in failed.stderr
    assert "the files are in place" in failed.stderr
    offline = await broker.init("--offline", arguments=arguments)
    assert offline.status == 0, offline.stderr


@pytest.mark.parametrize(
    "armed",
    [
        "setup.folder.made=kill@2",
        "init.files=kill",
        "init.key.after=kill",
        "init.certificate.after=kill",
    ],
)
async def test_a_run_that_was_killed_is_finished_by_the_next_one(broker: NewBroker, armed: str) -> None:
    """Killed anywhere but between the CA's answer and the disk, the same line with the same token ends well."""
    token = broker.mint()
    killed = await broker.init(token=token, CERTPLANE_FAILPOINTS=armed)
    assert killed.status == KILLED, killed.stderr
    done = await broker.init(token=token)
    assert done.status == 0, done.stderr
    assert not [path for path in broker.folder.rglob("*") if path.name.endswith(".certplane-new")]


async def test_a_run_that_lost_the_ca_s_answer_wants_a_new_token(broker: NewBroker) -> None:
    """Killed before the certificate was on disk: the key stays, and a new token ends well."""
    token = broker.mint()
    killed = await broker.init(token=token, CERTPLANE_FAILPOINTS="init.signed=kill")
    assert killed.status == KILLED
    key = (broker.own / "server.key").read_bytes()
    assert "the token was used before" in (await broker.init(token=token)).stderr
    assert (await broker.init(token=broker.mint())).status == 0
    assert (broker.own / "server.key").read_bytes() == key


async def test_its_certificate_is_renewed_when_it_is_due(broker: NewBroker) -> None:
    """Not before; then, or when asked to, the next one is for the same key, and fits it."""
    assert (await broker.init(token=broker.mint())).status == 0
    first = broker.leaf
    idle = await broker.run("-c", str(broker.config), "renew-certificate")
    assert idle.status == 0, idle.stderr
    assert "not due" in idle.stdout
    assert broker.leaf == first
    done = await broker.run("-c", str(broker.config), "renew-certificate", "--now")
    assert done.status == 0, done.stderr
    assert broker.leaf.serial_number != first.serial_number
    assert broker.leaf.public_key() == first.public_key()
    assert (await broker.run("-c", str(broker.config), "check")).status == 0


async def test_a_certificate_of_another_name_is_got_anew(broker: NewBroker) -> None:
    """What is there but isn't this broker's certificate is told, and a token gets the right one."""
    assert (await broker.init(token=broker.mint())).status == 0
    renamed = ["127.0.0.1.nip.certplane.test" if each == NAME else each for each in broker.arguments]
    told = await broker.init(arguments=renamed)
    assert told.status == 2
    assert "server.crt can't be used: it is none of 127.0.0.1.nip.certplane.test" in told.stderr


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder of root's that everybody may pass, as / is."""
    folder = Path(tempfile.mkdtemp(prefix="certplane-init-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_root_makes_the_configuration_and_the_broker_s_user_its_certificate(
    world: Deployment, open_folder: Path, tmp_path: Path
) -> None:
    """The broker can't change its configuration, can read it, and owns its certificate, key and state."""
    broker = NewBroker(world, open_folder, tmp_path / "secret")
    broker.user = "nobody"
    account = pwd.getpwnam("nobody")
    done = await broker.init(token=broker.mint())
    assert done.status == 0, done.stderr
    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in broker.config.parent.rglob("*")}
    theirs = (account.pw_uid, account.pw_gid)
    assert owners == {
        "broker": theirs,
        "server.key": theirs,
        "server.crt": theirs,
        "secrets": (0, account.pw_gid),
        "dns-api-token": theirs,
        "agent-ca.pem": (0, 0),
        "acme-ca.pem": (0, 0),
        "broker.yml": (0, account.pw_gid),
        "policy.yml": (0, account.pw_gid),
    }
    assert broker.state.stat().st_uid == account.pw_uid
