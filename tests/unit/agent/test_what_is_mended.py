"""What was mended is tried at once, and nobody is stuck behind a limit of ours: on a real disk, with a broker in memory."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.agent import cli
from certplane.agent.control import ask
from certplane.agent.directives import HostDirectives
from certplane.agent.model import DirectedRenewal, LineageStatus
from certplane.agent.renewal.status import is_well
from certplane.agent.settings import load_settings
from certplane.errors import OperationError, Reason, RefusalError
from certplane.fleet_report.model import RenewalCause
from tests.support.agent_world import AgentWorld
from tests.support.waiting import HANG, until

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AgentWorld]:
    made = AgentWorld(tmp_path, [{"name": "web"}])
    yield made
    made.close()


def limited(after: timedelta = DAY, reason: Reason = Reason.RATE_LIMITED) -> RefusalError:
    return RefusalError(reason, "too many orders were asked for", retry_after=after)


CHANGES: dict[str, dict[str, Any]] = {
    "names": {"dns_names": ["other.example"]},
    "profile": {"profile": "api"},
    "kind of key": {"key_type": "ec-p384"},
    "paths": {"key": "/tmp/certplane-test-of-paths/web.key"},
    "hook": {"reload_command": "true"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("reason", [Reason.NAMES_NOT_ALLOWED, Reason.PROFILE_NOT_ALLOWED, Reason.RATE_LIMITED])
async def test_another_agent_yml_is_tried_at_once(
    world: AgentWorld, tmp_path: Path, change: dict[str, Any], reason: Reason
) -> None:
    """The refusal was of a file that is no more: what is asked now has not been refused."""
    change = {name: str(tmp_path / "other.key") if name == "key" else value for name, value in change.items()}
    world.broker.profiles = ("web", "api")
    await world.enroll()
    world.broker.issue_errors = [limited(reason=reason)]
    first = (await world.agent().run_once())["web"]
    assert first.failures == 1
    world.broker.calls.clear()
    again = (await world.agent().run_once())["web"]
    assert "issue" not in world.broker.calls
    assert again.next_attempt_time == first.next_attempt_time
    assert "`certplane-agent renew web` tries now" in "\n".join(world.progress.lines)
    world.configure([{"name": "web", **change}], {})
    assert is_well((await world.agent().run_once())["web"])


SHORT = {
    "a turn": timedelta(milliseconds=50),
    "the bucket": timedelta(seconds=2),
    "half a minute": timedelta(seconds=30),
}


@pytest.mark.parametrize("after", SHORT.values(), ids=SHORT)
async def test_a_wait_for_a_turn_is_no_failure(world: AgentWorld, after: timedelta) -> None:
    """A host with a thousand certificates that are due together asks for more than a broker takes at once."""
    await world.enroll()
    world.broker.issue_errors = [limited(after), limited(after)]
    begun = world.clock.monotonic()
    assert is_well((await run_through(world))["web"])
    assert world.clock.monotonic() - begun >= 2 * after.total_seconds()
    assert "waiting: the broker accepts no more requests at the same time" in "\n".join(world.progress.lines)


async def test_a_wait_for_a_turn_has_an_end(world: AgentWorld) -> None:
    """A broker that never takes a request is a limit like any other: told, and kept with its time."""
    await world.enroll()
    world.broker.issue_errors = [limited(timedelta(seconds=20)) for _ in range(100)]
    status = (await run_through(world))["web"]
    assert (status.failures, status.last_error.partition(":")[0]) == (1, "RATE_LIMITED")
    assert world.broker.issue_errors


async def run_through(world: AgentWorld) -> Mapping[str, LineageStatus]:
    """Run once, with time that passes whenever somebody waits for it."""
    running = asyncio.create_task(world.agent().run_once())
    async with asyncio.timeout(HANG):
        while not running.done():
            world.clock.advance(timedelta(seconds=1 if world.clock.sleepers else 0))
            await asyncio.sleep(0)
    return await running


OBSTACLES = {"at the start": False, "at a renewal": True}


@pytest.mark.parametrize("at_renewal", OBSTACLES.values(), ids=OBSTACLES)
async def test_a_path_that_was_cleared_is_used_at_the_next_run(
    world: AgentWorld, tmp_path: Path, *, at_renewal: bool
) -> None:
    """What stood there isn't in agent.yml, whose change would be seen; a start tries, whatever the back-off is."""
    await world.enroll()
    key = tmp_path / "tls" / "web.key"
    world.configure([{"name": "web", "key": str(key)}], {})
    assert is_well((await world.agent().run_once())["web"])
    key.unlink()
    (key / "inside").mkdir(parents=True)
    if at_renewal:
        await world.agent().by_hand("renew", "web")
    for _ in range(5):  # the waits grow
        status = (await world.agent().run_once())["web"]
    assert "is a directory" in status.last_error
    (key / "inside").rmdir()
    key.rmdir()
    assert is_well((await world.agent().run_once())["web"])
    assert key.is_file()


async def test_renew_always_tries(world: AgentWorld) -> None:
    """Whatever our own patience and the broker's limits said; and it says how that ended."""
    await world.enroll()
    world.broker.issue_errors = [limited()]
    await world.agent().run_once()
    world.broker.issue_errors = [limited()]
    outcome = await world.agent().by_hand("renew", "web")
    assert not outcome.ok
    assert outcome.text.startswith(
        "not renewed: RATE_LIMITED: too many orders were asked for; the agent tries again at"
    )
    outcome = await world.agent().by_hand("renew", "web")
    assert (outcome.ok, outcome.text) == (True, "version 1 is in use")


async def test_renew_installs_what_is_there_before_it_orders(world: AgentWorld, tmp_path: Path) -> None:
    """A certificate that couldn't be installed is, once it can; two `renew`s order no two certificates."""
    await world.enroll()
    await world.agent().run_once()
    (tmp_path / "tls").rename(tmp_path / "away")
    (tmp_path / "tls").write_text("in the way")
    for _ in range(3):
        outcome = await world.agent().by_hand("renew", "web")
        assert not outcome.ok
        assert "Not a directory" in outcome.text
    assert len(await world.versions("web")) <= 2
    issued = len(world.broker.issued)
    (tmp_path / "tls").unlink()
    (tmp_path / "away").rename(tmp_path / "tls")
    await world.agent().by_hand("renew", "web")
    assert len(world.broker.issued) == issued
    assert is_well(await world.status("web"))


async def test_a_lineage_without_its_current_heals_before_anything_is_ordered(
    world: AgentWorld, tmp_path: Path
) -> None:
    """Dangling, missing or a folder: the version that was in force is again, and no certificate is ordered for it."""
    await world.enroll()
    await world.agent().run_once()
    await world.agent().by_hand("renew", "web")
    current = tmp_path / "state" / "certificates" / "web" / "current"
    damages: list[Callable[[], object]] = [
        lambda: current.symlink_to("versions/99"),
        lambda: None,
        current.mkdir,
        lambda: current.write_text("versions/2"),
    ]
    for damage in damages:
        current.unlink()
        damage()
        world.broker.calls.clear()
        assert is_well((await world.agent().run_once())["web"])
        assert "issue" not in world.broker.calls
        assert current.readlink() == Path("versions/2")
        assert (tmp_path / "tls" / "web.pem").exists()


@contextlib.asynccontextmanager
async def running(world: AgentWorld, retry_epoch: str = "e1") -> AsyncIterator[HostDirectives]:
    """A daemon, and what takes the broker's directives."""
    agent = world.agent()
    stop = asyncio.Event()
    task = asyncio.create_task(agent.run(stop, world.progress))
    await until(lambda: "issue" in world.broker.calls)
    directives = HostDirectives(
        world.host.certificates,
        agent._certificates,
        identity=world.host.identity,
        identity_runner=agent._identity,
        disk=world.host.disk,
        clock=world.clock,
        policy_hash="",
        on_policy=lambda _: None,
        retry_epoch=retry_epoch,
        on_retry_epoch=lambda _: None,
        rng=world.host.rng,
    )
    try:
        yield directives
    finally:
        stop.set()
        await asyncio.wait_for(task, HANG)


async def is_settled(world: AgentWorld, version: int) -> None:
    """Wait until a version is in use, letting no time pass but what is slept."""

    def done() -> bool:
        status = world.host.certificates["web"].statuses.load()
        return status is not None and status.confirmed_version == version and is_well(status)

    await until(done)


async def test_a_revoked_certificate_is_replaced_whatever_was_waited_for(world: AgentWorld) -> None:
    """The story of a first day: limited by the broker for a day, then revoked: the new one is there at once."""
    await world.enroll()
    async with running(world) as directives:
        await is_settled(world, 1)
        world.broker.issue_errors = [limited()]
        await renew_in_vain(world)
        (version,) = world.host.certificates["web"].versions.versions()
        world.clock.advance(timedelta(minutes=1))
        await directives.renew(
            [DirectedRenewal(version.certificate_id, world.clock.now(), RenewalCause.REVOKED, "it was revoked")]
        )
        await is_settled(world, 2)


@pytest.mark.parametrize(
    ("cause", "asked"),
    [(RenewalCause.OPERATOR, True), (RenewalCause.REVOKED, True), (RenewalCause.ISSUER, False)],
)
async def test_what_waits_is_asked_for_when_an_operator_wants_what_the_host_no_longer_has(
    world: AgentWorld, cause: RenewalCause, asked: bool
) -> None:
    """The refusal says that an operator can have it renewed: that must be so where the broker's certificate is lost."""
    await world.enroll()
    async with running(world) as directives:
        await is_settled(world, 1)
        world.broker.issue_errors = [limited()]
        await renew_in_vain(world)
        world.clock.advance(timedelta(minutes=1))
        calls = world.broker.calls.count("issue")
        directive = DirectedRenewal("lost", world.clock.now(), cause, "it is wanted")
        taking = asyncio.ensure_future(directives.renew([directive]))

        def taken() -> bool:  # it looks for a while whether the request that waits brings the certificate
            world.clock.advance(timedelta(milliseconds=200))
            return taking.done()

        await until(taken)
        assert isinstance(taking.exception(), RefusalError)
        if asked:
            await is_settled(world, 2)
        assert (world.broker.calls.count("issue") > calls) is asked


async def test_a_revoked_certificate_is_replaced_with_another_key_also_where_keys_are_kept(tmp_path: Path) -> None:
    """`key_rotation: reuse` is about renewals; the key of what was revoked is spent at the broker."""
    world = AgentWorld(tmp_path, [{"name": "web", "key_rotation": "reuse"}])
    try:
        await world.enroll()
        async with running(world) as directives:
            await is_settled(world, 1)
            (first,) = world.host.certificates["web"].versions.versions()
            await directives.renew(
                [DirectedRenewal(first.certificate_id, world.clock.now(), RenewalCause.REVOKED, "it was revoked")]
            )
            await is_settled(world, 2)
        _, second = world.host.certificates["web"].versions.versions()
        assert first.public_key_sha256 != second.public_key_sha256
    finally:
        world.close()


async def test_a_request_that_waits_is_given_up_when_its_key_is_revoked(tmp_path: Path) -> None:
    """`key_rotation: reuse`, a renewal that a limit refused, then a revocation: the next one has another key."""
    world = AgentWorld(tmp_path, [{"name": "web", "key_rotation": "reuse"}])
    try:
        await world.enroll()
        async with running(world) as directives:
            await is_settled(world, 1)
            certificates = world.host.certificates["web"]
            (first,) = certificates.versions.versions()
            certificates.keys.begin(
                common_name="",
                sans=certificates.spec.dns_names,
                replaces_certificate_id=first.certificate_id,
                reuse_key=True,
            )
            await directives.renew(
                [DirectedRenewal(first.certificate_id, world.clock.now(), RenewalCause.REVOKED, "it was revoked")]
            )
            await is_settled(world, 2)
        _, second = certificates.versions.versions()
        assert first.public_key_sha256 != second.public_key_sha256
        assert len(world.broker.issued) == 2
    finally:
        world.close()


async def test_what_failed_is_tried_again_when_the_retry_epoch_changes(world: AgentWorld) -> None:
    """The same epoch says nothing; another one does, within seconds; a time that the CA named stands."""
    await world.enroll()
    world.broker.issue_errors = [limited(7 * DAY)]
    async with running(world) as directives:
        await until(lambda: (status := world.host.certificates["web"].statuses.load()) is not None and status.failures)
        await directives.retry_epoch_changed("e1")
        await directives.retry_epoch_changed("e2")
        for _ in range(11):
            await asyncio.sleep(0.02)
            world.clock.advance(timedelta(seconds=1))
        await is_settled(world, 1)


async def test_the_first_word_of_a_broker_mends_nothing(world: AgentWorld) -> None:
    """A host that hears of policy and epoch for the first time was refused under them: it doesn't ask twice."""
    await world.enroll()
    world.broker.issue_errors = [RefusalError(Reason.PROFILE_NOT_ALLOWED, "no")]
    async with running(world, retry_epoch="") as directives:
        await until(lambda: (status := world.host.certificates["web"].statuses.load()) is not None and status.failures)
        world.broker.calls.clear()
        await directives.policy_changed("p1")
        await directives.retry_epoch_changed("e1")
        for _ in range(11):
            await asyncio.sleep(0.02)
            world.clock.advance(timedelta(seconds=1))
        assert "issue" not in world.broker.calls


async def test_a_cas_time_stands_when_the_retry_epoch_changes(world: AgentWorld) -> None:
    """The broker can't change what the CA said."""
    await world.enroll()
    world.broker.issue_errors = [limited(DAY, Reason.ISSUER_RATE_LIMITED)]
    async with running(world) as directives:
        await until(lambda: (status := world.host.certificates["web"].statuses.load()) is not None and status.failures)
        world.broker.calls.clear()
        await directives.retry_epoch_changed("e2")
        for _ in range(11):
            await asyncio.sleep(0.02)
            world.clock.advance(timedelta(seconds=1))
        assert "issue" not in world.broker.calls


async def test_who_asks_four_times_is_told_what_the_fourth_waits_for(
    world: AgentWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """In the log once, in `status`, and in `check`; `renew NAME` doesn't wait."""
    await world.enroll()
    async with running(world) as directives:
        for number in range(1, 5):
            await is_settled(world, number)
            version = (await world.versions("web"))[-1]
            world.clock.advance(timedelta(seconds=20))
            wanted = DirectedRenewal(version.certificate_id, world.clock.now(), RenewalCause.OPERATOR, f"key {number}")
            await directives.renew([wanted])
        await until(lambda: "not renewed yet" in caplog.text)
        world.clock.advance(timedelta(minutes=1))
        options = cli._parser().parse_args(["status"])
        assert await cli._run(options, load_settings(tmp_path / "agent.yml")) == 0
        said = capsys.readouterr().out
        assert "web: waits until" in said
        assert "(`certplane-agent renew web` doesn't wait): an operator asked: key 4" in said
        outcome = await ask(world.folder / "state", {"command": "renew", "name": "web"}, world.progress)
        assert outcome is not None
        assert outcome.text == "version 5 is in use"
    assert caplog.text.count("not renewed yet: waits until") == 1


async def renew_in_vain(world: AgentWorld) -> None:
    """`renew web` at the daemon's socket, which fails."""
    outcome = await ask(world.folder / "state", {"command": "renew", "name": "web"}, world.progress)
    assert outcome is not None
    assert not outcome.ok
    assert "RATE_LIMITED" in outcome.text


async def test_renew_ends_with_a_sentence_with_a_daemon_and_without(
    world: AgentWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it fails, also as JSON."""
    await world.enroll()
    options = cli._parser().parse_args(["renew", "web", "--json"])
    async with running(world):
        await is_settled(world, 1)
        world.broker.issue_errors = [limited()]
        assert await cli._run(options, load_settings(tmp_path / "agent.yml")) == 1
    assert '"event": "failed"' in (said := capsys.readouterr().out.splitlines()[-1])
    assert "not renewed: RATE_LIMITED" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, and files of another user")
class TestAsRoot:
    """root on a host whose agent is another user's."""

    @pytest.fixture
    async def others(self, world: AgentWorld, tmp_path: Path) -> AgentWorld:
        await world.enroll()
        await world.agent().run_once()
        for path in [tmp_path / "state", *(tmp_path / "state").rglob("*")]:
            os.chown(path, 33, 33, follow_symlinks=False)
        return world

    async def test_status_reads(self, others: AgentWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Nothing is written, so nothing has to be root's."""
        options = cli._parser().parse_args(["status"])
        assert await cli._run(options, load_settings(tmp_path / "agent.yml")) == 0
        assert "web" in capsys.readouterr().out

    @pytest.mark.parametrize("command", [["renew", "web"], ["run", "--once"], ["enroll"]], ids=" ".join)
    async def test_what_writes_names_the_line_to_run(
        self, others: AgentWorld, tmp_path: Path, command: list[str]
    ) -> None:
        """As the owner; no remedy that takes the state away from its agent."""
        options = cli._parser().parse_args(command)
        with pytest.raises(OperationError) as caught:
            await cli._run(options, load_settings(tmp_path / "agent.yml"))
        assert "sudo -u www-data certplane-agent -c" in str(caught.value)
        assert " ".join(command) in str(caught.value)
        assert "chown" not in str(caught.value)
