"""Obstacles that an installation would meet, found before anything is ordered, and nothing changed by the looking."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certplane.agent.install.access import FileAccess
from certplane.agent.install.material import Outputs, Part
from certplane.agent.install.trial import find_obstacles
from certplane.agent.model import InstallMode

NOBODY = 65534

as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root gives files away, mounts, makes immutable, and is let in to /proc"
)
both_modes = pytest.mark.parametrize("mode", list(InstallMode))


class Place:
    """A lineage and one output, each in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lineage = root / "state" / "certificates" / "web"
        self.key = root / "tls" / "web.key"
        self.access: dict[Part, FileAccess] = {}
        self.undo: list[list[str]] = []
        (root / "state").mkdir()
        self.key.parent.mkdir()

    def found(self, mode: InstallMode = InstallMode.LINK) -> list[str]:
        obstacles = find_obstacles(self.lineage, Outputs(key=self.key), self.access, mode=mode)
        assert all(obstacle.remedy for obstacle in obstacles), obstacles
        return [str(obstacle) for obstacle in obstacles]

    def run(self, *command: str, undo: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{command[0]} isn't allowed here: {done.stderr.strip()}")
        self.undo.append(undo)

    def snapshot(self) -> list[tuple[object, ...]]:
        """Everything that a look must leave as it is; the times of folders too."""
        entries = [self.root, *sorted(self.root.rglob("*"))]
        states = [(path, path.lstat()) for path in entries]
        return [(path, state.st_ino, state.st_mode, state.st_uid, state.st_mtime_ns) for path, state in states]


@pytest.fixture
def place() -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="certplane-trial-"))
    root.chmod(0o755)
    place = Place(root)
    yield place
    for command in reversed(place.undo):
        subprocess.run(command, check=True)
    shutil.rmtree(root)


@both_modes
def test_nothing_in_the_way(place: Place, mode: InstallMode) -> None:
    """Missing folders, a file to import, our own links: no obstacles, and nothing has changed."""
    before = place.snapshot()
    assert place.found(mode) == []
    place.key.write_text("a key")
    place.key = place.root / "other" / "deep" / "web.key"
    before = place.snapshot()
    assert place.found(mode) == []
    assert place.snapshot() == before


def as_directory(place: Place) -> None:
    place.key.mkdir()


def as_fifo(place: Place) -> None:
    os.mkfifo(place.key)


def dangling(place: Place) -> None:
    place.key.symlink_to("/nowhere/web.key")


def loop(place: Place) -> None:
    place.key.symlink_to(place.key.name)


def to_directory(place: Place) -> None:
    place.key.symlink_to("/usr/bin")


def to_device(place: Place) -> None:
    place.key.symlink_to("/dev/null")


def parent_is_file(place: Place) -> None:
    place.key.parent.rmdir()
    place.key.parent.write_text("a file")


def grandparent_is_file(place: Place) -> None:
    place.key = place.root / "file" / "tls" / "web.key"
    (place.root / "file").write_text("a file")


def parent_is_link(place: Place) -> None:
    place.key.parent.rmdir()
    (place.root / "real").mkdir()
    place.key.parent.symlink_to(place.root / "real")


def not_creatable(place: Place) -> None:
    place.key = Path("/proc/certplane/web.key")


def not_writable_at_all(place: Place) -> None:
    place.key = Path("/proc/web.key")


def long_name(place: Place) -> None:
    place.key = place.key.with_name("k" * 250)


def temporary_is_directory(place: Place) -> None:
    (place.key.parent / ".web.key.certplane-new").mkdir()


def large(place: Place) -> None:
    with place.key.open("wb") as file:
        file.truncate((1 << 20) + 1)


def another_users_folder(place: Place) -> None:
    os.chown(place.key.parent, NOBODY, NOBODY)


def group_writable_folder(place: Place) -> None:
    place.key.parent.chmod(0o775)


def another_users_folder_above(place: Place) -> None:
    place.key = place.root / "above" / "tls" / "web.key"
    (place.root / "above").mkdir()
    os.chown(place.root / "above", NOBODY, NOBODY)


def read_only_mount(place: Place) -> None:
    folder = str(place.key.parent)
    place.run("mount", "-t", "tmpfs", "-o", "ro,mode=0755", "none", folder, undo=["umount", folder])


def full_mount(place: Place) -> None:
    folder = str(place.key.parent)
    place.run("mount", "-t", "tmpfs", "-o", "size=64k,mode=0755", "none", folder, undo=["umount", folder])


def mounted_file(place: Place) -> None:
    place.key.write_text("a key")
    source = place.root / "source.key"
    source.write_text("a key")
    place.run("mount", "--bind", str(source), str(place.key), undo=["umount", str(place.key)])


def mounted_file_with_space(place: Place) -> None:
    place.key = place.key.with_name("web key.pem")
    mounted_file(place)


def immutable_file(place: Place) -> None:
    place.key.write_text("a key")
    place.run("chattr", "+i", str(place.key), undo=["chattr", "-i", str(place.key)])


def append_only_folder(place: Place) -> None:
    place.run("chattr", "+a", str(place.key.parent), undo=["chattr", "-a", str(place.key.parent)])


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        pytest.param(as_directory, "web.key is a directory", id="directory"),
        pytest.param(as_fifo, "web.key is a FIFO", id="FIFO"),
        pytest.param(dangling, "link to /nowhere/web.key, which isn't there", id="dangling link"),
        pytest.param(loop, "which isn't there", id="link to itself"),
        pytest.param(to_directory, "which is a directory", id="link to a directory"),
        pytest.param(to_device, "which is a device", id="link to a device"),
        pytest.param(parent_is_file, "tls is no directory", id="parent is a file"),
        pytest.param(grandparent_is_file, "file is no directory", id="its parent is one"),
        pytest.param(parent_is_link, "is a symbolic link where a directory is expected", id="parent is a link"),
        pytest.param(not_creatable, "nothing can be made in /proc", id="not creatable", marks=as_root),
        pytest.param(not_writable_at_all, "nothing can be made in /proc", id="nothing is written there", marks=as_root),
        pytest.param(long_name, "has too long a name", id="long name"),
        pytest.param(temporary_is_directory, ".web.key.certplane-new is a directory", id="temporary name taken"),
        pytest.param(large, "no key or certificate", id="large file"),
        pytest.param(another_users_folder, f"belongs to user {NOBODY}", id="folder of another user", marks=as_root),
        pytest.param(another_users_folder_above, f"belongs to user {NOBODY}", id="one above it", marks=as_root),
        pytest.param(group_writable_folder, "may be written by its group", id="group-writable", marks=as_root),
        pytest.param(read_only_mount, "read-only", id="read-only mount", marks=as_root),
        pytest.param(full_mount, "a disk that is full", id="full disk", marks=as_root),
        pytest.param(mounted_file, "web.key is a mount point", id="single-file mount", marks=as_root),
        pytest.param(mounted_file_with_space, "web key.pem is a mount point", id="its name has a space", marks=as_root),
        pytest.param(immutable_file, "immutable or append-only", id="immutable file", marks=as_root),
        pytest.param(append_only_folder, "immutable or append-only", id="append-only folder", marks=as_root),
    ],
)
@both_modes
def test_obstacles(place: Place, mode: InstallMode, plant: Callable[[Place], None], words: str) -> None:
    """Which output, which path, why, and what to do; never a bare errno; nothing is changed by looking."""
    plant(place)
    before = place.snapshot()
    (found,) = place.found(mode)
    assert found.startswith("key: ")
    assert words in found
    assert "Errno" not in found
    assert place.snapshot() == before


def test_own_links_need_no_change_of_their_folder(place: Place) -> None:
    """A version shows through links that are there already, wherever they lie: nothing is written beside them."""
    place.lineage.mkdir(parents=True)
    place.key.symlink_to(place.lineage / "current" / "privkey.pem")
    read_only_after = place.key.parent
    place.run("chattr", "+i", str(read_only_after), undo=["chattr", "-i", str(read_only_after)])
    assert place.found() == []
    assert len(place.found(InstallMode.COPY)) == 1


@as_root
@pytest.mark.parametrize(
    ("plant", "words"),
    [
        pytest.param(lambda state: os.chown(state, NOBODY, NOBODY), f"belongs to user {NOBODY}", id="another user's"),
        pytest.param(lambda state: state.chmod(0o777), "may be written by everybody", id="everybody's"),
        pytest.param(lambda state: (state.rmdir(), state.write_text("")), "is no directory", id="a file"),
    ],
)
def test_state_dir(place: Place, plant: Callable[[Path], object], words: str) -> None:
    """The agent's own folder is tried like the outputs'."""
    plant(place.root / "state")
    (found,) = place.found()
    assert found.startswith("state_dir: ")
    assert words in found


@as_root
def test_state_dir_that_is_read_only(place: Place) -> None:
    """On a disk that was mounted read-only, as after an error."""
    folder = str(place.root / "state")
    place.run("mount", "-t", "tmpfs", "-o", "ro,mode=0755", "none", folder, undo=["umount", folder])
    (found,) = place.found()
    assert found.startswith("state_dir: ")
    assert "ReadWritePaths=" in found


@as_root
def test_state_dir_that_is_full(place: Place) -> None:
    """Room for one version is needed."""
    folder = str(place.root / "state")
    place.run("mount", "-t", "tmpfs", "-o", "size=64k,mode=0755", "none", folder, undo=["umount", folder])
    (found,) = place.found()
    assert "make room on the disk" in found


@pytest.mark.parametrize(
    ("access", "words"),
    [
        pytest.param(FileAccess(owner="certplane-nobody"), "no user certplane-nobody", id="user"),
        pytest.param(FileAccess(group="certplane nobodies"), "no group certplane nobodies", id="group"),
        pytest.param(FileAccess(owner="DOMAIN\\nobody"), "no user DOMAIN\\nobody", id="a domain's user"),
        pytest.param(FileAccess(owner="99999999999"), "is no number of a user", id="number"),
        pytest.param(FileAccess(group=str(2**32 - 1)), "is no number of a group", id="minus one"),
    ],
)
@both_modes
def test_owners_that_are_not_there(place: Place, mode: InstallMode, access: FileAccess, words: str) -> None:
    """A user or group that the system doesn't know."""
    place.access = {Part.PRIVKEY: access}
    (found,) = place.found(mode)
    assert words in found


@as_root
@both_modes
def test_as_another_user(place: Place, mode: InstallMode) -> None:
    """Who isn't root is told what he can't do: write there, read what stands there, give files away."""

    def obstacles() -> list[str]:
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                os.write(writer, "\n".join(place.found(mode)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        return text.splitlines()

    (found,) = [line for line in obstacles() if line.startswith("state_dir")]
    assert f"{place.root / 'state'} can't be written by user nobody" in found
    os.chown(place.root / "state", NOBODY, NOBODY)
    (found,) = obstacles()
    assert f"key: {place.key.parent} can't be written by user nobody" in found
    os.chown(place.key.parent, NOBODY, NOBODY)
    assert obstacles() == []
    place.access = {Part.PRIVKEY: FileAccess(group="0")}
    (found,) = obstacles()
    assert "can't give files in" in found
    assert "a member of the group" in found
    place.access = {}
    place.key.write_text("a key")
    place.key.chmod(0o600)
    (found,) = obstacles()
    assert f"{place.key} can't be used by user nobody" in found
    place.key.chmod(0o644)
    assert bool(obstacles()) == (mode is InstallMode.COPY)  # a copy would be root's, as the file is
    os.chown(place.key, NOBODY, NOBODY)
    place.key.parent.chmod(stat.S_ISVTX | 0o777)
    os.chown(place.key.parent, 0, 0)
    assert obstacles() == []
    place.key.chmod(0o644)
    os.chown(place.key, 0, 0)
    (found,) = obstacles()
    assert ("in a sticky folder" if mode is InstallMode.LINK else "can't give files in") in found


def test_file_systems_without_unnamed_files(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file needs a name, a hidden one is made and is gone again."""
    opened = os.open
    tried = []

    def without(path: object, flags: int, *rest: object, **named: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            tried.append(path)
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return opened(path, flags, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", without)
    assert place.found() == []
    assert tried
    assert list(place.key.parent.iterdir()) == []
