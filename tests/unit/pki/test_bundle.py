"""CA bundles as people keep them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certplane.pki.bundle import BundleError, CaBundle, presentable
from tests.support.bundles import DAY, named_root, pem

NOW = datetime(2026, 11, 28, tzinfo=UTC)
CASES = Path(__file__).parents[2] / "cases"
KEY, OTHER_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())


def made(name: str, begins: int, ends: int, key: ec.EllipticCurvePrivateKey = KEY) -> x509.Certificate:
    """A root valid from and until days around NOW."""
    return named_root(name, key, begins=begins * DAY, ends=ends * DAY, now=NOW)


ENDED = made("Root", -3650, -1)
PRESENT = made("Root", -30, 3650)
SHORTER = made("Root", -400, 10)
FUTURE = made("Root", 2, 5000)
OTHER = made("Other", -30, 300, OTHER_KEY)
OTHER_ENDED = made("Other", -300, -10, OTHER_KEY)


@pytest.mark.parametrize(
    ("file", "in_force"),
    [
        pytest.param([ENDED, PRESENT], [PRESENT], id="ended before its successor"),
        pytest.param([PRESENT, ENDED], [PRESENT], id="ended after it"),
        pytest.param([SHORTER, PRESENT], [PRESENT, SHORTER], id="both valid: the longer first"),
        pytest.param([SHORTER, OTHER, PRESENT], [PRESENT, SHORTER, OTHER], id="names stay in the file's order"),
        pytest.param([OTHER, PRESENT, SHORTER], [OTHER, PRESENT, SHORTER], id="and so does another's"),
        pytest.param([PRESENT, PRESENT, OTHER, PRESENT], [PRESENT, OTHER], id="repeated"),
        pytest.param([FUTURE, PRESENT], [PRESENT], id="the next one, not valid yet"),
        pytest.param([FUTURE], [FUTURE], id="not valid yet, and alone: the clock may be behind"),
        pytest.param([ENDED, OTHER], [OTHER], id="ended without a successor"),
        pytest.param([ENDED, OTHER_ENDED], [], id="nothing left"),
    ],
)
def test_what_is_in_force(file: list[x509.Certificate], in_force: list[x509.Certificate]) -> None:
    """What has ended is never handed on; of one name those that end last come first."""
    bundle = CaBundle.from_pem(pem(*file))
    assert list(bundle.in_force(NOW)) == in_force
    assert bundle.pem(NOW) == pem(*in_force)
    assert bool(bundle.nothing_left(NOW)) == (not in_force)


def test_time_goes_on() -> None:
    """The same bundle hands over the next root once the first has ended."""
    bundle = CaBundle.from_pem(pem(SHORTER, FUTURE))
    assert bundle.in_force(NOW) == (SHORTER,)
    assert bundle.in_force(NOW + 5 * DAY) == (FUTURE, SHORTER)
    assert bundle.in_force(NOW + 11 * DAY) == (FUTURE,)


@pytest.mark.parametrize("name", ["B1/expired-first.pem", "B1/expired-last.pem"])
def test_kept_bundles(name: str) -> None:
    """The bundle that grew by appending, either way round: the one that is valid, and nothing else."""
    bundle = CaBundle.from_pem((CASES / name).read_bytes())
    assert len(bundle.certificates) == 2
    assert [f"{each.not_valid_after_utc:%Y}" for each in bundle.in_force(NOW)] == ["2036"]


@pytest.mark.parametrize(
    "file",
    [
        pytest.param((CASES / "B2/ca-with-bom.pem").read_bytes(), id="byte order mark"),
        pytest.param(b"\xef\xbb\xbf# root\r\n" + pem(PRESENT).replace(b"\n", b"\r\n"), id="BOM, comment and CRLF"),
        pytest.param(b"Certificate:\n    Subject: CN = M\xfcller\n" + pem(PRESENT), id="text in Latin-1"),
        pytest.param(b"\n\n" + pem(PRESENT) + b"\n\n# end", id="blank lines"),
        pytest.param(pem(PRESENT).rstrip(b"\n"), id="no newline at the end"),
    ],
)
def test_what_is_written_is_plain(file: bytes) -> None:
    """Whatever stood around the certificates, what is handed over is their PEM and nothing else."""
    written = CaBundle.from_pem(file).pem(NOW)
    assert written.startswith(b"-----BEGIN CERTIFICATE-----\n")
    assert written.endswith(b"-----END CERTIFICATE-----\n")
    assert CaBundle.from_pem(written).pem(NOW) == written


@pytest.mark.parametrize(
    ("file", "phrase"),
    [
        pytest.param(pem(PRESENT) + b"-----BEGIN PRIVATE KEY-----\nAA==\n", "private key", id="key"),
        pytest.param(pem(PRESENT) + b"-----BEGIN RSA PRIVATE KEY-----\nAA==\n", "private key", id="RSA key"),
        pytest.param(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + pem(PRESENT), "private key", id="encrypted key"),
        pytest.param(pem(PRESENT).decode().encode("utf-16"), "UTF-16", id="UTF-16"),
        pytest.param(b"", "no PEM block", id="empty"),
        pytest.param(b"-----BEGIN X509 CRL-----\nAA==\n-----END X509 CRL-----\n", "X509 CRL", id="CRL"),
    ],
)
@pytest.mark.parametrize("only_cas", [True, False])
def test_what_is_no_bundle(file: bytes, phrase: str, only_cas: bool) -> None:
    """All bundles refuse the same: a private key above all."""
    with pytest.raises(BundleError, match=phrase):
        CaBundle.from_pem(file, only_cas=only_cas)


def test_nothing_left_says_which_ended_when() -> None:
    """The last that ended is named, with its time."""
    text = CaBundle.from_pem(pem(ENDED, OTHER_ENDED)).nothing_left(NOW)
    assert "CN=Root" in text
    assert "ended at 2026-11-27T00:00:00Z" in text


@pytest.mark.parametrize(
    ("file", "warned"),
    [
        pytest.param([PRESENT], [], id="far from its end"),
        pytest.param([ENDED, PRESENT], ["ended at"], id="ended"),
        pytest.param([SHORTER], ["ends at 2026-12-08"], id="in thirty days"),
        pytest.param([SHORTER, PRESENT], [], id="its successor is there"),
        pytest.param([made("Short", -2, 12)], [], id="short-lived, new"),
        pytest.param([made("Short", -12, 2)], ["ends at"], id="short-lived, in its last quarter"),
    ],
)
def test_warnings(file: list[x509.Certificate], warned: list[str]) -> None:
    """Somebody hears of an end before it comes, unless nothing depends on it."""
    lines = CaBundle.from_pem(pem(*file)).warnings(NOW)
    assert len(lines) == len(warned)
    assert all(phrase in line for phrase, line in zip(warned, lines, strict=True))


def test_next_end() -> None:
    """Ended ones and those with a successor don't count, unless there is nothing else."""
    assert CaBundle.from_pem(pem(ENDED, SHORTER, PRESENT, OTHER)).next_end(NOW) == OTHER.not_valid_after_utc
    assert CaBundle.from_pem(pem(ENDED)).next_end(NOW) == ENDED.not_valid_after_utc


def test_presented_chain() -> None:
    """An intermediate that has ended isn't presented; the leaf is, whatever it is, and junk stays junk."""
    leaf = made("leaf", -300, -1, OTHER_KEY)
    assert presentable(pem(leaf, ENDED, PRESENT), NOW) == pem(leaf, PRESENT)
    assert presentable(b"junk", NOW) == b"junk"
    assert presentable(pem(leaf), NOW + timedelta(days=1)) == pem(leaf)
