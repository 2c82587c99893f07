"""The password of a PKCS#12 file: one line of UTF-8, and not a character that somebody didn't mean.

What an editor or a shell adds unseen (a byte order mark, a second line, a space) would silently be part of the
password, and whoever types it into Java's configuration then reads that it is incorrect. One line end at the end
belongs to the file and is dropped; white space at an end is kept, and told.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from certplane.config.files import read_private_file
from certplane.errors import ConfigurationError, ConfigurationProblem

_MOST = 1024
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class PasswordFile:
    """The file of one password. `problem` makes a problem of a message and a remedy, with the place of its key."""

    path: Path
    problem: Callable[[str, str], ConfigurationProblem]

    def read(self) -> bytes:
        """The password. Blocks.

        Raises:
            ConfigurationError: it can't be read, or is none; nothing of it is part of the message.
        """
        content = read_private_file(self.path, at=self.problem("", ""), max_bytes=_MOST)
        if content.startswith(_MARKS):
            remedy = "save it as UTF-8 without that mark"
            raise self._error("begins with a byte order mark, which would be part of the password", remedy)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._error(
                "isn't UTF-8, and other programs would read another password",
                f"convert it (`iconv -f latin1 -t utf-8`), or make a new one: `openssl rand -base64 24 > {self.path}`",
            ) from error
        password = _one_line(text)
        if not password:
            raise self._error("is empty", "put the password there")
        if "\n" in password or "\r" in password:
            raise self._error("has more than one line", "leave the password alone in it, in one line")
        if any(character < " " or "\x7f" <= character < "\xa0" for character in password):
            raise self._error("has control characters", "put the password there as plain text")
        return password.encode()

    def warning(self) -> str:
        """What may be meant otherwise; empty if nothing is. Blocks.

        Raises:
            ConfigurationError: as `read`.
        """
        password = self.read().decode()
        if password != password.strip():
            what = "leading or trailing spaces"
        elif not password.isprintable():
            what = "invisible characters, such as a zero-width space"
        elif len(password) > 1 and password[0] == password[-1] and password[0] in "\"'":
            what = "quotes around the password"
        else:
            return ""
        return f"{self.path} has {what}, and they are part of the password; remove them unless they are meant"

    def _error(self, message: str, remedy: str) -> ConfigurationError:
        return ConfigurationError([self.problem(f"{self.path} {message}", remedy)])


def _one_line(text: str) -> str:
    for end in ("\r\n", "\n", "\r"):
        if text.endswith(end):
            return text.removesuffix(end)
    return text
