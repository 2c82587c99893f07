"""The ARI client (RFC 9773): names of certificates, what is read into an answer, and what the wire does to it."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.acme_connection import LARGEST_BODY
from certplane.broker.issuers.certificate_ids import certificate_id
from certplane.broker.issuers.renewal_info import AcmeRenewalInfo, parse_renewal_info
from certplane.broker.renewal.model import RenewalInfo, RenewalInfoError, RenewalInfoUnsupportedError
from certplane.runtime.clock import SystemClock
from tests.support.scripted_acme import Answer, ScriptedAcme

SOON = timedelta(seconds=20)
START, END = "2027-01-02T04:00:00Z", "2027-01-03T04:00:00Z"
WINDOW = {"suggestedWindow": {"start": START, "end": END}}
ASK = "GET /renewalInfo/.*"
KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(serial: int = 0x8754_3210, key_identifier: bytes | None = b"\x01" * 20) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "certplane.test")])
    builder = x509.CertificateBuilder(
        name, name, KEY.public_key(), serial, datetime(2026, 11, 1, tzinfo=UTC), datetime(2027, 1, 30, tzinfo=UTC)
    )
    if key_identifier is not None:
        builder = builder.add_extension(x509.AuthorityKeyIdentifier(key_identifier, None, None), critical=False)
    return builder.sign(KEY, hashes.SHA256())


PEM = certificate().public_bytes(Encoding.PEM).decode()


# Names


def test_the_name_of_rfc_9773_s_example() -> None:
    """RFC 9773 4.1: the serial number's sign octet stays, the padding doesn't."""
    key_identifier = bytes.fromhex("69885b6b87464041e1b37b847ba0ae2cde01c8d4")
    assert certificate_id(certificate(0x87654321, key_identifier)) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"


@given(st.integers(1, 2**159 - 1))
def test_the_serial_number_is_as_in_the_certificate(serial: int) -> None:
    """The octets are the content of its DER INTEGER: read back, signed, they are the number, and none is spare."""
    _, _, encoded = certificate_id(certificate(serial)).partition(".")
    octets = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    assert int.from_bytes(octets, "big", signed=True) == serial
    assert b"\x02" + bytes([len(octets)]) + octets in certificate(serial).public_bytes(Encoding.DER)


@pytest.mark.parametrize("key_identifier", [None, b""], ids=["no extension", "empty"])
def test_a_certificate_that_does_not_say_who_signed_it_has_no_name(key_identifier: bytes | None) -> None:
    """Then the CA can't be asked."""
    with pytest.raises(ValueError, match="doesn't say which key"):
        certificate_id(certificate(key_identifier=key_identifier))


# Answers


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        pytest.param("2027-01-02T04:00:00Z", datetime(2027, 1, 2, 4, tzinfo=UTC), id="UTC"),
        pytest.param("2027-01-02t04:00:00.5z", datetime(2027, 1, 2, 4, 0, 0, 500_000, tzinfo=UTC), id="lower case"),
        pytest.param("2027-01-02T05:30:00+01:30", datetime(2027, 1, 2, 4, tzinfo=UTC), id="another zone"),
        pytest.param("2027-01-02T04:00:00.123456789Z", datetime(2027, 1, 2, 4, 0, 0, 123_456, tzinfo=UTC), id="Go's"),
    ],
)
def test_a_window_is_read(start: str, expected: datetime) -> None:
    """RFC 3339 in all its spellings."""
    info = parse_renewal_info({"suggestedWindow": {"start": start, "end": END}})
    assert info == RenewalInfo(expected, datetime(2027, 1, 3, 4, tzinfo=UTC))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(None, id="null"),
        pytest.param([WINDOW], id="a list"),
        pytest.param({}, id="no window"),
        pytest.param({"suggestedWindow": [START, END]}, id="a list as window"),
        pytest.param({"suggestedWindow": {"start": START}}, id="no end"),
        pytest.param({"suggestedWindow": {"start": START, "end": START}}, id="empty"),
        pytest.param({"suggestedWindow": {"start": END, "end": START}}, id="backwards"),
        pytest.param({"suggestedWindow": {"start": 1798862400, "end": END}}, id="a number"),
        pytest.param({"suggestedWindow": {"start": "2027-01-02", "end": END}}, id="a date"),
        pytest.param({"suggestedWindow": {"start": "2027-01-02T04:00:00", "end": END}}, id="no zone"),
        pytest.param({"suggestedWindow": {"start": "2027-W01-2T04:00:00Z", "end": END}}, id="a week's day"),
        pytest.param({"suggestedWindow": {"start": "2027-02-30T04:00:00Z", "end": END}}, id="no such day"),
        pytest.param({"suggestedWindow": {"start": "0001-01-01T00:00:00+01:00", "end": END}}, id="before all time"),
        pytest.param({"suggestedWindow": {"start": START + "\n", "end": END}}, id="a line more"),
        pytest.param({"suggestedWindow": {"start": "\uff12\uff1027-01-02T04:00:00Z", "end": END}}, id="wide digits"),
    ],
)
def test_anything_else_is_no_answer(body: object) -> None:
    """RFC 9773 4.2: a window that can't be one is as none."""
    with pytest.raises(ValueError, match=r"window|no time"):
        parse_renewal_info(body)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_no_time_makes_the_reader_fail(value: object) -> None:
    """Whatever JSON holds where a time should be, it is a ValueError or a window in order."""
    try:
        info = parse_renewal_info({"suggestedWindow": {"start": START, "end": value}, "explanationURL": value})
    except ValueError:
        return
    assert info.window_start < info.window_end


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("https://ca.example/why?a=1", "https://ca.example/why?a=1", id="a URL"),
        pytest.param("https://ca.example/\x1b[2J\u202ewhy\x00", "https://ca.example/[2Jwhy", id="control characters"),
        pytest.param("https://ca.example/a b", "", id="a space"),
        pytest.param("javascript:alert(1)", "", id="a script"),
        pytest.param("https://ca.example/" + "a" * 600, "", id="too long"),
        pytest.param(["https://ca.example/"], "", id="a list"),
        pytest.param(None, "", id="none"),
    ],
)
def test_an_explanation_is_fit_to_be_shown(url: object, expected: str) -> None:
    """It ends up in logs, terminals and audit records."""
    assert parse_renewal_info({**WINDOW, "explanationURL": url}).explanation_url == expected


# The wire


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[ScriptedAcme]:
    with ScriptedAcme(tmp_path) as ca:
        ca.renewal_info = True
        yield ca


@pytest_asyncio.fixture
async def source(ca: ScriptedAcme) -> AsyncIterator[AcmeRenewalInfo]:
    server = AcmeServer(ca.directory_url, ca_bundle=ca.roots_file, user_agent="certplane/test")
    asked = AcmeCa(server, SystemClock())
    yield AcmeRenewalInfo(asked)
    await asked.close()


def said(body: Any = None, status: int = 200, **headers: str) -> Answer:
    content = json.dumps(WINDOW if body is None else body).encode()
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Answer(status, content, headers=named)


async def test_a_ca_is_asked_once_and_without_an_account(ca: ScriptedAcme, source: AcmeRenewalInfo) -> None:
    """An unauthenticated GET of the certificate's name; the directory is asked for once."""
    ca.fail(ASK, said(Retry_After="7200"), said())
    info = await source.renewal_info(PEM, SOON)
    assert info.window_start == datetime(2027, 1, 2, 4, tzinfo=UTC)
    assert info.retry_after == timedelta(hours=2)
    assert (await source.renewal_info(PEM, SOON)).retry_after is None
    name = certificate_id(certificate())
    asked = [(seen.method, seen.path) for seen in ca.requests]
    assert asked == [("GET", "/directory"), *[("GET", f"/renewalInfo/{name}")] * 2]
    assert ca.accounts == {}
    assert ca.requests[-1].headers["user-agent"] == "certplane/test"


async def test_a_date_as_retry_after_is_utc(ca: ScriptedAcme, source: AcmeRenewalInfo) -> None:
    """RFC 9110 10.2.3."""
    when = SystemClock().now() + timedelta(hours=3)
    ca.fail(ASK, said(Retry_After=format_datetime(when, usegmt=True)))
    wait = (await source.renewal_info(PEM, SOON)).retry_after
    assert wait is not None
    assert timedelta(hours=2.9) < wait <= timedelta(hours=3)


@pytest.mark.parametrize(
    ("answer", "temporary", "wait"),
    [
        pytest.param(said(status=404), False, None, id="404"),
        pytest.param(said(status=400), False, None, id="400"),
        pytest.param(said(status=503, Retry_After="90"), True, timedelta(seconds=90), id="503"),
        pytest.param(said(status=429, Retry_After="3600"), True, timedelta(hours=1), id="429"),
        pytest.param(Answer(502, b"<html>", "text/html"), True, None, id="a page of HTML"),
        pytest.param(said(status=302, Location="https://evil.test/"), False, None, id="a redirect"),
        pytest.param(Answer(lost=True), True, None, id="hangs up"),
        pytest.param(Answer(200, b"later"), False, None, id="no JSON"),
        pytest.param(Answer(200, b"[" * 200_000), False, None, id="deep JSON"),
        pytest.param(said([]), False, None, id="no object"),
        pytest.param(Answer(200, b" " * (LARGEST_BODY + 1)), True, None, id="too large"),
        pytest.param(said(Content_Encoding="gzip"), True, None, id="compressed"),
    ],
)
async def test_row_10_an_answer_that_cannot_be_used(
    ca: ScriptedAcme, source: AcmeRenewalInfo, answer: Answer, temporary: bool, wait: timedelta | None
) -> None:
    """Fault row 10: each is one request, and says whether it passes by itself."""
    ca.fail(ASK, answer)
    with pytest.raises(RenewalInfoError) as failed:
        await source.renewal_info(PEM, SOON)
    assert (failed.value.temporary, failed.value.retry_after) == (temporary, wait)
    assert not isinstance(failed.value, RenewalInfoUnsupportedError)
    assert ca.count(ASK) == 1


async def test_a_slow_answer_is_not_waited_for(ca: ScriptedAcme, source: AcmeRenewalInfo) -> None:
    """The deadline holds, and the next question is asked."""
    ca.fail(ASK, Answer(200, json.dumps(WINDOW).encode(), delay=1.0))
    with pytest.raises(RenewalInfoError) as failed:
        await source.renewal_info(PEM, timedelta(milliseconds=200))
    assert failed.value.temporary
    ca.fail(ASK, said())
    await source.renewal_info(PEM, SOON)


async def test_a_ca_without_renewal_information_is_asked_for_its_directory_alone(
    ca: ScriptedAcme, source: AcmeRenewalInfo
) -> None:
    """Once a day, not once a certificate."""
    ca.renewal_info = False
    for _ in range(3):
        with pytest.raises(RenewalInfoUnsupportedError):
            await source.renewal_info(PEM, SOON)
    assert [seen.path for seen in ca.requests] == ["/directory"]


@pytest.mark.parametrize("url", ["http://127.0.0.1/ari", "https://169.254.169.254/ari", 7], ids=["http", "host", "no"])
async def test_a_url_that_is_not_allowed_is_not_called(ca: ScriptedAcme, source: AcmeRenewalInfo, url: object) -> None:
    """The directory's word doesn't lead the broker elsewhere (design, fixed decision 15)."""
    urls = {name: f"{ca.url}/{name}" for name in ("newNonce", "newAccount", "newOrder", "revokeCert")}
    ca.fail("GET /directory", said({**urls, "renewalInfo": url}))
    with pytest.raises(RenewalInfoError) as failed:
        await source.renewal_info(PEM, SOON)
    assert not failed.value.temporary
    assert len(ca.requests) == 1


async def test_a_certificate_without_a_name_is_not_asked_about(ca: ScriptedAcme, source: AcmeRenewalInfo) -> None:
    """There is nothing to ask by."""
    pem = certificate(key_identifier=None).public_bytes(Encoding.PEM).decode()
    with pytest.raises(RenewalInfoUnsupportedError):
        await source.renewal_info(pem, SOON)
    assert ca.requests == []
