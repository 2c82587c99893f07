"""The account key's file."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from josepy.jwa import ES256, ES384, RS256

from certplane.broker.issuers.acme_account import AccountKey
from certplane.errors import ConfigurationError
from certplane.pki.keys import KeyType, generate_private_key, private_key_pem


def test_makes_a_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    """The first start makes a P-256 key, 0600, and leaves nothing else behind."""
    path = tmp_path / "account.key"
    made = AccountKey.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["account.key"]
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert (key.curve.name, made.algorithm) == ("secp256r1", ES256)


@pytest.mark.skipif(os.geteuid() != 0, reason="this needs root")
def test_a_key_that_root_makes_is_the_service_s(tmp_path: Path) -> None:
    """A command that root runs in the service's folder makes no file that the service can't read."""
    os.chown(tmp_path, 65534, 65534)
    path = tmp_path / "account.key"
    AccountKey.load_or_create(path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (65534, 65534, 0o600)


def test_keeps_the_key_that_is_there(tmp_path: Path) -> None:
    """A second start reads the same key and changes nothing."""
    path = tmp_path / "account.key"
    first = AccountKey.load_or_create(path)
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert AccountKey.load_or_create(path).public_key_sha256 == first.public_key_sha256
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_crash_in_between_is_no_obstacle(tmp_path: Path) -> None:
    """What an earlier process left half written is replaced; the key's own file is only ever whole."""
    path = tmp_path / "account.key"
    (tmp_path / f".account.key.{os.getpid()}.new").write_bytes(b"-----BEGIN")
    AccountKey.load_or_create(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["account.key"]


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [(KeyType.EC_P256, ES256), (KeyType.EC_P384, ES384), (KeyType.RSA_2048, RS256)],
)
def test_takes_keys_of_other_clients(tmp_path: Path, kind: KeyType, algorithm: object) -> None:
    """An account that was made elsewhere can be brought along."""
    path = tmp_path / "account.key"
    path.write_bytes(private_key_pem(generate_private_key(kind)))
    path.chmod(0o640)
    assert AccountKey.load_or_create(path).algorithm == algorithm


def _pem() -> bytes:
    return private_key_pem(generate_private_key(KeyType.EC_P256))


def _encrypted() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        pytest.param(_pem(), 0o644, "can be read or changed by others", id="world-readable"),
        pytest.param(_pem(), 0o620, "can be read or changed by others", id="group-writable"),
        pytest.param(_encrypted(), 0o600, "encrypted", id="encrypted"),
        pytest.param(b"", 0o600, "not a private key", id="empty"),
        pytest.param(b"MIGH-secret-bytes", 0o600, "not a private key", id="garbage"),
    ],
)
def test_refuses_and_never_overwrites(tmp_path: Path, content: bytes, mode: int, message: str) -> None:
    """A file that isn't a private key of one's own is refused with its path and key, and stays as it is."""
    path = tmp_path / "account.key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=message) as caught:
        AccountKey.load_or_create(path)
    assert path.read_bytes() == content
    [problem] = caught.value.problems
    assert (problem.file, problem.key, bool(problem.remedy)) == (str(path), "issuer.acme.account_key", True)
    assert "MIGH" not in str(caught.value)


def test_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The folder is the operator's to make."""
    with pytest.raises(ConfigurationError, match="No such file"):
        AccountKey.load_or_create(tmp_path / "nowhere" / "account.key")


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half of a key stands, and the remedy is room, not the folder's owner."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ConfigurationError, match="No space left on device; make room on the disk"):
            AccountKey.load_or_create(tmp_path / "account.key")
    assert list(tmp_path.iterdir()) == []
    AccountKey.load_or_create(tmp_path / "account.key")


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    """A FIFO must not hold the start."""
    os.mkfifo(tmp_path / "account.key", 0o600)
    with pytest.raises(ConfigurationError, match="isn't a regular file"):
        AccountKey.load_or_create(tmp_path / "account.key")


def test_shows_no_key(tmp_path: Path) -> None:
    """The value's text holds the public hash and nothing private."""
    key = AccountKey.load_or_create(tmp_path / "account.key")
    assert repr(key) == f"AccountKey(public_key_sha256='{key.public_key_sha256}')"
