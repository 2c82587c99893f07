"""The account that several brokers share, at Pebble: its key is a secret of theirs, or sealed in their database."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.broker.issuers.acme_keeping import AccountKeeper, KeptInSecret, KeptInStore, Seal
from certplane.broker.model import OrderState
from certplane.errors import Reason, RefusalError
from certplane.pki.keys import KeyType, generate_private_key, private_key_pem
from certplane.sandbox import faults
from certplane.sandbox.acme_endpoints import KEY_CHANGE, NEW_ACCOUNT
from certplane.sandbox.fault_proxy import Action
from certplane.sandbox.pebble import Pebble, PebbleOptions
from certplane.sandbox.ports import DnsServer
from tests.fakes.accounts import FakeAccounts
from tests.fakes.secrets import FakeSecretSource
from tests.support.moods import moody
from tests.support.parts import need_part

pytestmark = pytest.mark.integration

SOON = timedelta(seconds=10)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ca(tmp_path_factory: pytest.TempPathFactory, dns_server: DnsServer) -> AsyncIterator[Pebble]:
    folder = tmp_path_factory.mktemp("pebble-of-brokers")
    options = PebbleOptions(always_valid=True)
    async with Pebble(folder, dns_server.endpoint.host_port, options, part=need_part("pebble")) as server:
        yield server


class Fleet:
    """What brokers have in common."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        keys = [private_key_pem(generate_private_key(KeyType.EC_P256)).decode() for _ in range(2)]
        seal = base64.b64encode(bytes(32)).decode()
        self.secrets = FakeSecretSource({"acme/key": keys[0], "acme/key.next": keys[1], "seal": seal})
        self._rows = FakeAccounts()

    def keeper(self) -> AccountKeeper:
        """A broker's of its own."""
        if self._kind == "secret":
            return KeptInSecret(self.secrets, "acme/key", "issuer.acme.account_key.secret")
        seal = Seal(self.secrets, "seal")
        return KeptInStore(self._rows, "pebble", "https://ca.example", seal, "issuer.acme.account_key.store")

    def copy_next(self) -> None:
        """What an operator does with secrets after a change."""
        self.secrets.secrets["acme/key"] = self.secrets.secrets["acme/key.next"]


@pytest.fixture(params=["secret", "store"])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    return Fleet(request.param)


async def test_a_new_key_reaches_every_broker(tmp_path: Path, ca: Pebble, own_name: str, fleet: Fleet) -> None:
    """They order on with one account: who is told before its next request, and who finds out by it, alike."""
    async with (
        moody(tmp_path / "1", ca, keeper=fleet.keeper()) as first,
        moody(tmp_path / "2", ca, keeper=fleet.keeper()) as second,
    ):
        for number, broker in enumerate((first, second)):
            assert (await broker.issue(f"{number}.{own_name}")).state is OrderState.ISSUED
        heard: list[str] = []
        first.issuer.tell_of_keys(heard.append)
        before = await first.issuer.account(SOON)
        async with moody(tmp_path / "command", ca, keeper=fleet.keeper()) as command:
            after = await command.issuer.roll_over_account_key(SOON)
        assert before is not None
        assert after.key_sha256 != before.key_sha256
        assert account(after.url) == account(before.url)
        if fleet._kind == "secret":
            fleet.copy_next()
            del fleet.secrets.secrets["acme/key.next"]
        assert await first.issuer.look_at_account_key(SOON) == after.key_sha256
        assert heard == [after.key_sha256]
        for number, broker in enumerate((first, second)):
            assert (await broker.issue(f"www.{number}.{own_name}")).state is OrderState.ISSUED
            assert broker.issuer.account_key_sha256 == after.key_sha256
            found = await broker.issuer.account(SOON)
            assert found is not None
            assert account(found.url) == account(before.url)


async def test_a_secret_that_nobody_has_copied_yet(tmp_path: Path, ca: Pebble, own_name: str) -> None:
    """After the change brokers order with the key that the CA knows, those that start later too."""
    fleet = Fleet("secret")
    async with moody(tmp_path / "1", ca, keeper=fleet.keeper()) as running:
        assert (await running.issue(own_name)).state is OrderState.ISSUED
        async with moody(tmp_path / "command", ca, keeper=fleet.keeper()) as command:
            after = await command.issuer.roll_over_account_key(SOON)
        assert (await running.issue(f"a.{own_name}")).state is OrderState.ISSUED
        assert running.issuer.account_key_sha256 == after.key_sha256
    async with moody(tmp_path / "2", ca, keeper=fleet.keeper()) as started:
        assert (await started.issue(f"b.{own_name}")).state is OrderState.ISSUED
        assert started.issuer.account_key_sha256 == after.key_sha256


@pytest.mark.parametrize(
    ("cut_off", "changed"),
    [
        pytest.param(faults.cut, False, id="before the CA was asked"),
        pytest.param(faults.swallowed, True, id="after the CA did it"),
    ],
)
async def test_a_change_that_is_cut_off(
    tmp_path: Path, ca: Pebble, own_name: str, fleet: Fleet, cut_off: type[Action], changed: bool
) -> None:
    """Whatever the CA made of it, each broker finds the key that works, and the account stays the same."""
    async with moody(tmp_path / "1", ca, keeper=fleet.keeper()) as running:
        assert (await running.issue(own_name)).state is OrderState.ISSUED
        before = await running.issuer.account(SOON)
        async with moody(tmp_path / "command", ca, keeper=fleet.keeper()) as command:
            await command.issue(f"command.{own_name}")  # its account is looked up before the CA goes away
            command.proxy.add(cut_off(), KEY_CHANGE, times=1 if changed else None)
            command.proxy.add(faults.cut(), NEW_ACCOUNT, times=None)
            with pytest.raises(RefusalError) as caught:
                await command.issuer.roll_over_account_key(timedelta(seconds=1))
            assert caught.value.refusal.reason is Reason.ISSUER_UNAVAILABLE
        assert (await running.issue(f"a.{own_name}")).state is OrderState.ISSUED
        async with moody(tmp_path / "2", ca, keeper=fleet.keeper()) as started:
            assert (await started.issue(f"b.{own_name}")).state is OrderState.ISSUED
            found = await started.issuer.account(SOON)
        assert found is not None
        assert before is not None
        assert account(found.url) == account(before.url)
        assert (found.key_sha256 != before.key_sha256) is changed
        assert running.issuer.account_key_sha256 == found.key_sha256


def account(url: str) -> str:
    """Which one, whatever proxy its URL leads through."""
    return url.rsplit("/", 1)[1]
