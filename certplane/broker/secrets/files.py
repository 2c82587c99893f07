"""Secrets from files below one directory: `cloudflare/whisper-cl` is the file `<directory>/cloudflare/whisper-cl`.

Profiles name secrets, and who edits the policy must not thereby read the host: a name never leads out of the
directory. There is no `..`, no absolute name, and no component is a link. A file that everybody can read is no secret
and is refused.

systemd's credentials directory is flat: there, `cloudflare/whisper-cl` is the credential `cloudflare_whisper-cl`, the
id that `LoadCredential=cloudflare:<directory>` gives to the file `whisper-cl` (systemd.exec(5)).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from certplane.broker.ports import SecretSource
from certplane.errors import Reason, RefusalError
from certplane.runtime.pool import BlockingPool

_LARGEST = 64 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: a FIFO must not hold the thread


class NotASecretError(Exception):
    """A file that isn't one secret; the text says why, after its name, and quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class FileSecretsSettings:
    """`secrets.file`: secrets as files below one directory; nothing outside it is read.

    Without `directory` it is systemd's credentials directory where the broker has one, else /etc/certplane/secrets.
    """

    directory: Path | None = None


class FileSecrets(SecretSource):
    """The port `SecretSource` on files."""

    def __init__(self, directory: Path, pool: BlockingPool, *, flat: bool = False) -> None:
        """`directory` itself may be reached through links: it is the operator's word. Reads run on `pool`.

        Args:
            directory: what holds the secrets.
            pool: where files are read.
            flat: whether it is systemd's, where `_` stands for the `/` of names.
        """
        self._directory = directory
        self._pool = pool
        self._flat = flat

    @override
    async def read(self, name: str) -> str:
        return await self._pool.run(self._read, name)

    def _read(self, name: str) -> str:
        parts = name.split("/")
        if not name or "\0" in name or any(part in {"", ".", ".."} for part in parts):
            raise _refused(name, "isn't the name of a file below the secrets directory")
        if self._flat:
            parts = ["_".join(parts)]
        try:
            return decode_secret(self._content(parts))
        except NotASecretError as error:
            raise _refused(name, str(error)) from error.__cause__

    def _content(self, parts: list[str]) -> bytes:
        try:
            folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for part in parts[:-1]:
                    below = os.open(part, _FOLDER, dir_fd=folder)
                    os.close(folder)
                    folder = below
                return _content(os.open(parts[-1], _FILE | os.O_NOFOLLOW, dir_fd=folder))
            finally:
                os.close(folder)
        except OSError as error:
            raise NotASecretError(f"can't be read: {error.strerror}") from error


def read_secret_file(path: Path) -> bytes:
    """The content of a file that the configuration names. Blocks.

    Raises:
        NotASecretError: it isn't there, isn't a regular file, is too large, or everybody can read it.
    """
    try:
        return _content(os.open(path, _FILE))
    except OSError as error:
        raise NotASecretError(f"can't be read: {error.strerror}") from error


def decode_secret(content: bytes) -> str:
    """A file's content as a secret, without line ends after it.

    Raises:
        NotASecretError: it is empty or isn't UTF-8.
    """
    try:
        secret = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        # The cause quotes the content: it is cut off on purpose.
        raise NotASecretError("isn't text") from None
    if not secret:
        raise NotASecretError("is empty")
    return secret


def _content(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_mode & stat.S_IRWXO or status.st_size > _LARGEST:
            raise NotASecretError("isn't a regular file, is too large, or everybody can read it (chmod o-rwx)")
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise NotASecretError("is too large")  # it grew since
    return content


def _refused(name: str, why: str) -> RefusalError:
    return RefusalError(Reason.DNS_REJECTED, f"the secret {name!r} {why}")
