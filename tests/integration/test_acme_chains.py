"""What stands in the answer of an issued certificate's URL, and what becomes of the order: the real issuer and a CA.

The CA gives the same answer each time. Whatever it is, one order is made, one CSR sent, and the order ends: with the
certificate and the issuers that lead upwards from it, or with an error that says what came.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.broker.model import OrderState
from certplane.errors import Reason
from certplane.sandbox.acme_endpoints import CERTIFICATE
from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.exchange import Reply
from certplane.sandbox.fault_proxy import Call
from certplane.sandbox.pebble import Pebble
from tests.support.moods import SETTINGS, Moody, moody, told

pytestmark = [pytest.mark.integration]

END = b"-----END CERTIFICATE-----\n"
CRL = b"-----BEGIN X509 CRL-----\nMAAwAA==\n-----END X509 CRL-----\n"
SOON = timedelta(seconds=2)

Change = Callable[[bytes, bytes], bytes]
"""What is sent instead of the leaf and its issuers, PEM each."""


@cache
def stranger() -> bytes:
    """A certificate that leads nowhere here."""
    return CertificateAuthority.root("Elsewhere").pem


@cache
def strangers() -> bytes:
    return b"".join(CertificateAuthority.root(f"Elsewhere {number}").pem for number in range(30))


@pytest_asyncio.fixture
async def world(tmp_path: Path, trusting_pebble: Pebble) -> AsyncIterator[Moody]:
    settings = replace(SETTINGS, chain_patience=SOON)
    async with moody(tmp_path, trusting_pebble, settings=settings) as world:
        yield world


def send(world: Moody, change: Change, kind: str = "") -> None:
    """Have each answer of a certificate's URL changed."""

    def act(call: Call) -> Reply:
        reply = call.forward()
        leaf, _, issuers = reply.body.partition(END)
        headers = [(name, kind if kind and name.lower() == "content-type" else value) for name, value in reply.headers]
        return Reply(reply.status, tuple(headers), change(leaf + END, issuers))

    world.proxy.add(act, CERTIFICATE, times=None)


def text(plain: bytes, encoding: str) -> bytes:
    return plain.decode().encode(encoding)


ISSUED = [
    pytest.param(lambda leaf, above: b"subject: x\n" + leaf + b"# the issuer\n" + above, id="comments"),
    pytest.param(lambda leaf, above: b"-- \xe9\xff\n" + leaf + above, id="comment-in-another-encoding"),
    pytest.param(lambda leaf, above: b"\xef\xbb\xbf" + leaf + above, id="BOM"),
    pytest.param(lambda leaf, above: leaf + b"\xef\xbb\xbf" + above, id="BOM-between"),
    pytest.param(lambda leaf, above: text(leaf + above, "utf-16"), id="UTF-16"),
    pytest.param(lambda leaf, above: leaf + above + b"\0", id="NUL-at-the-end"),
    pytest.param(lambda leaf, above: b"\0" + leaf + b"\0\0" + above, id="NUL-between"),
    pytest.param(lambda leaf, above: leaf[:100] + b"\0" + leaf[100:] + above, id="NUL-inside"),
    pytest.param(lambda leaf, above: leaf + b"\x1b[0m\x7f" + above + b"\x1a", id="control-characters"),
    pytest.param(
        lambda leaf, above: (leaf + above).replace(b" CERTIFICATE-", b" X509 CERTIFICATE-"), id="X509-CERTIFICATE"
    ),
    pytest.param(lambda leaf, above: (leaf + above).replace(b"\n", b"\r\n"), id="CRLF"),
    pytest.param(lambda leaf, above: (leaf + above).replace(b"\n", b"\r"), id="CR"),
    pytest.param(lambda leaf, above: (leaf + above).replace(b"\n", b"\n  "), id="indented"),
    pytest.param(lambda leaf, above: leaf.rstrip() + above.rstrip(), id="no-line-between"),
    pytest.param(lambda leaf, above: leaf + leaf + above, id="leaf-twice"),
    pytest.param(lambda leaf, above: leaf * 40 + above, id="leaf-forty-times"),
    pytest.param(lambda leaf, above: leaf + above + above, id="issuer-twice"),
    pytest.param(lambda leaf, above: above + leaf, id="issuer-first"),
    pytest.param(lambda leaf, above: leaf + stranger() + above, id="a-stranger"),
    pytest.param(lambda leaf, above: leaf + strangers() + above, id="thirty-strangers"),
    pytest.param(lambda leaf, above: leaf + CRL + above, id="a-CRL"),
    pytest.param(lambda leaf, above: leaf + above + b"-----BEGIN CERTIFICATE-----\nMIIB", id="a-cut-off-block"),
    pytest.param(lambda leaf, above: leaf + leaf[:-40] + b"\n" + END + above, id="a-broken-block"),
    pytest.param(
        lambda leaf, above: leaf + b"-----BEGIN CERTIFICATE-----\nMAA=\n" + END + above, id="what-is-no-certificate"
    ),
]

NOT_ISSUED = [
    pytest.param(lambda _leaf, _above: b"", "holds no PEM block", id="nothing"),
    pytest.param(lambda _leaf, _above: b"\0\0\0", "holds no PEM block", id="NULs"),
    pytest.param(lambda _leaf, _above: b'{"status": "valid"}', "holds no PEM block", id="JSON"),
    pytest.param(lambda _leaf, _above: CRL, "holds no PEM block", id="a-CRL-alone"),
    pytest.param(lambda leaf, _above: leaf[:-60], "holds no PEM block", id="a-leaf-cut-off"),
    pytest.param(lambda _leaf, above: above, "another key", id="issuers-alone"),
    pytest.param(lambda leaf, _above: leaf + stranger(), "not signed by any", id="leads-nowhere"),
    pytest.param(
        lambda _leaf, _above: b"-----BEGIN CERTIFICATE-----\nMAA=\n" + END, "can't be read", id="no-certificate"
    ),
]


@pytest.mark.parametrize("change", ISSUED)
async def test_what_leads_upwards_is_taken(world: Moody, own_name: str, change: Change) -> None:
    """Whatever stands beside the certificate and its issuers, these are what the order ends with."""
    sent: list[bytes] = []

    def keep(leaf: bytes, above: bytes) -> bytes:
        sent[:] = [leaf, above]
        return change(leaf, above)

    send(world, keep)
    order = await world.issue(own_name)
    assert (order.state, order.error) == (OrderState.ISSUED, None)
    (record,) = world.database.certificates.values()
    assert [record.certificate_pem.encode(), record.chain_pem.encode()] == sent
    assert world.at_ca == (1, 1)


@pytest.mark.parametrize(("change", "said"), NOT_ISSUED)
async def test_what_leads_nowhere_ends_the_order(world: Moody, own_name: str, change: Change, said: str) -> None:
    """It is fetched again for a while, and then the order ends with what came; the key is spent, and nothing else was ordered."""
    send(world, change)
    command = world.request(own_name)
    order = await world.ask(command)
    assert (order.state, told(order).reason) == (OrderState.FAILED, Reason.ISSUER_REJECTED)
    assert said in told(order).message
    assert world.database.keys[order.public_key_sha256].blocked
    assert world.at_ca == (1, 1)


async def test_a_page_in_front_of_the_ca_is_waited_out(world: Moody, own_name: str) -> None:
    """HTML in place of the certificate is nobody's word: it is fetched again, and who waits is told."""
    send(world, lambda _leaf, _above: b"<html>maintenance</html>", "text/html; charset=utf-8")
    command = world.request(own_name)
    order = await world.ask(command, wait=3)
    assert order.state is OrderState.FINALIZING
    world.proxy.clear()
    assert (await world.ask(command)).state is OrderState.ISSUED
    assert world.at_ca == (1, 1)
