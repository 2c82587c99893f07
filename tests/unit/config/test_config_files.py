"""Files that settings name are read only as what they should be; a private key only if it is private."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from certplane.config.files import read_file, read_private_file
from certplane.errors import ConfigurationError, ConfigurationProblem

AT = ConfigurationProblem("agent.yml", 12, "identity.key", "")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    path.write_bytes(b"the secret")
    path.chmod(0o600)
    return path


def _problem(
    path: Path, *, private: bool = False, at: ConfigurationProblem | None = None, follow_links: bool = True
) -> str:
    read = read_private_file if private else read_file
    with pytest.raises(ConfigurationError) as caught:
        read(path, at=at, follow_links=follow_links)
    (problem,) = caught.value.problems
    assert "secret" not in str(caught.value)
    return str(problem)


def test_reads(key: Path) -> None:
    """A private regular file is read by both."""
    assert read_file(key) == read_private_file(key) == b"the secret"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601, 0o777, 0o644])
def test_a_key_that_others_can_access(key: Path, mode: int) -> None:
    """Any bit for group or others refuses, with the command that mends it, at the place where it is configured."""
    key.chmod(mode)
    assert _problem(key, private=True, at=AT) == (
        f"agent.yml:12: identity.key: {key} can be accessed by others (mode {mode:04o}); chmod 600 {key}"
    )
    assert read_file(key) == b"the secret"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_key_of_the_owner_alone(key: Path, mode: int) -> None:
    """What the owner may do with it doesn't matter."""
    key.chmod(mode)
    assert read_private_file(key) == b"the secret"


def test_a_key_of_another_user(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the file can change its mode: only this user and root may."""
    owner = key.stat().st_uid
    if owner == 0:
        os.chown(key, 12345, -1)
        owner = 12345
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert "belongs to another user" in _problem(key, private=True)


def test_missing(tmp_path: Path) -> None:
    """Without a place in a configuration, the file itself is named."""
    path = tmp_path / "nothing.pem"
    assert _problem(path) == f"{path}: does not exist; create it, or correct the path"
    assert _problem(path, at=AT) == f"agent.yml:12: identity.key: {path} does not exist; create it, or correct the path"


def test_directory(tmp_path: Path) -> None:
    """A directory is named as one."""
    assert _problem(tmp_path) == f"{tmp_path}: is a directory; give the path of a file"


def test_below_a_file(key: Path) -> None:
    """A path through a file can't be."""
    assert "has a part that is no directory" in _problem(key / "x")


def test_unreadable(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal of the operating system becomes a line, as root too."""

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "can't be read by this user; give the program's user the right to read it" in _problem(key)


def test_links(key: Path, tmp_path: Path) -> None:
    """A link is followed, unless the caller says that it must not be one."""
    link = tmp_path / "link.pem"
    link.symlink_to(key)
    assert read_private_file(link) == b"the secret"
    assert "is a symbolic link" in _problem(link, follow_links=False)
    loop = tmp_path / "loop.pem"
    loop.symlink_to(loop)
    assert "loop" in _problem(loop)


def test_special_files(tmp_path: Path) -> None:
    """A FIFO or a device is refused at once instead of waited for."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "is no regular file" in _problem(fifo)
    assert "is no regular file" in _problem(Path("/dev/null"))
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert "can't be read" in _problem(path)


def test_too_large(tmp_path: Path) -> None:
    """Nothing larger than the limit is taken into memory."""
    path = tmp_path / "large"
    path.write_bytes(b"x" * 11)
    assert read_file(path, max_bytes=11) == b"x" * 11
    with pytest.raises(ConfigurationError, match="larger than 10 bytes"):
        read_file(path, max_bytes=10)
    with pytest.raises(ConfigurationError, match="larger than"):
        read_file(Path("/proc/self/maps"), max_bytes=10)


def test_nul_in_a_path() -> None:
    """A path that no system call takes is a problem, not a crash."""
    assert "NUL" in _problem(Path("a\0b"))


def test_leaves_no_descriptor_open(key: Path, tmp_path: Path) -> None:
    """Neither success nor refusal leaks."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    read_file(key)
    key.chmod(0o644)
    _problem(key, private=True)
    _problem(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before  # another test may leave one to be closed just now
