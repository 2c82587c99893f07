"""`certplane-agent init` as a program, against a real step-ca and a real broker: from nothing to an agent that runs."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import pytest_asyncio
import yaml
from cryptography import x509

from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.identity_pki import IdentityRules
from certplane.sandbox.step_ca import StepCa
from tests.support.init_host import InitHost
from tests.support.limits import UNLIMITED
from tests.support.parts import need_part
from tests.support.tls_services import Haproxy, Nginx, served_serial
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

HOST = "{}.certplane.test"
NAMES = ["www.certplane.test", "shop.certplane.test"]
KILLED = -9


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    """A broker whose policy gives two profiles to each of the hosts, and one to nobody."""
    need_part("step-ca")
    need_part("pebble")
    policy = {
        "version": 1,
        "profiles": {
            "web": {"type": "multi_san", "dns_names": NAMES},
            "mail": {"type": "multi_san", "dns_names": ["mx.certplane.test"]},
            "other": {"type": "multi_san", "dns_names": ["other.certplane.test"]},
        },
        "hosts": {
            f"host{number}": {"identity": HOST.format(f"host{number}"), "profiles": ["web", "mail"]}
            for number in range(40)
        },
    }
    async with Deployment(
        tmp_path_factory.mktemp("init"), DeploymentOptions(policy=policy, broker={"rate_limits": UNLIMITED})
    ) as deployment:
        assert isinstance(deployment.identity_ca, StepCa)
        await deployment.start_broker()
        yield deployment


_NUMBERS = iter(range(40))


@pytest.fixture
def host(deployment: Deployment, tmp_path: Path) -> InitHost:
    """A host of its own, with its two upper folders and nothing in them."""
    folder = tmp_path / "host"
    folder.mkdir()
    host = InitHost(deployment, folder, HOST.format(f"host{next(_NUMBERS)}"))
    if os.geteuid() == 0:
        host.user = "root"
    return host


async def test_one_line_sets_a_host_up_and_check_agrees(host: InitHost) -> None:
    """Folders, root, identity and agent.yml with the names of policy; the agent runs with it; `check` has no objection."""
    done = await host.init("--profile", "web", token=host.mint())
    assert done.status == 0, done.stderr
    (certificate,) = host.settings["certificates"]
    assert certificate["dns_names"] == sorted(NAMES)
    assert certificate["key"] == str(host.tls / "web.key")
    assert done.stdout.splitlines()[-1] == f"next: certplane-agent -c {host.config} run"
    check = await host.run("-c", str(host.config), "check")
    assert check.status == 0, check.stdout
    assert "profile web is this host's" in check.stdout
    once = await host.run("-c", str(host.config), "run", "--once")
    assert once.status == 0, once.stderr
    assert "BEGIN CERTIFICATE" in (host.tls / "web.pem").read_text()


async def test_a_second_run_changes_nothing_and_says_so(host: InitHost) -> None:
    """The same line again, without a token: nothing is touched; with another token that isn't used: the same."""
    assert (await host.init("--profile", "web", token=host.mint())).status == 0
    before = host.snapshot()
    again = await host.init("--profile", "web")
    assert again.status == 0, again.stderr
    assert "nothing to do" in again.stdout
    assert f"kept {host.config}" in again.stdout
    assert "made" not in again.stdout
    with_token = await host.init("--profile", "web", token=host.mint())
    assert with_token.status == 0, with_token.stderr
    assert host.snapshot() == before


async def test_a_dry_run_shows_all_and_makes_nothing(host: InitHost) -> None:
    """It spends no token, shows each file and folder, and the same token serves the run after it."""
    token = host.mint()
    shown = await host.init("--profile", "web", "--service", "nginx", "--dry-run", token=token)
    assert shown.status == 0, shown.stderr
    assert f"would make {host.config} (mode 0644)" in shown.stdout
    assert f"would enroll as {host.name}" in shown.stdout
    assert "    reload_command: systemctl reload nginx.service" in shown.stdout
    assert token not in shown.stdout + shown.stderr
    assert list(host.folder.iterdir()) == []
    done = await host.init("--profile", "web", "--service", "nginx", token=token)
    assert done.status == 0, done.stderr
    after = await host.init("--profile", "web", "--service", "nginx", "--dry-run")
    assert f"would keep {host.config}" in after.stdout
    assert "would make" not in after.stdout


async def test_without_profiles_all_that_policy_gives_is_written(host: InitHost) -> None:
    """Each profile of this host gets its entry, with its own names."""
    assert (await host.init(token=host.mint())).status == 0
    entries = {entry["profile"]: entry["dns_names"] for entry in host.settings["certificates"]}
    assert entries == {"web": sorted(NAMES), "mail": ["mx.certplane.test"]}


async def test_a_profile_that_policy_withholds_is_told_and_costs_no_second_token(host: InitHost) -> None:
    """The host is enrolled, agent.yml isn't written, and the corrected line needs no token."""
    refused = await host.init("--profile", "other", token=host.mint())
    assert refused.status == 1
    assert f"doesn't give the profile other to {host.name}; it has: mail, web" in refused.stderr
    assert not host.config.exists()
    assert (await host.init("--profile", "mail")).status == 0


async def test_a_host_that_the_policy_lacks_is_told_what_adds_it(deployment: Deployment, host: InitHost) -> None:
    """It is enrolled by then, and needs no second token."""
    stranger = InitHost(deployment, host.folder, "stranger.certplane.test")
    stranger.user = host.user
    refused = await stranger.init("--profile", "web", token=stranger.mint())
    assert refused.status == 1
    assert "the broker's policy has no such host" in refused.stderr
    assert "`certplanectl host add stranger.certplane.test --profile PROFILE`" in refused.stderr
    assert "it needs no new token" in refused.stderr
    assert not stranger.config.exists()


async def test_missing_arguments_are_told_at_once_without_a_terminal(host: InitHost) -> None:
    """Nothing is asked where nobody can answer: all that is missing is named, status 2, nothing made."""
    bare = await host.init(arguments=["-c", str(host.config)])
    assert bare.status == 2
    for argument in ("--name", "--ca-url", "--ca-fingerprint", "--broker"):
        assert f"certplane-agent init: {argument}: is required" in bare.stderr
    without_token = await host.init("--profile", "web")
    assert without_token.status == 2
    assert f"step ca token {host.name}" in without_token.stderr
    assert list(host.folder.iterdir()) == []


def another_token(host: InitHost) -> str:
    return host.mint("elsewhere.certplane.test")


def expired_token(host: InitHost) -> str:
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    return host.deployment.identity_ca.mint_token(host.name, issued_at=an_hour_ago)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(
            another_token, "the token is for elsewhere.certplane.test, but this host is", id="of-another-host"
        ),
        pytest.param(expired_token, "the bootstrap token expired at", id="expired"),
        pytest.param(lambda _: "not-a-token", "is not a step-ca token", id="no-token"),
        pytest.param(lambda _: "", "--token: is empty", id="empty"),
    ],
)
async def test_a_token_of_no_use_is_found_before_anything_is_made(
    host: InitHost, make: Callable[[InitHost], str], said: str
) -> None:
    """Another host's, an expired one, no token at all: told with a remedy, nothing sent, nothing made."""
    refused = await host.init("--profile", "web", token=make(host))
    assert refused.status in {1, 2}
    assert said in refused.stderr
    assert "identity.name" not in refused.stderr  # there is no agent.yml that would have it
    assert list(host.folder.iterdir()) == []


async def test_a_token_of_another_ca_is_found_before_anything_is_made(host: InitHost, tmp_path: Path) -> None:
    """A token whose CA has another root than the pinned one isn't sent to it."""
    async with StepCa(tmp_path / "another", part=need_part("step-ca")) as other:
        refused = await host.init("--profile", "web", token=other.mint_token(host.name))
    assert refused.status == 1
    assert f"the token is for a CA whose root has the fingerprint {other.authority.fingerprint}" in refused.stderr
    assert list(host.folder.iterdir()) == []


async def test_a_used_token_is_the_ca_s_to_refuse_and_a_new_one_goes_on(host: InitHost) -> None:
    """step-ca's refusal is told with what to do; the folders stay, and the same line with a new token ends well."""
    token = host.mint()
    await host.deployment.identity_ca.issue(host.name)  # the CA works
    assert (await host.init("--profile", "web", token=token)).status == 0
    other = InitHost(host.deployment, host.folder / "second", host.name)
    other.folder.mkdir()
    other.user = host.user
    refused = await other.init("--profile", "web", token=token)
    assert refused.status == 1
    assert "the token was used before" in refused.stderr
    assert "run the same command again" in refused.stderr
    assert not other.config.exists()
    assert (await other.init("--profile", "web", token=other.mint())).status == 0


async def test_a_wrong_fingerprint_stops_before_the_token_is_sent(host: InitHost) -> None:
    """A CA without that root is told by the argument's name."""
    arguments = [CertificateAuthority.root("Other").fingerprint if len(each) == 64 else each for each in host.arguments]
    refused = await host.init("--profile", "web", token=host.mint(), arguments=arguments)
    assert refused.status == 1
    assert "check --ca-fingerprint" in refused.stderr
    assert list(host.folder.iterdir()) == []


async def test_a_root_from_a_file_needs_no_fetching(host: InitHost) -> None:
    """`--ca-bundle` in place of the fingerprint: the file's text is the host's internal-ca.pem."""
    roots = host.deployment.identity_ca.roots_file
    at = host.arguments.index("--ca-fingerprint")
    arguments = [*host.arguments[:at], "--ca-bundle", str(roots), *host.arguments[at + 2 :]]
    done = await host.init("--profile", "web", token=host.mint(), arguments=arguments)
    assert done.status == 0, done.stderr
    assert (host.folder / "etc" / "internal-ca.pem").read_text() == roots.read_text()


async def test_an_agent_yml_of_somebody_is_never_overwritten_unasked(host: InitHost) -> None:
    """The difference is shown, no token is spent; with --replace the old file stays beside the new one."""
    host.config.parent.mkdir()
    host.config.write_text("identity: {name: old.example.net}\n")
    host.config.chmod(0o644)
    token = host.mint()
    refused = await host.init("--profile", "web", token=token)
    assert refused.status == 1
    assert "agent.yml has another text; nothing was changed" in refused.stderr
    assert "-identity: {name: old.example.net}" in refused.stdout
    assert host.config.read_text() == "identity: {name: old.example.net}\n"
    assert not host.state.exists()
    shown = await host.init("--profile", "web", "--dry-run", token=token)
    assert shown.status == 1
    assert f"would stop: {host.config} has another text" in shown.stdout
    done = await host.init("--profile", "web", "--replace", token=token)
    assert done.status == 0, done.stderr
    assert (host.config.parent / "agent.yml.before-init").read_text() == "identity: {name: old.example.net}\n"
    assert host.settings["identity"]["name"] == host.name
    assert f"next, where the agent runs already: certplane-agent -c {host.config} reload" in done.stdout


async def test_another_host_s_state_is_never_taken(host: InitHost) -> None:
    """A state directory with another identity stops it, whatever the token says."""
    assert (await host.init("--profile", "web", token=host.mint())).status == 0
    host.config.unlink()
    renamed = [HOST.format("host39") if each == host.name else each for each in host.arguments]
    refused = await host.init("--profile", "web", arguments=renamed, token=host.mint(HOST.format("host39")))
    assert refused.status == 1
    assert f"has the identity {host.name} already" in refused.stderr


async def test_a_broker_that_is_away_costs_no_token(host: InitHost) -> None:
    """The identity is in place, and the same line without a token ends well once the broker is back."""
    away = [
        each.replace(str(host.deployment.broker_port), "1") if "localhost" in each else each for each in host.arguments
    ]
    refused = await host.init("--profile", "web", token=host.mint(), arguments=away)
    assert refused.status == 1
    assert f"this host is enrolled as {host.name}, but the broker doesn't say what it may have" in refused.stderr
    done = await host.init("--profile", "web")
    assert done.status == 0, done.stderr


async def test_a_token_s_file_is_removed_once_it_is_used(host: InitHost, tmp_path: Path) -> None:
    """The file is gone after an enrollment, stays where the token wasn't used, and must be closed to others."""
    token = tmp_path / "token"
    token.write_text(host.mint())
    token.chmod(0o644)
    open_to_all = await host.init("--profile", "web", "--token", str(token))
    assert open_to_all.status == 2
    assert "can be accessed by others" in open_to_all.stderr
    token.chmod(0o600)
    done = await host.init("--profile", "web", "--token", str(token))
    assert done.status == 0, done.stderr
    assert not token.exists()
    token.write_text(host.mint())
    token.chmod(0o600)
    again = await host.init("--profile", "web", "--token", str(token))
    assert again.status == 0
    assert token.exists()


FREE_POINTS = (
    "setup.folder.before",
    "setup.folder.made@2",
    "setup.file.before",
    "setup.file.after",
    "init.folders",
    "enroll.key.after",
    "enroll.stage.after",
    "init.enrolled",
    "init.granted",
    "init.asked",
    "setup.file.before@3",
)
"""Where the token isn't spent, or the identity is on disk."""


@pytest.mark.parametrize("point", FREE_POINTS)
async def test_a_run_that_was_killed_is_finished_by_the_next_one(host: InitHost, point: str) -> None:
    """Killed anywhere but between the CA's answer and the disk, the same line with the same token ends well."""
    name, _, number = point.partition("@")
    token = host.mint()
    armed = f"{name}=kill{f'@{number}' if number else ''}"
    killed = await host.init("--profile", "web", token=token, CERTPLANE_FAILPOINTS=armed)
    assert killed.status == KILLED, killed.stderr
    done = await host.init("--profile", "web", token=token)
    assert done.status == 0, done.stderr
    check = await host.run("-c", str(host.config), "check")
    assert check.status == 0, check.stdout
    assert not [path for path in host.folder.rglob("*") if path.name.endswith(".certplane-new")]


async def test_a_run_that_lost_the_ca_s_answer_wants_a_new_token_and_keeps_the_key(host: InitHost) -> None:
    """Killed before the answer was on disk: the used token is refused with a remedy, a new one ends well."""
    token = host.mint()
    killed = await host.init("--profile", "web", token=token, CERTPLANE_FAILPOINTS="enroll.request.after=kill")
    assert killed.status == KILLED
    assert "the token was used before" in (await host.init("--profile", "web", token=token)).stderr
    assert (await host.init("--profile", "web", token=host.mint())).status == 0


async def test_an_identity_that_has_ended_is_got_anew_with_a_token(tmp_path: Path) -> None:
    """Without a token it is told since when; with one the host is enrolled again, in the place of the old identity."""
    need_part("step-ca")
    rules = IdentityRules(lifetime=timedelta(seconds=3))
    async with StepCa(tmp_path / "ca", rules, part=need_part("step-ca")) as ca:
        world = SimpleNamespace(identity_ca=ca, broker_port=1, broker_folder=ca.roots_file.parent)
        folder = tmp_path / "host"
        folder.mkdir()
        host = InitHost(cast("Deployment", world), folder, HOST.format("short"))
        host.user = "root" if os.geteuid() == 0 else ""
        at = host.arguments.index("--broker-ca")
        arguments = [*host.arguments[:at], *host.arguments[at + 2 :], "--profile", "web"]
        assert "this host is enrolled as" in (await host.init(arguments=arguments, token=host.mint())).stderr
        leaf = x509.load_pem_x509_certificate((host.state / "identity" / "versions" / "1" / "cert.pem").read_bytes())
        await until(lambda: datetime.now(UTC) > leaf.not_valid_after_utc, what="the end of the identity")
        told = await host.init(arguments=arguments)
        assert told.status == 2
        assert "--token: is required: this host's identity ended at" in told.stderr
        again = await host.init(arguments=arguments, token=host.mint())
        assert "enrolled as" in again.stderr
        assert (host.state / "identity" / "versions" / "2").exists()


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
async def test_what_a_preset_writes_is_what_the_service_reads(host: InitHost, kind: str) -> None:
    """A real nginx, a real HAProxy: the outputs serve, a renewal is reloaded, and the look at the service finds it."""
    part = need_part(kind)
    assert (await host.init("--profile", "web", "--service", kind, token=host.mint())).status == 0
    written = host.config.read_text()
    host.config.write_text(written.replace(f"systemctl reload {kind}.service", "true"))
    (certificate,) = host.settings["certificates"]
    verify = certificate.pop("verify")
    host.config.write_text(
        yaml.safe_dump({**host.settings, "certificates": [{**certificate, "reload_command": "true"}]})
    )
    once = await host.run("-c", str(host.config), "run", "--once")
    assert once.status == 0, once.stderr
    service = {"nginx": Nginx, "haproxy": Haproxy}[kind](part, host.folder / kind, host.tls)
    await service.start()
    try:
        before = await served_serial(service.port)
        certificate |= {"reload_command": service.reload_command}
        certificate["verify"] = {**verify, "connect": f"127.0.0.1:{service.port}"}
        host.config.write_text(yaml.safe_dump({**host.settings, "certificates": [certificate]}))
        renewed = await host.run("-c", str(host.config), "renew", "web")
        assert renewed.status == 0, renewed.stderr

        async def another() -> bool:
            return await served_serial(service.port) != before

        await until(another, what="the renewed one")  # nginx's old workers take a connection or two after a reload
        status = await host.run("-c", str(host.config), "status", "--json")
        assert "SERVING" in status.stdout or "serving" in status.stdout
    finally:
        await service.stop()


async def test_a_terminal_is_asked_for_what_is_missing_and_shows_no_token(host: InitHost) -> None:
    """Each question in turn, a wrong answer asked again; the token isn't echoed."""
    arguments = host.arguments
    for argument in ("--name", "--ca-url", "--ca-fingerprint"):
        at = arguments.index(argument)
        del arguments[at : at + 2]
    ca, token = host.deployment.identity_ca, host.mint()
    async with host.in_terminal("init", *arguments, "--profile", "web") as screen:
        await screen.writes("This host's name in policy.yml")
        screen.press("not a name\r")
        await screen.writes("an identity is a DNS name or a URI")
        screen.press(f"{host.name}\r")
        await screen.writes("The internal CA's URL, https://:")
        screen.press(f"{ca.url}\r")
        await screen.writes("The fingerprint of its root")
        screen.press(f"{ca.authority.fingerprint}\r")
        await screen.writes(f"A one-time token for {host.name}")
        screen.press(f"{token}\r")
        await screen.ends(0)
    assert token not in screen.text
    assert host.settings["identity"]["name"] == host.name


async def test_ctrl_d_at_a_question_ends_it_with_nothing_made(host: InitHost) -> None:
    """Whoever doesn't want to go on is let go."""
    async with host.in_terminal("init", "-c", str(host.config)) as screen:
        await screen.writes("This host's name in policy.yml")
        screen.press("\x04")
        await screen.ends(130)
    assert list(host.folder.iterdir()) == []


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder of root's that everybody may pass, as /etc is."""
    folder = Path(tempfile.mkdtemp(prefix="certplane-init-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_root_makes_the_folders_and_the_agent_s_user_the_identity(
    deployment: Deployment, open_folder: Path
) -> None:
    """Configuration is root's, the state and the certificates' folder the user's, and `check` agrees as that user."""
    host = InitHost(deployment, open_folder, HOST.format(f"host{next(_NUMBERS)}"))
    host.user = "nobody"
    uid = pwd.getpwnam("nobody").pw_uid
    done = await host.init("--profile", "web", token=host.mint())
    assert done.status == 0, done.stderr
    assert {path.name: path.stat().st_uid for path in host.config.parent.iterdir()} == {
        "agent.yml": 0,
        "internal-ca.pem": 0,
        "broker-ca.pem": 0,
        "tls": uid,
    }
    assert {path.lstat().st_uid for path in (host.state, *host.state.rglob("*"))} == {uid}
    assert stat.S_IMODE(host.config.stat().st_mode) == 0o644
    check = await host.run("-c", str(host.config), "check")
    assert check.status == 0, check.stdout
    assert "runs as user nobody" in check.stdout
    again = await host.init("--profile", "web")
    assert "nothing to do" in again.stdout, again.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests are this one then")
async def test_a_plain_user_sets_an_agent_of_its_own_up(deployment: Deployment, open_folder: Path) -> None:
    """Nobody but root needs to be root: all of it is that user's, in its own folders, and another user is refused."""
    account = pwd.getpwnam("nobody")
    os.chown(open_folder, account.pw_uid, account.pw_gid)
    host = InitHost(deployment, open_folder, HOST.format(f"host{next(_NUMBERS)}"))
    host.acts_as = account.pw_uid
    root = open_folder.with_suffix(".pem")
    shutil.copy(deployment.broker_folder / "root.crt", root)
    root.chmod(0o644)
    try:
        arguments = [str(root) if each.endswith("root.crt") else each for each in host.arguments]
        done = await host.init("--profile", "web", arguments=arguments, token=host.mint())
        assert done.status == 0, done.stderr
        assert {path.lstat().st_uid for path in host.folder.rglob("*")} == {account.pw_uid}
        refused = await host.init("--profile", "web", "--user", "root", arguments=arguments)
        assert "only root sets up a program of user root" in refused.stderr
    finally:
        root.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="somebody else's user is root's business alone")
async def test_an_unknown_user_is_told_before_anything_is_made(host: InitHost) -> None:
    """Without the user that the package makes, the remedy says what makes it."""
    host.user = "nobody-like-this"
    refused = await host.init("--profile", "web", token=host.mint())
    assert refused.status == 1
    assert "there is no user nobody-like-this; install the package" in refused.stderr
    assert list(host.folder.iterdir()) == []
