"""The `SecretSource` contract, on the fake and on every source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import pytest

from certplane.broker.issuers.dns.http_client import new_http_client
from certplane.broker.ports import SecretSource
from certplane.broker.secrets.env import EnvSecrets, variable_name
from certplane.broker.secrets.files import FileSecrets
from certplane.broker.secrets.vault import VaultSecrets
from certplane.broker.secrets.vault_settings import VaultSettings
from certplane.errors import Reason, RefusalError
from certplane.runtime.pool import BlockingPool
from tests.fakes.clock import ManualClock
from tests.fakes.secrets import FakeSecretSource
from tests.support.vault_server import VaultServer


class World(Protocol):
    """A source, and the way to write what it reads."""

    @property
    def source(self) -> SecretSource: ...

    def write(self, name: str, secret: str) -> None: ...


class FakeWorld:
    def __init__(self) -> None:
        self.source = FakeSecretSource({})

    def write(self, name: str, secret: str) -> None:
        self.source.secrets[name] = secret


class EnvWorld:
    def __init__(self) -> None:
        self.environ: dict[str, str] = {}
        self.source = EnvSecrets(self.environ)

    def write(self, name: str, secret: str) -> None:
        self.environ[variable_name(name)] = secret


class FileWorld:
    def __init__(self, directory: Path, pool: BlockingPool, *, flat: bool) -> None:
        self.directory, self.flat = directory, flat
        self.source = FileSecrets(directory, pool, flat=flat)

    def write(self, name: str, secret: str) -> None:
        path = self.directory / (name.replace("/", "_") if self.flat else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        path.write_text(secret)


class VaultWorld:
    def __init__(self, vault: VaultServer, product: str, pool: BlockingPool) -> None:
        self.vault = vault
        self.source = VaultSecrets(
            product,
            VaultSettings(vault.url, kv_version=vault.version, token=vault.token, cache=timedelta()),
            environ={},
            new_client=lambda: new_http_client(timedelta(seconds=5)),
            pool=pool,
            clock=ManualClock(),
        )

    def write(self, name: str, secret: str) -> None:
        self.vault.entries[name] = {"value": secret}


@pytest.fixture(params=["fake", "env", "file", "credentials", "vault-1", "vault-2", "openbao-2"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    pool = BlockingPool("secrets", 1)
    simple: dict[str, Callable[[], World]] = {
        "fake": FakeWorld,
        "env": EnvWorld,
        "file": lambda: FileWorld(tmp_path, pool, flat=False),
        "credentials": lambda: FileWorld(tmp_path, pool, flat=True),
    }
    product, _, version = request.param.partition("-")
    if product in simple:
        yield simple[product]()
    else:
        with VaultServer(version=int(version)) as vault:
            yield VaultWorld(vault, product, pool)
    pool.close()


@pytest.mark.parametrize("name", ["token", "cloudflare/whisper-cl", "a.b/c_d/E-1"])
async def test_reads_a_secret(world: World, name: str) -> None:
    """What was written under a name is read under it."""
    world.write(name, "s3cret")
    assert await world.source.read(name) == "s3cret"


@pytest.mark.parametrize(
    "secret", ["with spaces: and {braces}", "gr\u00fcn", '{"json": [1]}', "two\nlines", "x" * 30_000]
)
async def test_a_secret_is_any_text(world: World, secret: str) -> None:
    """A secret comes back character by character."""
    world.write("dns/token", secret)
    assert await world.source.read("dns/token") == secret


async def test_line_end_is_dropped(world: World) -> None:
    """What an editor leaves at the end is no part of a secret."""
    world.write("dns/token", "s3cret\n")
    assert await world.source.read("dns/token") == "s3cret"


async def test_a_new_secret_is_seen(world: World) -> None:
    """A rotation needs no restart."""
    world.write("dns/token", "old")
    assert await world.source.read("dns/token") == "old"
    world.write("dns/token", "new")
    assert await world.source.read("dns/token") == "new"


async def test_missing_secret(world: World) -> None:
    """A secret that isn't there is a person's job, and the message names it."""
    world.write("dns/token", "s3cret")
    with pytest.raises(RefusalError) as caught:
        await world.source.read("dns/other")
    assert caught.value.refusal.reason is Reason.DNS_REJECTED
    assert "dns/other" in caught.value.refusal.message


async def test_empty_secret(world: World) -> None:
    """An empty secret is none, and no neighbour's is told."""
    world.write("dns/token", "s3cret")
    world.write("dns/empty", "\n")
    with pytest.raises(RefusalError) as caught:
        await world.source.read("dns/empty")
    assert caught.value.refusal.reason is Reason.DNS_REJECTED
    assert "s3cret" not in caught.value.refusal.message
