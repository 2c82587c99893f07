"""PEM is blocks and text beside them; nothing that could be a block is skipped, and what is wrong is told with its line."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.pki.pem import PemError, decode_pem, encode_pem, find_pem, has_private_key, pem_text

CERTIFICATE = encode_pem("CERTIFICATE", b"one")
ONE = encode_pem("THING", b"one")
TWO = encode_pem("THING", b"two")


def _decode(text: str, *, max_blocks: int = 2) -> list[bytes]:
    return [der for _, der in decode_pem(text, "THING", max_blocks=max_blocks, max_length=1000)]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(ONE + TWO, id="as-written"),
        pytest.param(f"\n\n {ONE}\n\t\n{TWO}  \n", id="white-space-between"),
        pytest.param((ONE + TWO).replace("\n", "\r\n"), id="crlf"),
        pytest.param((ONE + TWO).rstrip("\n"), id="no-final-newline"),
        pytest.param((ONE + TWO).replace("b25l", "b2\n5l"), id="short-lines"),
        pytest.param((ONE + TWO).replace("\n", "\r"), id="line-ends-of-old-macs"),
        pytest.param("\ufeff" + ONE + TWO, id="byte-order-mark"),
        pytest.param("\ufeff" + ONE + "\ufeff" + TWO, id="byte-order-marks of two files, put together"),
        pytest.param(ONE + TWO + "\r\n\x1a", id="dos-end-of-file"),
        pytest.param("Certificate:\n    Data:\n" + ONE + TWO, id="text-before"),
        pytest.param(f"# 1\n{ONE}\n# 2: b\u00fccher, \U0001f512\n\f\n{TWO}the end", id="text-everywhere"),
        pytest.param(ONE + TWO + "----- junk\n---BEGIN nothing---\n", id="dashes-that-begin-nothing"),
        pytest.param(ONE + "\u00a0\n" + TWO, id="no-break-space"),
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
        pytest.param("just text", "no PEM block", id="text-only"),
        pytest.param("x" + ONE, "inside of line 1", id="begin-after-text-in-its-line"),
        pytest.param(ONE + "text " + TWO, "inside of line 4", id="second-begin-after-text-in-its-line"),
        pytest.param(
            ONE.rstrip("\n") + TWO, "whose END, in line 3, does not stand in a line", id="blocks-glued-together"
        ),
        pytest.param(ONE.rstrip("\n") + "x\n", "whose END, in line 3", id="text-after-end-in-its-line"),
        pytest.param(
            ONE.replace("THING-----\n", "THING----- x\n", 1), "BEGIN line that is malformed", id="text-after-begin"
        ),
        pytest.param(
            ONE.replace("THING", "THING\u00e9"),
            "is not whole|no line|malformed|base64|holds a",
            id="label-of-other-letters",
        ),
        pytest.param("x\n-----END THING-----\n" + ONE, "an END in line 2 without its BEGIN", id="end-alone"),
        pytest.param(ONE + "text\0\n", r"control character \(0x00\) in line 4", id="nul-after"),
        pytest.param("\x1b[2J" + ONE, r"control character \(0x1b\) in line 1", id="escape-before"),
        pytest.param("\x1a" + ONE, r"control character \(0x1a\)", id="dos-end-of-file-in-front"),
        pytest.param(ONE + encode_pem("OTHER", b"x"), "'OTHER' in line 4 where only THING", id="other-label"),
        pytest.param(
            encode_pem("EC PRIVATE KEY", b"x"), "a private key belongs in a file of its own", id="private-key"
        ),
        pytest.param(encode_pem("TRUSTED CERTIFICATE", b"x"), "`openssl x509` writes it", id="trusted-certificate"),
        pytest.param(ONE + ONE + ONE, "over 2 blocks", id="too-many"),
        pytest.param(ONE[:-5], "no line `-----END THING-----`; it is cut off", id="cut-off"),
        pytest.param(ONE[:26] + "\n" + TWO, "begins in line 1", id="cut-off-before-another"),
        pytest.param(ONE.replace("END THING", "END THINGS"), "its END has another label", id="labels-differ"),
        pytest.param(ONE.replace("b25l", "b25"), "base64 is broken; it begins in line 1", id="base64-length"),
        pytest.param(ONE.replace("b25l", "b2=5l"), "base64", id="base64-padding-inside"),
        pytest.param(ONE.replace("b25l", "b2-l"), "not base64 in line 2", id="url-safe-base64"),
        pytest.param(
            ONE.replace("b25l", "Proc-Type: 4,ENCRYPTED\n\nb25l"), "an encrypted key of the older form", id="headers"
        ),
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


@pytest.mark.parametrize(
    ("content", "text"),
    [
        pytest.param(b"\xef\xbb\xbf" + ONE.encode(), ONE, id="byte-order-mark"),
        pytest.param("b\u00fccher\n".encode() + ONE.encode(), "b\u00fccher\n" + ONE, id="utf-8"),
        pytest.param("b\u00fccher\n".encode("latin-1") + ONE.encode(), "b\u00fccher\n" + ONE, id="latin-1"),
    ],
)
def test_reads_files_of_any_encoding_of_their_comments(content: bytes, text: str) -> None:
    """Blocks are ASCII, so that what stands beside them may be in any older encoding."""
    assert pem_text(content) == text
    assert _decode(pem_text(content)) == [b"one"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(ONE.encode("utf-16"), "UTF-16; save it", id="utf-16"),
        pytest.param(b"\xfe\xff" + ONE.encode("utf-16-be"), "UTF-16; save it", id="utf-16-big-endian"),
        pytest.param(b"\x30\x82\x03\x10", "binary .*convert it with openssl", id="der"),
    ],
)
def test_names_what_is_no_text(content: bytes, problem: str) -> None:
    """Files that other tools write instead of PEM are told by what they are."""
    with pytest.raises(PemError, match=problem):
        pem_text(content)


def test_older_names_of_a_label() -> None:
    """X509 CERTIFICATE is CERTIFICATE by another name, and so is returned (RFC 7468 5.1)."""
    text = encode_pem("X509 CERTIFICATE", b"one") + encode_pem("CERTIFICATE", b"two")
    assert decode_pem(text, "CERTIFICATE", max_blocks=2, max_length=1000) == (
        ("CERTIFICATE", b"one"),
        ("CERTIFICATE", b"two"),
    )


def test_never_quotes_the_text() -> None:
    """What is wrong with a private key is told without a word of it."""
    for text in (f"secret{ONE}", ONE.replace("b25l", "secret!"), "secret", ONE.replace("b25l", "Key: secret\n\nx")):
        with pytest.raises(PemError) as caught:
            _decode(text)
        assert "secret" not in str(caught.value)


def test_sees_private_keys() -> None:
    """Any kind of private key's label counts."""
    assert has_private_key(encode_pem("EC PRIVATE KEY", b"x"))
    assert has_private_key(encode_pem("PRIVATE KEY", b"x"))
    assert not has_private_key(ONE)


@pytest.mark.parametrize(
    ("text", "found", "passed"),
    [
        pytest.param("", [], 0, id="nothing"),
        pytest.param("\0\x1b[0m junk", [], 0, id="junk"),
        pytest.param(CERTIFICATE, [b"one"], 0, id="one"),
        pytest.param(CERTIFICATE.replace("\n", "\0\r\v\f"), [b"one"], 0, id="control-characters"),
        pytest.param(CERTIFICATE.replace("\n", ""), [b"one"], 0, id="no-lines"),
        pytest.param(CERTIFICATE.replace("\n", "") * 2, [b"one"] * 2, 0, id="two-in-a-line"),
        pytest.param(CERTIFICATE.replace(" CERT", " X509 CERT"), [b"one"], 0, id="older-label"),
        pytest.param(CERTIFICATE.replace("b25l", "b25"), [], 1, id="broken-base64"),
        pytest.param(CERTIFICATE.replace("b25l", "b2-5l"), [], 1, id="another-character"),
        pytest.param(CERTIFICATE[:-10] + CERTIFICATE, [b"one"], 1, id="cut-off-before-a-whole-one"),
        pytest.param(encode_pem("X509 CRL", b"x") + CERTIFICATE, [b"one"], 1, id="another-label"),
        pytest.param(encode_pem("PRIVATE KEY", b"x"), [], 1, id="private-key"),
    ],
)
def test_whole_blocks_of_an_answer(text: str, found: list[bytes], passed: int) -> None:
    """Of a server's answer every whole block of the label is taken, and the rest passed over and counted."""
    assert find_pem(text, "CERTIFICATE") == (tuple(found), passed)


@given(st.binary(min_size=1, max_size=300))
def test_round_trip(der: bytes) -> None:
    """What was encoded is decoded, in lines of at most 64 characters."""
    text = encode_pem("THING", der)
    assert _decode(text) == [der]
    assert all(len(line) <= 64 for line in text.splitlines())


@given(st.text())
def test_never_raises_anything_else(text: str) -> None:
    """Any text ends in blocks or a PemError."""
    for candidate in (text, ONE + text, text + ONE, ONE.replace("b25l", text)):
        with contextlib.suppress(PemError):
            _decode(candidate)
