"""The password of a PKCS#12 file: what belongs to it, and what was never meant to."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import pkcs12

from certplane.agent.install.password import PasswordFile
from certplane.errors import ConfigurationError, ConfigurationProblem

CASES = Path(__file__).parents[3] / "cases"


def password_file(folder: Path, content: bytes) -> PasswordFile:
    path = folder / "password"
    path.write_bytes(content)
    path.chmod(0o600)
    return PasswordFile(path, lambda message, remedy: ConfigurationProblem("agent.yml", 7, "key", message, remedy))


@pytest.mark.parametrize(
    ("content", "password"),
    [
        pytest.param(b"secret", "secret", id="no line end"),
        pytest.param(b"secret\n", "secret", id="LF"),
        pytest.param(b"secret\r\n", "secret", id="CRLF"),
        pytest.param(b"secret\r", "secret", id="CR"),
        pytest.param("pässwörd\n".encode(), "pässwörd", id="UTF-8"),
        pytest.param(b" two words \n", " two words ", id="spaces belong to it"),
    ],
)
def test_passwords(tmp_path: Path, content: bytes, password: str) -> None:
    """One line, without its end, to the character."""
    file = password_file(tmp_path, content)
    assert file.read() == password.encode()
    assert ("leading or trailing spaces" in file.warning()) == (password != password.strip())


@pytest.mark.parametrize(
    ("password", "words"),
    [
        pytest.param("secret ", "leading or trailing spaces", id="space"),
        pytest.param("\u00a0secret", "leading or trailing spaces", id="no-break space"),
        pytest.param("sec\u200bret", "invisible", id="zero-width space"),
        pytest.param("sec\ufeffret", "invisible", id="byte order mark inside"),
        pytest.param("sec\u202eret", "invisible", id="right-to-left override"),
        pytest.param("sec\u2028ret", "invisible", id="line separator"),
        pytest.param('"secret"', "quotes around", id="quotes"),
        pytest.param("'", "", id="one quote"),
        pytest.param("grüße \U0001f600", "", id="letters, a space and a picture"),
    ],
)
def test_what_may_not_be_meant(tmp_path: Path, password: str, words: str) -> None:
    """What is in a password unseen, or seen and not meant, is told, and stays part of it."""
    file = password_file(tmp_path, password.encode() + b"\n")
    assert file.read() == password.encode()
    assert words in file.warning() if words else file.warning() == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"\n", "is empty", id="a line end"),
        pytest.param(b"\r\n", "is empty", id="a CRLF"),
        pytest.param(b"\xef\xbb\xbfsecret\n", "byte order mark", id="BOM"),
        pytest.param("secret".encode("utf-16"), "byte order mark", id="UTF-16"),
        pytest.param(b"secret\n\n", "more than one line", id="blank line after it"),
        pytest.param(b"secret\nsecond\n", "more than one line", id="second line"),
        pytest.param(b"\nsecret", "more than one line", id="blank line before it"),
        pytest.param(b"sec\0ret", "control characters", id="NUL"),
        pytest.param(b"secret\x1b[A", "control characters", id="an arrow key"),
        pytest.param((CASES / "A2/password-latin1").read_bytes(), "isn't UTF-8", id="Latin-1"),
        pytest.param((CASES / "A2/password-random-bytes").read_bytes(), "isn't UTF-8", id="random bytes"),
        pytest.param(b"x" * 1025, "larger than", id="long"),
    ],
)
def test_what_is_no_password(tmp_path: Path, content: bytes, words: str) -> None:
    """Refused with place, cause and remedy, and without a character of it."""
    file = password_file(tmp_path, content)
    with pytest.raises(ConfigurationError, match=words) as refused:
        file.read()
    (problem,) = refused.value.problems
    assert (problem.line, problem.key) == (7, "key")
    assert problem.remedy
    assert "secret" not in str(problem)


def test_the_library_would_have_raised_something_else() -> None:
    """Why it is judged here: `cryptography` ends with a TypeError, which ended the agent."""
    with pytest.raises((TypeError, ValueError)):
        pkcs12.load_pkcs12(b"", (CASES / "A2/password-latin1").read_bytes())
