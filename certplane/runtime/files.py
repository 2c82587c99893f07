"""Files that survive a power cut, written only where nobody else may write.

Everything goes through an open `Directory`: names are resolved in it (`dir_fd`), never again through a path that
somebody may have changed meanwhile. `open_directory` walks the path from the root, each component opened with
O_NOFOLLOW. As root it refuses a path that others may write, since who can rename a component decides what root
overwrites.

A file appears whole or not at all: temporary file (O_EXCL, O_NOFOLLOW, 0600), owner and mode set on the descriptor,
written, fsync, rename, fsync of the directory. The temporary name belongs to the final one, so that what a crash
leaves is found and removed by the next write, without a sweep through directories that aren't ours.

All of it blocks, and raises `OSError`, whose `filename` is the whole path, or `UnsafeDirectoryError`; callers say what
it means (`certplane.runtime.disk_errors`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from certplane.errors import OperationError

_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GET_FLAGS = 2 << 30 | struct.calcsize("l") << 16 | ord("f") << 8 | 1
"""FS_IOC_GETFLAGS: _IOR('f', 1, long) of linux/fs.h."""
_FIXED = 0x10 | 0x20
"""FS_IMMUTABLE_FL and FS_APPEND_FL."""
_NO_UNNAMED_FILES = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.ENOSYS})
"""From O_TMPFILE (open(2)) where the file system, or the kernel, has no such files."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class UnsafeDirectoryError(OperationError):
    """As root: a directory on the way may be written by others, or is reached through a link."""


@dataclass(frozen=True, slots=True)
class Owner:
    """User and group of a file, by number."""

    uid: int
    gid: int


def temporary_name(name: str) -> str:
    """What a file is called in its directory until it is whole. Hidden: services that load a directory skip it."""
    return f".{name}.certplane-new"


def why_unsafe(mode: int, uid: int, *, last: bool) -> str | None:
    """Why root must not write below a directory of this mode and owner; None if it may.

    A sticky directory (/tmp) is passed through, since only an entry's owner renames it, but not written into: whoever
    came first may have put the file there that root would take for its own.
    """
    if uid != 0:
        return f"belongs to user {uid}"
    if mode & _OTHERS_WRITE and (last or not mode & stat.S_ISVTX):
        who = "everybody" if mode & stat.S_IWOTH else "its group"
        return f"may be written by {who} (mode {stat.S_IMODE(mode):04o})"
    return None


def open_directory(path: Path, *, create_mode: int | None = None) -> Directory:
    """The directory at an absolute `path`, no component of which is a link.

    Args:
        path: Absolute, without `..`.
        create_mode: The mode of directories that are missing; they are durable on return. None: nothing is created.

    Raises:
        UnsafeDirectoryError: a component is a link, or (as root) others may write it.
        OSError: it doesn't exist, or can't be opened or created.
    """
    return _open(path, create_mode, guarded=os.geteuid() == 0)


def open_for_reading(path: Path) -> Directory:
    """The same for who writes nothing there: as root too, whoever else may write it.

    Raises:
        UnsafeDirectoryError: a component is a link.
        OSError: it doesn't exist, or can't be opened.
    """
    return _open(path, None, guarded=False)


def _open(path: Path, create_mode: int | None, *, guarded: bool) -> Directory:
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"not an absolute path without ..: {path}")
    here = Path("/")
    fd = os.open("/", _WALK)
    try:
        for name in path.parts[1:]:
            if guarded:
                _refuse_unsafe(fd, here, last=False)
            below = _step(fd, here / name, create_mode)
            os.close(fd)
            fd, here = below, here / name
        if guarded:
            _refuse_unsafe(fd, here, last=True)
        with _located(here):
            return Directory(os.open(".", _LIST, dir_fd=fd), here)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _located(path: Path) -> Iterator[None]:
    """Let an `OSError` name the whole path: a descriptor's calls know one component of it, or nothing."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (isinstance(error.filename, str) and error.filename.startswith("/")):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _step(fd: int, path: Path, create_mode: int | None) -> int:
    with _located(path):
        try:
            return _open_below(fd, path, _WALK)
        except FileNotFoundError:
            if create_mode is None:
                raise
        with contextlib.suppress(FileExistsError):
            _make(fd, path.name, create_mode)
        return _open_below(fd, path, _WALK)


def _make(fd: int, name: str, mode: int) -> None:
    """A new, durable directory of exactly this mode, whatever the umask says."""
    os.mkdir(name, 0o700, dir_fd=fd)
    for path, change in ((name, True), (".", False)):
        listed = os.open(path, _LIST, dir_fd=fd)  # an O_PATH descriptor can be neither changed nor synced
        try:
            if change:
                os.fchmod(listed, mode)
            os.fsync(listed)
        finally:
            os.close(listed)


def _open_below(fd: int, path: Path, flags: int) -> int:
    try:
        return os.open(path.name, flags, dir_fd=fd)
    except OSError as error:
        if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
            raise
        if stat.S_ISLNK(os.stat(path.name, dir_fd=fd, follow_symlinks=False).st_mode):
            raise UnsafeDirectoryError(
                f"{path} is a symbolic link where a directory is expected",
                remedy=f"configure the directory that it names ({path.resolve()})",
            ) from error
        raise


def _refuse_unsafe(fd: int, path: Path, *, last: bool) -> None:
    status = os.fstat(fd)
    why = why_unsafe(status.st_mode, status.st_uid, last=last)
    if why is not None:
        raise UnsafeDirectoryError(
            f"{path} {why}, and root writes keys only where nobody else may",
            remedy=f"run it as the directory's owner, choose another directory, or, where no service of another user "
            f"works in it, chown root {path} && chmod go-w {path}",
        )


class Directory:
    """An open directory; a context manager. Names are plain: no `/`. Not shared between threads."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self.path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; the object is of no use afterwards."""
        os.close(self._fd)

    def names(self) -> list[str]:
        """Everything in it, unordered."""
        with _located(self.path):
            return os.listdir(self._fd)  # noqa: PTH208 - Path can't list a descriptor

    def status(self, name: str) -> os.stat_result | None:
        """The entry itself, a link not followed; None if there is none."""
        with _located(self.path / name):
            try:
                return os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def read(self, name: str, *, most: int | None = None) -> bytes:
        """A regular file's bytes; a link is refused (ELOOP), and so is anything that isn't a regular file (EINVAL).

        Args:
            name: The file's.
            most: More octets than this are refused (EFBIG).
        """
        with _located(self.path / name):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
            with os.fdopen(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise OSError(errno.EINVAL, "not a regular file", str(self.path / name))
                if most is not None and os.fstat(fd).st_size > most:
                    raise OSError(errno.EFBIG, "larger than such a file ever is", str(self.path / name))
                return file.read()

    def link_target(self, name: str) -> str | None:
        """Where the symbolic link `name` points; None if there is no such link."""
        with _located(self.path / name):
            try:
                return os.readlink(name, dir_fd=self._fd)
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno == errno.EINVAL:  # readlink(2): not a link
                    return None
                raise

    def child(self, name: str, *, create_mode: int | None = None) -> Directory:
        """A directory in it; created (and durable) if missing and `create_mode` says so."""
        below = _step(self._fd, self.path / name, create_mode)
        try:
            return Directory(os.open(".", _LIST, dir_fd=below), self.path / name)
        finally:
            os.close(below)

    def write_new(self, name: str, data: bytes, *, mode: int, owner: Owner | None = None) -> None:
        """Write a file that must not exist yet; its content is durable, its name is after `sync`."""
        with _located(self.path / name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=self._fd)
            try:
                with os.fdopen(fd, "wb", buffering=0) as file:
                    if owner is not None:
                        os.fchown(fd, owner.uid, owner.gid)
                    os.fchmod(fd, mode)
                    view = memoryview(data)
                    while view:
                        view = view[file.write(view) :]
                    os.fsync(fd)
            except BaseException:
                self.discard(name)
                raise

    def prepare(self, name: str, data: bytes, *, mode: int, owner: Owner | None = None) -> None:
        """Write what `commit` will make `name`, under its temporary name."""
        temporary = temporary_name(name)
        self.discard(temporary)
        self.write_new(temporary, data, mode=mode, owner=owner)

    def commit(self, name: str) -> None:
        """Put the prepared file in place of `name`, atomically; durable after `sync`."""
        self.rename(temporary_name(name), name)

    def replace(self, name: str, data: bytes, *, mode: int, owner: Owner | None = None) -> None:
        """Replace a file, or make it, atomically and durably."""
        self.prepare(name, data, mode=mode, owner=owner)
        self.commit(name)
        self.sync()

    def replace_with_link(self, name: str, target: str) -> None:
        """Make `name` a symbolic link, atomically and durably, whatever file or link it was."""
        with _located(self.path / name):
            temporary = temporary_name(name)
            self.discard(temporary)
            try:
                try:
                    os.symlink(target, temporary, dir_fd=self._fd)
                except OSError as error:  # which names the target, where nothing is wrong
                    raise OSError(error.errno, error.strerror, str(self.path / name)) from error
                self.rename(temporary, name)
            except BaseException:
                self.discard(temporary)
                raise
            self.sync()

    def rename(self, old: str, new: str) -> None:
        """Rename in this directory, atomically; durable after `sync`."""
        with _located(self.path / new):
            os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def set_aside(self, name: str) -> Path:
        """Rename what stands in the way to the first free `name.N`, durably, and return that: nothing is destroyed."""
        aside = next(each for number in count(1) if self.status(each := f"{name}.{number}") is None)
        self.rename(name, aside)
        self.sync()
        return self.path / aside

    def make(self, name: str, *, mode: int) -> Directory:
        """A new, empty, durable directory in it; `mode` whatever the umask says."""
        with _located(self.path / name):
            _make(self._fd, name, mode)
            return self.child(name)

    def open_lasting(self, name: str, *, mode: int) -> int:
        """A descriptor, for reading and writing, of a file that stays for good: opened, or made if it is missing."""
        with _located(self.path / name):
            return os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=self._fd)

    def permit(self, name: str, *, mode: int, owner: Owner) -> None:
        """Set a file's mode and owner, on its descriptor, if they differ; a link is refused."""
        with _located(self.path / name):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
            try:
                status = os.fstat(fd)
                if (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) != (owner.uid, owner.gid, mode):
                    # Narrowed first: the new owner must not read by the old mode, nor the old owner by the new one.
                    if stat.S_IMODE(status.st_mode) & ~mode:
                        os.fchmod(fd, stat.S_IMODE(status.st_mode) & mode)
                    os.fchown(fd, owner.uid, owner.gid)
                    os.fchmod(fd, mode)
                    os.fsync(fd)
            finally:
                os.close(fd)

    def discard(self, name: str) -> None:
        """Remove a file or link if it is there; durable after `sync`."""
        with _located(self.path / name), contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def discard_tree(self, name: str) -> None:
        """Remove a directory of files (one level, as all here are) if it is there; links in it are not followed."""
        with _located(self.path / name):
            if self.status(name) is None:
                return
            with self.child(name) as below:
                for entry in below.names():
                    below.discard(entry)
            os.rmdir(name, dir_fd=self._fd)

    def try_new_file(self, octets: int, owners: Iterable[Owner] = ()) -> None:
        """See whether a file can be written here and given to these owners; nothing is left, and nobody sees it.

        Raises:
            OSError: it can't, as a file's writing would.
        """
        with _located(self.path):
            fd = self._open_unseen()
            try:
                view = memoryview(bytes(octets))
                while view:
                    view = view[os.write(fd, view) :]
                for owner in owners:
                    os.fchown(fd, owner.uid, owner.gid)
            finally:
                os.close(fd)

    def _open_unseen(self) -> int:
        """A file without a name, or, where the file system knows none, one whose name is gone again."""
        try:
            return os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        except OSError as error:
            if error.errno not in _NO_UNNAMED_FILES:
                raise
        name = temporary_name("trial")
        self.discard(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._fd)
        self.discard(name)
        return fd

    def is_fixed(self, name: str = "") -> bool:
        """Whether a file, or with no name this directory, is immutable or append-only (chattr(1)): not replaceable."""
        try:
            fd = os.open(name or ".", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError:
            return False
        try:
            (flags,) = struct.unpack("l", fcntl.ioctl(fd, _GET_FLAGS, struct.pack("l", 0)))
        except OSError:  # a file system without such flags
            return False
        finally:
            os.close(fd)
        return bool(flags & _FIXED)

    def sync(self) -> None:
        """Make its entries durable."""
        with _located(self.path):
            os.fsync(self._fd)


def give_to_service(made: int | Path, folder: Path) -> None:
    """What root makes in a service's folder is the service's, which couldn't use it otherwise; of others, nothing.

    Args:
        made: A file that was made by this very call (O_EXCL), by its descriptor, or such a directory.
        folder: Where it was made.
    """
    if os.geteuid() == 0:
        status = folder.stat()
        os.chown(made, status.st_uid, status.st_gid, follow_symlinks=isinstance(made, int))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: it can't be opened or synced.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
