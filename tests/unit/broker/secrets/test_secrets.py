"""Secrets by name: where they are found, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from httpx import AsyncClient
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.ports import SecretSource
from certplane.broker.secrets.env import EnvSecrets, variable_name
from certplane.broker.secrets.files import FileSecrets, FileSecretsSettings
from certplane.broker.secrets.source import SecretsProvider, SecretsSettings, open_secrets
from certplane.broker.secrets.vault import VaultSecrets
from certplane.errors import ConfigurationError, Reason, RefusalError
from certplane.runtime.pool import BlockingPool
from tests.fakes.clock import ManualClock


@pytest.fixture
def pool() -> Iterator[BlockingPool]:
    pool = BlockingPool("secrets", 1)
    yield pool
    pool.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = tmp_path / "secrets"
    (base / "cloudflare").mkdir(parents=True)
    write(base / "cloudflare" / "whisper-cl", "s3cret\n")
    write(tmp_path / "outside", "outside")
    return base


def write(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)


async def refusal_of(source: EnvSecrets | FileSecrets, name: str) -> str:
    with pytest.raises(RefusalError) as caught:
        await source.read(name)
    assert caught.value.refusal.reason is Reason.DNS_REJECTED
    return caught.value.refusal.message


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        pytest.param("cloudflare/whisper-cl", "CLOUDFLARE_WHISPER_CL", id="slash-and-hyphen"),
        pytest.param("CF_TOKEN", "CF_TOKEN", id="already-one"),
        pytest.param("cf.token", "CF_TOKEN", id="dot"),
        pytest.param("3scale", "_3SCALE", id="digit-first"),
        pytest.param("gr\u00fcn", "GR_N", id="beyond-ascii"),
    ],
)
async def test_variable_of_a_name(name: str, variable: str) -> None:
    """Upper case, and an underscore for what a variable can't hold."""
    assert variable_name(name) == variable
    assert await EnvSecrets({variable: "s3cret"}).read(name) == "s3cret"


async def test_name_as_written_comes_first() -> None:
    """A variable of the very name wins over the derived one."""
    assert await EnvSecrets({"cf.token": "own", "CF_TOKEN": "derived"}).read("cf.token") == "own"


@pytest.mark.parametrize("value", ["s3cret", "s3cret\n", "s3cret\r\n"])
async def test_line_end_is_dropped(value: str) -> None:
    """What an editor or a heredoc leaves at the end is no part of a secret."""
    assert await EnvSecrets({"T": value}).read("T") == "s3cret"


@pytest.mark.parametrize("environ", [{}, {"T": ""}, {"T": "\n"}])
async def test_missing_variable(environ: dict[str, str]) -> None:
    """None and an empty one are no secret; the message says which variable to set."""
    assert "set the environment variable T" in await refusal_of(EnvSecrets(environ), "t")


async def test_reads_a_file(folder: Path, pool: BlockingPool) -> None:
    """A name is a path below the directory; a change is seen at the next read."""
    source = FileSecrets(folder, pool)
    assert await source.read("cloudflare/whisper-cl") == "s3cret"
    write(folder / "cloudflare" / "whisper-cl", "new")
    assert await source.read("cloudflare/whisper-cl") == "new"


async def test_group_may_read(folder: Path, pool: BlockingPool) -> None:
    """root:certplane 0640 is an ordinary way to hand a secret to a service."""
    (folder / "cloudflare" / "whisper-cl").chmod(0o640)
    assert await FileSecrets(folder, pool).read("cloudflare/whisper-cl") == "s3cret"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("../outside", id="parent"),
        pytest.param("cloudflare/../../outside", id="parent-inside"),
        pytest.param("/etc/passwd", id="absolute"),
        pytest.param("cloudflare//whisper-cl", id="empty-part"),
        pytest.param("./cloudflare/whisper-cl", id="dot"),
        pytest.param("cloudflare/", id="folder"),
        pytest.param("", id="empty"),
        pytest.param("a\0b", id="nul"),
    ],
)
async def test_names_that_lead_elsewhere(folder: Path, pool: BlockingPool, name: str) -> None:
    """A name is never a way out of the directory."""
    assert "isn't the name of a file below" in await refusal_of(FileSecrets(folder, pool), name)


@given(name=st.text(st.sampled_from("ab./\\\0 "), max_size=12))
async def test_no_name_reads_outside(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """Whatever the name, what is outside stays there."""
    base = tmp_path_factory.mktemp("base")
    (base / "in").mkdir()
    for outside in ("a", "b", "ab"):
        write(base / outside, "outside")
    pool = BlockingPool("secrets", 1)
    try:
        secret = await FileSecrets(base / "in", pool).read(name)
    except RefusalError:
        return
    finally:
        pool.close()
    assert secret != "outside"


@pytest.mark.parametrize("link", ["file", "folder", "whole"])
async def test_links_are_not_followed(folder: Path, pool: BlockingPool, link: str) -> None:
    """A link in place of a file or folder is refused, wherever it points."""
    if link == "file":
        (folder / "link").symlink_to(folder.parent / "outside")
        name = "link"
    elif link == "folder":
        (folder / "link").symlink_to(folder / "cloudflare")
        name = "link/whisper-cl"
    else:
        (folder / "link").symlink_to(folder.parent)
        name = "link/outside"
    assert "can't be read" in await refusal_of(FileSecrets(folder, pool), name)


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        pytest.param("s3cret", 0o644, "everybody can read it", id="world-readable"),
        pytest.param("s3cret", 0o602, "everybody can read it", id="world-writable"),
        pytest.param("x" * 65_537, 0o600, "too large", id="too-large"),
        pytest.param(b"\xff\xfes3cret", 0o600, "isn't text", id="binary"),
        pytest.param("\n", 0o600, "is empty", id="empty"),
    ],
)
async def test_files_that_are_no_secrets(
    folder: Path, pool: BlockingPool, content: str | bytes, mode: int, message: str
) -> None:
    """A file that can't be a secret, or isn't one any more, is refused; its content is never quoted."""
    write(folder / "bad", content, mode)
    said = await refusal_of(FileSecrets(folder, pool), "bad")
    assert message in said
    assert "s3cret" not in said


async def test_fifo_holds_nobody(folder: Path, pool: BlockingPool) -> None:
    """A FIFO is refused, not waited for."""
    os.mkfifo(folder / "fifo", 0o600)
    assert "isn't a regular file" in await refusal_of(FileSecrets(folder, pool), "fifo")


async def test_missing_file(folder: Path, pool: BlockingPool) -> None:
    """The message names the secret and the cause."""
    said = await refusal_of(FileSecrets(folder, pool), "cloudflare/other")
    assert said == "the secret 'cloudflare/other' can't be read: No such file or directory"


def opened(provider: str, pool: BlockingPool, directory: Path | None = None, **environ: str) -> SecretSource:
    return open_secrets(
        SecretsSettings(SecretsProvider(provider), FileSecretsSettings(directory)),
        environ=environ,
        vault_clients=lambda _: AsyncClient,
        pool=pool,
        clock=ManualClock(),
    )


def test_choosing_a_source(folder: Path, pool: BlockingPool) -> None:
    """Each provider of the format is there."""
    vault = {"VAULT_ADDR": "https://vault.example:8200", "VAULT_TOKEN": "t"}
    assert isinstance(opened("env", pool), EnvSecrets)
    assert isinstance(opened("file", pool, folder), FileSecrets)
    assert isinstance(opened("vault", pool, **vault), VaultSecrets)
    assert isinstance(opened("openbao", pool, **vault), VaultSecrets)


def test_directory_must_be_there(tmp_path: Path, pool: BlockingPool) -> None:
    """A wrong directory is found at the start, not at the first renewal."""
    with pytest.raises(ConfigurationError, match=r"secrets\.file\.directory"):
        opened("file", pool, tmp_path / "nowhere")


async def test_credentials_of_systemd(folder: Path, pool: BlockingPool) -> None:
    """Without a directory it is systemd's, where credentials have flat names; a configured one goes first."""
    credentials = folder.parent / "credentials"
    credentials.mkdir()
    write(credentials / "cloudflare_whisper-cl", "from systemd\n", 0o400)
    source = opened("file", pool, CREDENTIALS_DIRECTORY=str(credentials))
    assert await source.read("cloudflare/whisper-cl") == "from systemd"
    source = opened("file", pool, credentials, CREDENTIALS_DIRECTORY=str(credentials))
    assert await source.read("cloudflare/whisper-cl") == "from systemd"
    source = opened("file", pool, folder, CREDENTIALS_DIRECTORY=str(credentials))
    assert await source.read("cloudflare/whisper-cl") == "s3cret"


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/outside", ".."])
async def test_credentials_of_systemd_stay_inside(folder: Path, pool: BlockingPool, name: str) -> None:
    """A name leads out of the flat directory as little."""
    assert "isn't the name" in await refusal_of(FileSecrets(folder, pool, flat=True), name)


@pytest.mark.parametrize(
    ("provider", "environ", "key", "remedy"),
    [
        pytest.param("vault", {}, "secrets.vault.address", "write it, or set VAULT_ADDR", id="vault-address"),
        pytest.param(
            "vault", {"BAO_ADDR": "https://bao"}, "secrets.vault.address", "set VAULT_ADDR", id="other-product"
        ),
        pytest.param("openbao", {}, "secrets.vault.address", "write it, or set BAO_ADDR", id="openbao-address"),
        pytest.param("vault", {"VAULT_ADDR": "https://v"}, "secrets.vault.token_file", "set VAULT_TOKEN", id="token"),
        pytest.param(
            "openbao", {"VAULT_ADDR": "https://v"}, "secrets.vault.token_file", "set BAO_TOKEN", id="bao-token"
        ),
    ],
)
def test_vault_that_is_not_configured(
    pool: BlockingPool, provider: str, environ: dict[str, str], key: str, remedy: str
) -> None:
    """What neither the file nor the environment says is told at the start, with both ways to say it."""
    with pytest.raises(ConfigurationError) as caught:
        opened(provider, pool, **environ)
    (problem,) = caught.value.problems
    assert (problem.key, remedy in problem.remedy) == (key, True)
