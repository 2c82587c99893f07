"""Secrets from Vault and OpenBao: what is asked, with which token, and what each answer means."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from certplane.broker.issuers.dns.http_client import new_http_client
from certplane.broker.ports import KeepsSecrets
from certplane.broker.secrets.vault import VaultSecrets
from certplane.broker.secrets.vault_settings import VaultSettings
from certplane.errors import Reason, Refusal, RefusalError
from certplane.runtime.pool import BlockingPool
from tests.fakes.clock import ManualClock
from tests.support.vault_server import VaultServer

NAME = "cloudflare/whisper-cl"
TIMEOUT = timedelta(seconds=5)


@dataclass
class VaultSetting:
    vault: VaultServer
    clock: ManualClock
    pool: BlockingPool

    def source(
        self,
        *,
        product: str = "vault",
        environ: dict[str, str] | None = None,
        new_client: Callable[[], httpx.AsyncClient] | None = None,
        **store: Any,
    ) -> VaultSecrets:
        if environ is None and "token_file" not in store:
            store.setdefault("token", self.vault.token)
        made = VaultSettings(self.vault.url, kv_version=self.vault.version, timeout=TIMEOUT)
        return VaultSecrets(
            product,
            dataclasses.replace(made, **store),
            environ=environ or {},
            new_client=new_client or (lambda: new_http_client(TIMEOUT)),
            pool=self.pool,
            clock=self.clock,
        )


@pytest.fixture
def pool() -> Iterator[BlockingPool]:
    pool = BlockingPool("secrets", 1)
    yield pool
    pool.close()


def opened(version: int, pool: BlockingPool) -> Iterator[VaultSetting]:
    entries: dict[str, dict[str, Any] | None] = {NAME: {"value": "s3cret", "port": 53, "empty": ""}}
    with VaultServer(version=version, entries=entries) as vault:
        yield VaultSetting(vault, ManualClock(), pool)


@pytest.fixture(params=[1, 2])
def world(request: pytest.FixtureRequest, pool: BlockingPool) -> Iterator[VaultSetting]:
    yield from opened(request.param, pool)


@pytest.fixture
def first(pool: BlockingPool) -> Iterator[VaultSetting]:
    """For what doesn't depend on the store's version."""
    yield from opened(1, pool)


async def refusal_of(source: VaultSecrets, name: str = NAME) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        await source.read(name)
    refusal = caught.value.refusal
    assert repr(name) in refusal.message or "token" in refusal.message or "entry" in refusal.message
    assert "s3cret" not in refusal.message
    assert "hvs." not in refusal.message
    return refusal


async def test_reads_an_entry(world: VaultSetting) -> None:
    """The entry below the mount, in the envelope of the store's version, by the configured field."""
    assert await world.source().read(NAME) == "s3cret"
    data = "data/" if world.vault.version == 2 else ""
    assert world.vault.requests == [f"/v1/secret/{data}{NAME}"]


async def test_mount_of_several_parts_and_namespace(world: VaultSetting) -> None:
    """A mount may be a path, a namespace goes in its header, and odd characters of a name are quoted."""
    world.vault.mount, world.vault.namespace = "team/kv", "ops/eu"
    world.vault.entries["dns/gr\u00fcn ?#%2f"] = {"token": "s3cret\n"}
    source = world.source(mount_path="/team/kv/", namespace="ops/eu/", key="token")
    assert await source.read("dns/gr\u00fcn ?#%2f") == "s3cret"
    assert world.vault.requests[0].endswith("dns/gr%C3%BCn%20%3F%23%252f")


@pytest.mark.parametrize("name", ["../sys/mounts", "a/../b", "a//b", "", "/a", "a/", ".", "a\nb", "a\0b"])
async def test_names_that_lead_elsewhere(first: VaultSetting, name: str) -> None:
    """A policy's author reads entries below the mount, and nothing else of the vault's API."""
    refusal = await refusal_of(first.source(), name)
    assert (refusal.reason, "is no name" in refusal.message) == (Reason.DNS_REJECTED, True)
    assert not first.vault.requests


async def test_token_file_is_read_at_each_request(first: VaultSetting, tmp_path: Path) -> None:
    """An agent of the vault replaces the file when the token ends."""
    sink = tmp_path / "sink"
    sink.write_text("hvs.old\n")
    sink.chmod(0o640)
    source = first.source(token_file=sink)
    assert "token has expired" in (await refusal_of(source)).message
    fresh = tmp_path / "fresh"
    fresh.write_text(f"{first.vault.token}\n")
    fresh.chmod(0o640)
    fresh.rename(sink)
    assert await source.read(NAME) == "s3cret"


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        pytest.param(None, 0, "can't be read: No such file", id="missing"),
        pytest.param("hvs.x", 0o644, "everybody can read it", id="readable"),
        pytest.param("\n", 0o600, "is empty", id="empty"),
        pytest.param("hvs.x hvs.y", 0o600, "holds no token of Vault", id="two"),
        pytest.param("hvs.x\nX-Other: 1", 0o600, "holds no token of Vault", id="header"),
    ],
)
async def test_token_files_that_are_none(
    first: VaultSetting, tmp_path: Path, content: str | None, mode: int, message: str
) -> None:
    """A file without a token is told by its path, and nothing is sent."""
    if content is not None:
        (tmp_path / "sink").write_text(content)
        (tmp_path / "sink").chmod(mode)
    refusal = await refusal_of(first.source(token_file=tmp_path / "sink"))
    assert (refusal.reason, message in refusal.message) == (Reason.DNS_REJECTED, True)
    assert str(tmp_path / "sink") in refusal.message
    assert not first.vault.requests


@pytest.mark.parametrize(
    ("product", "variables", "found"),
    [
        pytest.param("vault", ["VAULT_TOKEN"], True, id="vault"),
        pytest.param("vault", ["BAO_TOKEN"], False, id="vault-not-the-other's"),
        pytest.param("openbao", ["BAO_TOKEN"], True, id="openbao"),
        pytest.param("openbao", ["VAULT_TOKEN"], True, id="openbao-as-its-clients"),
    ],
)
async def test_token_from_the_environment(first: VaultSetting, product: str, variables: list[str], found: bool) -> None:
    """Each product's variable, OpenBao's own before Vault's."""
    source = first.source(product=product, environ=dict.fromkeys(variables, first.vault.token))
    if found:
        assert await source.read(NAME) == "s3cret"
    else:
        assert "VAULT_TOKEN holds no token" in (await refusal_of(source)).message


async def test_missing_entry(world: VaultSetting) -> None:
    """No such entry is a person's job; the message says where it was looked for."""
    refusal = await refusal_of(world.source(), "cloudflare/other")
    assert refusal.reason is Reason.DNS_REJECTED
    assert "there is no entry secret/cloudflare/other; write it" in refusal.message


async def test_deleted_version(world: VaultSetting) -> None:
    """A deleted version is told from an entry that never was, where the store knows."""
    world.vault.entries[NAME] = None
    told = "is deleted; restore it" if world.vault.version == 2 else "there is no entry"
    refusal = await refusal_of(world.source())
    assert (refusal.reason, told in refusal.message) == (Reason.DNS_REJECTED, True)


async def test_wrong_mount(world: VaultSetting) -> None:
    """A mount that isn't there is told from an entry that isn't there."""
    refusal = await refusal_of(world.source(mount_path="kv"))
    assert (refusal.reason, "nothing is mounted at kv" in refusal.message) == (Reason.DNS_REJECTED, True)


async def test_wrong_version(world: VaultSetting) -> None:
    """A store of the other version holds no such entry, and the message doubts the version."""
    refusal = await refusal_of(world.source(kv_version=3 - world.vault.version))
    assert (refusal.reason, "kv_version" in refusal.message) == (Reason.DNS_REJECTED, True)


@pytest.mark.parametrize("key", ["other", "port", "empty"])
async def test_field_that_is_no_secret(world: VaultSetting, key: str) -> None:
    """A field that is missing, empty or no text is told by its name."""
    refusal = await refusal_of(world.source(key=key))
    assert (refusal.reason, f"no text in the field {key!r}" in refusal.message) == (Reason.DNS_REJECTED, True)


@pytest.mark.parametrize(
    ("answer", "reason", "message"),
    [
        pytest.param((403, (), b'{"errors":["permission denied"]}'), Reason.DNS_REJECTED, "give it a policy", id="403"),
        pytest.param((400, (), b'{"errors":["s3cret"]}'), Reason.DNS_REJECTED, "status 400; check address", id="400"),
        pytest.param((503, (), b'{"errors":["Vault is sealed"]}'), Reason.DNS_UNAVAILABLE, "unseal it", id="sealed"),
        pytest.param((503, (), b"<html>s3cret"), Reason.DNS_UNAVAILABLE, "status 503", id="503"),
        pytest.param((500, (), b'{"errors":["x"]}'), Reason.DNS_UNAVAILABLE, "status 500", id="500"),
        pytest.param((429, (), b'{"errors":["quota"]}'), Reason.DNS_UNAVAILABLE, "status 429", id="429"),
        pytest.param((412, (), b"{}"), Reason.DNS_UNAVAILABLE, "status 412", id="replica-behind"),
        pytest.param((307, (("Location", "/v1/x"),), b""), Reason.DNS_UNAVAILABLE, "it redirects", id="standby"),
        pytest.param((200, (), b"<html>s3cret"), Reason.DNS_REJECTED, "has no entry", id="html"),
        pytest.param((200, (), b"[1]"), Reason.DNS_REJECTED, "has no entry", id="list"),
        pytest.param((200, (), b'{"data": null}'), Reason.DNS_REJECTED, "has no entry", id="no-data"),
        pytest.param((200, (), b"[" * 100_000), Reason.DNS_REJECTED, "has no entry", id="deep"),
        pytest.param((200, (), b" " * 5_000_000), Reason.DNS_UNAVAILABLE, "AnswerTooLargeError", id="large"),
        pytest.param((200, (("Content-Encoding", "gzip"),), b"x"), Reason.DNS_UNAVAILABLE, "TooLarge", id="compressed"),
    ],
)
async def test_answers(
    first: VaultSetting, answer: tuple[int, tuple[tuple[str, str], ...], bytes], reason: Reason, message: str
) -> None:
    """What passes is told from what a person must mend; nothing of the body is quoted."""
    first.vault.script.append(answer)
    refusal = await refusal_of(first.source())
    assert (refusal.reason, message in refusal.message) == (reason, True)
    assert len(first.vault.requests) == 1


async def test_nobody_there(first: VaultSetting) -> None:
    """A vault that can't be reached is waited for by whoever needs the secret."""
    refusal = await refusal_of(first.source(address="http://127.0.0.1:1"))
    assert (refusal.reason, "ConnectError" in refusal.message) == (Reason.DNS_UNAVAILABLE, True)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
async def test_no_proxy_sees_the_token(first: VaultSetting, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Plain http is for this machine: a proxy of the environment doesn't carry token and secret elsewhere."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    assert await first.source().read(NAME) == "s3cret"


async def test_private_authority(tmp_path: Path, pool: BlockingPool) -> None:
    """A private CA's server is spoken to with its roots, and not without."""
    with VaultServer(tmp_path, entries={NAME: {"value": "s3cret"}}) as vault:
        world = VaultSetting(vault, ManualClock(), pool)
        trusted = ssl.create_default_context(cafile=str(vault.roots))
        assert await world.source(new_client=lambda: new_http_client(TIMEOUT, trusted)).read(NAME) == "s3cret"
        assert (await refusal_of(world.source())).reason is Reason.DNS_UNAVAILABLE
    assert len(vault.requests) == 1


async def test_is_kept_briefly(first: VaultSetting) -> None:
    """One request serves for the time that it is kept, and a new secret is seen after it."""
    source = first.source(cache=timedelta(seconds=30))
    assert [await source.read(NAME) for _ in range(3)] == ["s3cret"] * 3
    assert len(first.vault.requests) == 1
    first.vault.entries[NAME] = {"value": "rotated"}
    first.clock.advance(timedelta(seconds=29))
    assert await source.read(NAME) == "s3cret"
    first.clock.advance(timedelta(seconds=1))
    assert await source.read(NAME) == "rotated"


async def test_forgets_what_was_refused(first: VaultSetting) -> None:
    """What was read more than a moment ago is read again, once, however many were refused with it."""
    source = first.source()
    assert isinstance(source, KeepsSecrets)
    assert not source.forget(source.generation)
    await source.read(NAME)
    assert not source.forget(source.generation)
    first.clock.advance(timedelta(seconds=2))
    first.vault.entries[NAME] = {"value": "rotated"}
    generation = source.generation
    assert source.forget(generation)
    assert await source.read(NAME) == "rotated"
    assert source.forget(generation)
    assert await source.read(NAME) == "rotated"
    assert not source.forget(source.generation)
    assert len(first.vault.requests) == 2


async def test_nothing_is_kept(first: VaultSetting) -> None:
    """With no time to keep, each read asks."""
    source = first.source(cache=timedelta())
    assert [await source.read(NAME) for _ in range(2)] == ["s3cret"] * 2
    assert len(first.vault.requests) == 2


async def test_failures_are_not_kept(first: VaultSetting) -> None:
    """A secret that can't be read any more isn't handed out, and one that can again is."""
    source = first.source()
    await source.read(NAME)
    first.clock.advance(timedelta(minutes=1))
    first.vault.sealed = True
    await refusal_of(source)
    await refusal_of(source)
    first.vault.sealed = False
    assert await source.read(NAME) == "s3cret"
    assert len(first.vault.requests) == 4


async def test_concurrent_readers_ask_once(first: VaultSetting) -> None:
    """A burst of orders makes one request, and who stops waiting takes nothing from the others."""
    source = first.source()
    readers = [asyncio.create_task(source.read(NAME)) for _ in range(20)]
    await asyncio.sleep(0)
    readers[0].cancel()
    answers = await asyncio.gather(*readers, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == ["s3cret"] * 19
    assert len(first.vault.requests) == 1


def test_token_is_not_shown() -> None:
    """A store in a log line shows no token."""
    assert "hvs.x" not in repr(VaultSettings("https://v", token="hvs.x"))
