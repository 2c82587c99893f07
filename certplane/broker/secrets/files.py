"""Secrets from files below one directory: `cloudflare/whisper-cl` is the file `<directory>/cloudflare/whisper-cl`.

Profiles name secrets, and who edits the policy must not thereby read the host: a name never leads out of the
directory. There is no `..`, no absolute name, and no component is a link. A file that everybody can read is no secret
and is refused.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from certplane.errors import Reason, RefusalError

if TYPE_CHECKING:
    from pathlib import Path

    from certplane.runtime.pool import BlockingPool

__all__ = ["FileSecrets"]

_LARGEST = 64 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: a FIFO must not hold the thread


class FileSecrets:
    """The port `SecretSource` on files."""

    def __init__(self, directory: Path, pool: BlockingPool) -> None:
        """`directory` itself may be reached through links: it is the operator's word. Reads run on `pool`."""
        self._directory = directory
        self._pool = pool

    async def read(self, name: str) -> str:
        """See `SecretSource.read`."""
        return await self._pool.run(self._read, name)

    def _read(self, name: str) -> str:
        parts = name.split("/")
        if not name or "\0" in name or any(part in {"", ".", ".."} for part in parts):
            raise _refused(name, "isn't a name of a file below the secrets' directory")
        try:
            content = self._content(parts)
        except OSError as error:
            raise _refused(name, f"can't be read: {error.strerror}") from error
        if content is None:
            raise _refused(name, "isn't a regular file, is too large, or everybody can read it (chmod 600)")
        try:
            secret = content.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            # The cause quotes the content: it is cut off on purpose.
            raise _refused(name, "isn't text") from None
        if not secret:
            raise _refused(name, "is empty")
        return secret

    def _content(self, parts: list[str]) -> bytes | None:
        """The file's content, None if it must not be used."""
        folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts[:-1]:
                below = os.open(part, _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = below
            descriptor = os.open(parts[-1], _FILE, dir_fd=folder)
        finally:
            os.close(folder)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_mode & stat.S_IRWXO or status.st_size > _LARGEST:
                return None
            return file.read(_LARGEST + 1)


def _refused(name: str, why: str) -> RefusalError:
    return RefusalError(Reason.DNS_REJECTED, f"the secret {name!r} {why}")
