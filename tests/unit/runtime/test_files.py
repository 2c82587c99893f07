"""Durable files in directories that nobody else may write."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from certplane.runtime.files import Owner, UnsafeDirectoryError, open_directory, temporary_name, why_unsafe

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is kept from writing where others may")


@pytest.mark.parametrize(
    ("mode", "uid", "last", "why"),
    [
        pytest.param(0o755, 0, True, None, id="root's own"),
        pytest.param(0o700, 0, False, None, id="root's own, private"),
        pytest.param(0o1777, 0, False, None, id="/tmp on the way"),
        pytest.param(0o1777, 0, True, "everybody", id="/tmp itself"),
        pytest.param(0o777, 0, False, "everybody", id="everybody's on the way"),
        pytest.param(0o775, 0, True, "its group", id="a group's"),
        pytest.param(0o2775, 0, False, "its group", id="a group's on the way"),
        pytest.param(0o755, 1000, True, "user 1000", id="a user's"),
        pytest.param(0o700, 33, False, "user 33", id="a user's on the way"),
        pytest.param(0o1755, 1000, False, "user 1000", id="a user's, sticky"),
    ],
)
def test_root_writes_only_where_nobody_else_may(mode: int, uid: int, last: bool, why: str | None) -> None:
    """A directory that others may write, or that belongs to another user, isn't one for root's keys."""
    found = why_unsafe(stat.S_IFDIR | mode, uid, last=last)
    assert (found is None) if why is None else (found is not None and why in found)


@as_root
@pytest.mark.parametrize(
    ("mode", "uid"), [pytest.param(0o777, 0, id="everybody"), pytest.param(0o755, 65534, id="another user")]
)
@pytest.mark.parametrize("place", ["a", "a/b", "a/b/c"])
def test_unsafe_component_is_refused_wherever_it_is(tmp_path: Path, place: str, mode: int, uid: int) -> None:
    """One directory of the path that others may write is enough, and the error names it and the remedy."""
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / place).chmod(mode)
    os.chown(tmp_path / place, uid, -1)
    with pytest.raises(UnsafeDirectoryError, match=str(tmp_path / place)) as caught:
        open_directory(tmp_path / "a/b/c")
    assert "chmod go-w" in caught.value.remedy


@as_root
def test_nothing_is_made_behind_an_unsafe_directory(tmp_path: Path) -> None:
    """A missing directory isn't created where others could exchange it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o777)
    with pytest.raises(UnsafeDirectoryError):
        open_directory(tmp_path / "a/b", create_mode=0o755)
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("place", ["link", "link/below"])
def test_link_on_the_way_is_refused(tmp_path: Path, place: str) -> None:
    """No component of a path is a symbolic link; the error names the directory that is meant."""
    (tmp_path / "real/below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(UnsafeDirectoryError, match=str(tmp_path / "real")):
        open_directory(tmp_path / place)


def test_file_where_a_directory_should_be_is_an_error(tmp_path: Path) -> None:
    """A component that is no directory ends as the system's own error."""
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        open_directory(tmp_path / "file" / "below", create_mode=0o755)


@pytest.mark.parametrize("path", ["relative", "/tmp/../etc"])
def test_path_that_depends_on_anything_else_is_misuse(path: str) -> None:
    """Only absolute paths without `..` are walked."""
    with pytest.raises(ValueError):
        open_directory(Path(path))


def test_missing_directories_get_their_mode_whatever_the_umask(tmp_path: Path) -> None:
    """A service must be able to follow a path that the agent made, also when the agent's umask is strict."""
    before = os.umask(0o077)
    try:
        open_directory(tmp_path / "a/b", create_mode=0o755).close()
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / place).stat().st_mode) for place in ("a", "a/b")] == [0o755, 0o755]


def test_missing_directory_is_an_error_unless_it_may_be_made(tmp_path: Path) -> None:
    """Reading makes no directories."""
    with pytest.raises(FileNotFoundError):
        open_directory(tmp_path / "a")


def test_replaced_file_has_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    """A file is readable for whom it is meant, and for nobody else while it is written."""
    before = os.umask(0o077)
    try:
        with open_directory(tmp_path) as directory:
            directory.replace("cert.pem", b"certificate", mode=0o644)
            directory.replace("key.pem", b"key", mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "cert.pem").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cert.pem", "key.pem"]


def test_new_file_never_replaces_another(tmp_path: Path) -> None:
    """`write_new` fails where something stands, be it a dangling link."""
    (tmp_path / "here").write_bytes(b"before")
    (tmp_path / "link").symlink_to("elsewhere")
    with open_directory(tmp_path) as directory:
        for name in ("here", "link"):
            with pytest.raises(FileExistsError):
                directory.write_new(name, b"after", mode=0o600)
    assert (tmp_path / "here").read_bytes() == b"before"
    assert not (tmp_path / "elsewhere").exists()


def test_planted_temporary_name_is_not_followed(tmp_path: Path) -> None:
    """A link at the temporary name, left by a crash or put there, is removed instead of written through."""
    (tmp_path / "victim").write_bytes(b"before")
    (tmp_path / temporary_name("key.pem")).symlink_to("victim")
    with open_directory(tmp_path) as directory:
        directory.replace("key.pem", b"key", mode=0o600)
    assert (tmp_path / "victim").read_bytes() == b"before"
    assert (tmp_path / "key.pem").read_bytes() == b"key"


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk refuses, the old file stays and no part of the new one is left."""
    (tmp_path / "key.pem").write_bytes(b"before")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with open_directory(tmp_path) as directory, pytest.raises(OSError, match="No space"):
        directory.replace("key.pem", b"after", mode=0o600)
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.pem"]
    assert (tmp_path / "key.pem").read_bytes() == b"before"


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    """A link isn't followed and a pipe doesn't hang the reader."""
    match kind:
        case "link":
            (tmp_path / "target").write_bytes(b"secret")
            (tmp_path / "here").symlink_to("target")
        case "fifo":
            os.mkfifo(tmp_path / "here")
        case "directory":
            (tmp_path / "here").mkdir()
    with open_directory(tmp_path) as directory, pytest.raises(OSError):
        directory.read("here")


def test_discarding_a_tree_does_not_follow_links(tmp_path: Path) -> None:
    """What a link in a discarded directory points at stays."""
    (tmp_path / "victim").write_bytes(b"before")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "link").symlink_to("../victim")
    with open_directory(tmp_path) as directory:
        directory.discard_tree("old")
        directory.discard_tree("never was")
    assert (tmp_path / "victim").exists()
    assert not (tmp_path / "old").exists()


@as_root
def test_owner_is_set_before_the_file_appears(tmp_path: Path) -> None:
    """A file is its owner's from its first moment under its name."""
    with open_directory(tmp_path) as directory:
        directory.prepare("key.pem", b"key", mode=0o640, owner=Owner(0, 33))
        status = (tmp_path / temporary_name("key.pem")).stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 33, 0o640)
        directory.commit("key.pem")
    assert (tmp_path / "key.pem").stat().st_gid == 33


def test_names_and_content_are_durable_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's content is synced before its name appears, and the directory after: a power cut shows old or new."""
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(fd: int) -> None:
        calls.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def spy_rename(*args: object, **kwargs: object) -> None:
        calls.append("rename")
        rename(*args, **kwargs)  # type: ignore[arg-type]  # passes through whatever it was given

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    with open_directory(tmp_path) as directory:
        directory.replace("key.pem", b"key", mode=0o600)
        directory.replace_with_link("current", "versions/1")
    assert calls == ["file", "rename", "directory", "rename", "directory"]


def test_a_link_that_cannot_be_made_is_told_by_its_own_path(tmp_path: Path) -> None:
    """And not by its target's, as symlink(2)'s error has it: a person would look there."""
    with open_directory(tmp_path) as directory, pytest.raises(OSError, match="too long") as caught:
        directory.replace_with_link("web.key", "/" + "x" * 5000)
    assert caught.value.filename == str(tmp_path / "web.key")
    assert list(tmp_path.iterdir()) == []
