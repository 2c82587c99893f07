"""PEM is blocks and white space; whatever else a text holds is an error, not skipped."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.pki.pem import PemError, decode_pem, encode_pem, has_private_key

ONE = encode_pem("THING", b"one")
TWO = encode_pem("THING", b"two")


def _decode(text: str, *, max_blocks: int = 2, comments: bool = False) -> list[bytes]:
    return [der for _, der in decode_pem(text, "THING", max_blocks=max_blocks, max_length=1000, comments=comments)]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(ONE + TWO, id="as-written"),
        pytest.param(f"\n\n {ONE}\n\t\n{TWO}  \n", id="white-space-between"),
        pytest.param((ONE + TWO).replace("\n", "\r\n"), id="crlf"),
        pytest.param((ONE + TWO).rstrip("\n"), id="no-final-newline"),
        pytest.param((ONE + TWO).replace("b25l", "b2\n5l"), id="short-lines"),
    ],
)
def test_reads_blocks(text: str) -> None:
    """Blocks in order, in any layout that RFC 7468 3 allows."""
    assert _decode(text) == [b"one", b"two"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "no PEM block", id="empty"),
        pytest.param(" \n", "no PEM block", id="white-space"),
        pytest.param(ONE + "x", "not a PEM block", id="text-after"),
        pytest.param("x" + ONE, "not a PEM block", id="text-before"),
        pytest.param(ONE + "# comment\n" + TWO, "not a PEM block", id="text-between"),
        pytest.param(ONE + encode_pem("OTHER", b"x"), "'OTHER' where only THING", id="other-label"),
        pytest.param(ONE + ONE + ONE, "over 2 blocks", id="too-many"),
        pytest.param(ONE[:-5], "not a PEM block", id="cut-off"),
        pytest.param(ONE.replace("END THING", "END THINGS"), "not a PEM block", id="labels-differ"),
        pytest.param(ONE.replace("b25l", "b25"), "base64", id="base64-length"),
        pytest.param(ONE.replace("b25l", "b2=5l"), "base64", id="base64-padding-inside"),
        pytest.param(ONE.replace("b25l", "b2-l"), "not a PEM block", id="url-safe-base64"),
        pytest.param(ONE.replace("b25l", "Proc-Type: 4,ENCRYPTED\n\nb25l"), "not a PEM block", id="headers"),
        pytest.param(ONE + "\u00a0", "not a PEM block", id="no-break-space"),
        pytest.param("\n" * 2000 + ONE, "longer than 1000", id="too-long"),
    ],
)
def test_refuses(text: str, problem: str) -> None:
    """Each way to hide something in a PEM text is refused and named."""
    with pytest.raises(PemError, match=problem):
        _decode(text)


def test_one_block_means_one() -> None:
    """Where one block belongs, a second is not ignored."""
    with pytest.raises(PemError, match="more than one PEM block"):
        _decode(ONE + TWO, max_blocks=1)


def test_comments_where_they_belong() -> None:
    """CA bundles carry text between certificates; blocks are still strict."""
    assert _decode(f"My CA\n=====\n{ONE}\nThe other one:\n{TWO}the end", comments=True) == [b"one", b"two"]
    with pytest.raises(PemError, match="not a PEM block"):
        _decode(f"My CA\n{ONE[:-5]}", comments=True)


def test_sees_private_keys() -> None:
    """Any kind of private key's label counts."""
    assert has_private_key(encode_pem("EC PRIVATE KEY", b"x"))
    assert has_private_key(encode_pem("PRIVATE KEY", b"x"))
    assert not has_private_key(ONE)


@given(st.binary(min_size=1, max_size=300))
def test_round_trip(der: bytes) -> None:
    """What was encoded is decoded, in lines of at most 64 characters."""
    text = encode_pem("THING", der)
    assert _decode(text) == [der]
    assert all(len(line) <= 64 for line in text.splitlines())


@given(st.text(), st.booleans())
def test_never_raises_anything_else(text: str, comments: bool) -> None:
    """Any text ends in blocks or a PemError."""
    for candidate in (text, ONE + text, text + ONE, ONE.replace("b25l", text)):
        with contextlib.suppress(PemError):
            _decode(candidate, comments=comments)
