"""With the defaults, real parts and programs: whom limits hold up, whom they don't, and what a deny stops."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.operator import Operator
from tests.support.killing import events
from tests.support.parts import need_part
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

_PROFILES = {
    name: {"type": "multi_san", "dns_names": [f"{name}.certplane.test"]} for name in ("web", "shop", "stolen", "mail")
}
_POLICY: dict[str, Any] = {
    "version": 1,
    "profiles": _PROFILES,
    "hosts": {
        "web1": {"identity": "web1.certplane.test", "profiles": ["web", "shop"]},
        "web2": {"identity": "web2.certplane.test", "profiles": ["stolen"]},
        "mail1": {"identity": "mail1.certplane.test", "profiles": ["mail"]},
    },
    "operators": {"alice": {"identity": "alice.certplane.test", "roles": ["operator"]}},
}
_LIMIT = "rate_limits.new_keys_per_identity_profile_per_day (at most 2 in a day)"


class Story:
    """A broker with the default limits, a host whose agent runs, another one, and an operator."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.host = deployment.add_host("web1.certplane.test", [_certificate("web"), _certificate("shop")])
        self.thief = deployment.add_host("web2.certplane.test", [_certificate("stolen")])
        self.timer = deployment.add_host("mail1.certplane.test", [_certificate("mail")])
        self.alice = Operator(deployment, "alice.certplane.test")

    async def certificate(self, name: str) -> dict[str, Any]:
        """What the broker knows of the host's certificate."""
        finished = await self.alice.run("host", "web1")
        assert finished.status == 0, finished.stderr
        found: dict[str, Any] = next(
            each for each in json.loads(finished.stdout)["certificates"] if each["name"] == name
        )
        return found

    async def until(self, name: str, condition: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
        """The certificate once it is so."""

        async def found() -> dict[str, Any] | None:
            status = await self.certificate(name)
            return status if condition(status) else None

        status: dict[str, Any] = await until(found, poll=0.2, what=f"{name}'s state")
        return status

    async def renewed(self, name: str, before: Mapping[str, Any]) -> dict[str, Any]:
        """The certificate once another one than `before` is in use."""
        old = before["installed"]["serialNumber"]
        return await self.until(
            name,
            lambda status: status["state"] == "STATE_WAITING" and status["installed"]["serialNumber"] != old,
        )

    async def reach_the_limit(self, name: str) -> dict[str, Any]:
        """First certificate, a renewal by hand, and another one, which is one too many."""
        before = await self.until(name, lambda status: status["state"] == "STATE_WAITING")
        assert (await self.host.run("renew", name)).status == 0
        before = await self.renewed(name, before)
        refused = await self.host.run("renew", name)
        assert refused.status == 1
        assert _LIMIT in refused.stdout + refused.stderr
        return await self.until(name, lambda status: status["state"] == "STATE_FAILED")


def _certificate(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "profile": name, "dns_names": [f"{name}.certplane.test"], **more}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def story(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Story]:
    need_part("pebble")
    async with Deployment(tmp_path_factory.mktemp("wanted"), DeploymentOptions(_POLICY)) as deployment:
        made = Story(deployment)
        await deployment.start_broker()
        for host in (made.host, made.thief, made.timer):
            enrolled = await host.run("enroll")
            assert enrolled.status == 0, enrolled.stderr
        enrolled = await made.alice.enroll()
        assert enrolled.status == 0, enrolled.stderr
        await made.host.start()
        await made.host.until_running()
        yield made


async def test_a_key_that_was_compromised_is_replaced_whatever_limits_say(story: Story) -> None:
    """The host is at its limits and says which, everywhere; an operator has it renewed, and revokes: each is followed."""
    before = await story.reach_the_limit("web")
    assert _LIMIT in before["lastError"]
    assert _LIMIT in (await story.host.run("status", "--json")).stdout
    denied = await events(story.deployment, event_type="certificate_denied")
    assert [_LIMIT in each["reason"] for each in denied] == [True] * len(denied)
    assert _LIMIT in story.deployment.broker_process.log_text()

    asked = await story.alice.run("renew", "--host", "web1", "--profile", "web", "--reason", "drill", "--yes")
    assert asked.status == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert answer["changedCount"] == 1
    after = await story.renewed("web", before)

    certificate_id = after["installed"]["certificateId"]
    revoked = await story.deployment.run_broker("certs", "revoke", certificate_id, "--reason", "keyCompromise")
    assert revoked.status == 0, revoked.stderr
    await story.renewed("web", after)


async def test_a_raised_limit_and_a_reload_free_who_waits(story: Story) -> None:
    """Nobody touches the host: it hears that what it waits for may be asked for again."""
    before = await story.reach_the_limit("shop")
    story.deployment.write_broker_config({"rate_limits": {"new_keys_per_identity_profile_per_day": 9}})
    try:
        reloaded = await story.deployment.run_broker("reload")
        assert reloaded.status == 0, reloaded.stderr
        assert "applied: rate_limits.new_keys_per_identity_profile_per_day" in reloaded.stdout
        await story.renewed("shop", before)
    finally:  # the other tests are about the default
        story.deployment.write_broker_config()
        await story.deployment.run_broker("reload")


async def test_a_host_in_timer_mode_hears_what_is_wanted_of_it(story: Story) -> None:
    """No agent runs between two runs: the next one renews what an operator has asked for, and what was revoked."""
    timer = story.timer

    async def next_run() -> str:
        ran = await timer.run("run", "--once")
        assert ran.status == 0, ran.stderr
        return timer.output("mail", "cert").read_text()

    served = [await next_run()]
    assert await next_run() == served[0]
    asked = await story.alice.run("renew", "--host", "mail1", "--reason", "drill", "--yes")
    assert asked.status == 0, asked.stderr
    assert json.loads(asked.stdout)["changedCount"] == 1
    served.append(await next_run())
    assert served[1] != served[0]

    listed = await story.alice.run("host", "mail1")
    found = json.loads(listed.stdout)["certificates"]
    certificate_id = next(each["installed"]["certificateId"] for each in found if each["name"] == "mail")
    revoked = await story.deployment.run_broker("certs", "revoke", certificate_id, "--reason", "keyCompromise")
    assert revoked.status == 0, revoked.stderr
    assert await next_run() not in served


async def test_a_deny_ends_the_order_that_is_under_way(story: Story) -> None:
    """While DNS spreads: no certificate is issued, the order says why, its records are gone, and the log has all."""
    cloudflare = story.deployment.cloudflare
    cloudflare.spread_time = timedelta(minutes=10)  # until it is hurried: whatever the command takes on a busy machine
    calls = len(cloudflare.calls)
    await story.thief.start()

    async def validating() -> bool:
        return any(call.method == "POST" for call in cloudflare.calls[calls:])

    await until(validating, what="a record to be written")
    denied = await story.deployment.run_broker(
        "identity", "deny", "--name", "web2.certplane.test", "--reason", "stolen"
    )
    assert denied.status == 0, denied.stderr
    assert "stay valid" not in denied.stderr

    async def ended() -> list[dict[str, Any]]:
        return await events(story.deployment, event_type="certificate_issue_failed", identity="web2.certplane.test")

    (end,) = await until(ended, what="the order's end")
    assert end["reason_code"] == "IDENTITY_REVOKED"
    cloudflare.spread_time = timedelta()
    await cloudflare.spread(hurry=True)

    async def tidy() -> bool:
        return not [record for record in cloudflare.records("certplane.test") if "stolen" in record.name]

    await until(tidy, what="the records to be removed")
    assert await events(story.deployment, event_type="certificate_issued", identity="web2.certplane.test") == []
    await story.thief.stop()


async def test_who_is_denied_keeps_certificates_until_they_are_revoked(story: Story) -> None:
    """The command says which, and how."""
    held = (await story.certificate("web"))["installed"]["certificateId"]
    denied = await story.deployment.run_broker("identity", "deny", "--name", "web1.certplane.test")
    assert denied.status == 0, denied.stderr
    assert "stay valid until they are revoked: " in denied.stderr
    assert held in denied.stderr
    assert "`certplane-broker certs revoke ID --reason keyCompromise`" in denied.stderr
    allowed = await story.deployment.run_broker("identity", "allow", "--name", "web1.certplane.test")
    assert allowed.status == 0, allowed.stderr


async def test_a_mended_secret_frees_who_waits(tmp_path: Path) -> None:
    """Neither broker nor host is touched; before that the alarm, which a restart of the broker didn't end, named it."""
    need_part("pebble")
    directory = tmp_path / "secrets"
    directory.mkdir(mode=0o700)
    secret = directory / "cloudflare" / "sandbox"
    secret.parent.mkdir(mode=0o700)
    secret.touch(0o600)
    secret.write_text("not-the-token")
    broker = {"secrets": {"provider": "file", "file": {"directory": str(directory)}}}
    async with Deployment(tmp_path / "sandbox", DeploymentOptions(_POLICY, broker=broker)) as deployment:
        story = Story(deployment)
        await deployment.start_broker()
        for enrolled in (await story.host.run("enroll"), await story.alice.enroll()):
            assert enrolled.status == 0, enrolled.stderr
        await story.host.start()
        await story.host.until_running()
        await story.until("web", lambda status: "DNS_REJECTED" in status.get("lastError", ""))
        await story.until("shop", lambda status: "DNS_REJECTED" in status.get("lastError", ""))
        await deployment.start_broker()

        async def alarmed() -> bool:
            return "profiles blocked until a person acts: shop, web" in deployment.broker_process.log_text()

        await until(alarmed, what="the alarm after the restart")
        secret.write_text(deployment.cloudflare.token)
        for name in ("web", "shop"):
            await story.until(name, lambda status: status["state"] == "STATE_WAITING")
        await story.host.stop()


async def test_a_key_that_was_kept_leaves_service_whichever_of_its_certificates_is_revoked(tmp_path: Path) -> None:
    """With `key_rotation: reuse` the certificate in use may have the key of an old one, which somebody has found."""
    need_part("pebble")
    async with Deployment(tmp_path / "sandbox", DeploymentOptions(_POLICY)) as deployment:
        story = Story(deployment)
        story.host.write_config([_certificate("web", key_rotation="reuse")])
        await deployment.start_broker()
        for enrolled in (await story.host.run("enroll"), await story.alice.enroll()):
            assert enrolled.status == 0, enrolled.stderr
        await story.host.start()
        await story.host.until_running()
        old = await story.until("web", lambda status: status["state"] == "STATE_WAITING")
        asked = await story.alice.run("renew", "--host", "web1", "--reason", "drill", "--yes")
        assert asked.status == 0, asked.stderr
        new = await story.renewed("web", old)

        first, second = (status["installed"]["certificateId"] for status in (old, new))
        revoked = await deployment.run_broker("certs", "revoke", first, "--reason", "keyCompromise")
        assert revoked.status == 0, revoked.stderr
        assert [json.loads(line)["certificateId"] for line in revoked.stdout.splitlines()] == [first, second]
        assert "its other certificates are revoked too" in revoked.stderr
        again = await deployment.run_broker("certs", "revoke", first)
        assert again.status == 0, again.stderr
        assert "it had been revoked before; its time and reason stay as they are" in again.stderr
        audited = await events(deployment, event_type="certificate_revoked")
        assert [each["reason_code"] for each in audited] == ["keyCompromise"] * 2
        await story.renewed("web", new)
        await story.host.stop()
