"""A server's TLS context whose certificate changes: what handshakes see, with and without a name, in threads too."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path

import pytest

from certplane.caller.serving import LiveContext, load
from certplane.caller.values import Certificate, IssuedCertificate
from certplane.pki.chain import leaf_facts
from certplane.sandbox.certificates import CertificateAuthority

NAME = "api.example"
AUTHORITY = CertificateAuthority.root("Public")


def issued(authority: CertificateAuthority = AUTHORITY) -> IssuedCertificate:
    made = authority.issue("", [NAME])
    pem = made.chain_pem.decode()
    facts = leaf_facts(pem)
    certificate = Certificate(
        "c", "api", (NAME,), facts.serial_number, "ca", "", facts.not_before, facts.not_after, certificate_pem=pem
    )
    return IssuedCertificate(certificate, made.key_pem)


class Handshake:
    """A client and a server in memory; `serial` and `alpn` are what the client sees."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = NAME) -> None:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        if name is None:
            client.check_hostname = False
        ends = [
            client.wrap_bio(to_client, to_server, server_hostname=name),
            server.wrap_bio(to_server, to_client, server_side=True),
        ]
        waiting = list(ends)
        for _ in range(20):
            for end in list(waiting):
                try:
                    end.do_handshake()
                    waiting.remove(end)
                except ssl.SSLWantReadError:
                    continue
            if not waiting:
                break
        assert not waiting
        ends[1].write(b"x")  # in TLS 1.3 a refusal of the client's certificate comes after its handshake
        assert ends[0].read(1) == b"x"
        found = ends[0].getpeercert() or {}
        self.serial = str(found["serialNumber"]).lower().lstrip("0")
        self.alpn = ends[0].selected_alpn_protocol()
        self.server = ends[1]


def trusting(authority: CertificateAuthority = AUTHORITY) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.pem.decode())


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def client(request: pytest.FixtureRequest) -> ssl.SSLContext:
    context = trusting()
    context.maximum_version = request.param
    return context


@pytest.mark.parametrize("name", [NAME, None], ids=["name", "no-name"])
def test_the_newest_is_presented(client: ssl.SSLContext, name: str | None) -> None:
    """From the next handshake on, to clients that name the server and to those that don't."""
    first, second = issued(), issued()
    context = LiveContext(first)
    assert Handshake(context, client, name).serial == first.certificate.serial_number
    context.present(second)
    assert Handshake(context, client, name).serial == second.certificate.serial_number


def test_settings_go_on(client: ssl.SSLContext) -> None:
    """ALPN and the CAs of client certificates hold before a change and after it."""
    callers, first, second = CertificateAuthority.root("Callers"), issued(), issued()
    context = LiveContext(first)
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.load_verify_locations(cadata=callers.pem.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    client.set_alpn_protocols(["http/1.1", "h2"])
    with pytest.raises(ssl.SSLError):
        Handshake(context, client)
    caller = issued(callers)
    load(client, caller)
    for serial in (first.certificate.serial_number, second.certificate.serial_number):
        seen = Handshake(context, client)
        assert (seen.serial, seen.alpn) == (serial, "h2")
        assert seen.server.getpeercert()
        context.present(second)


def test_a_pair_that_does_not_belong_together() -> None:
    """It is refused, and the one before stays."""
    first, other = issued(), issued()
    context = LiveContext(first)
    with pytest.raises(ssl.SSLError):
        context.present(IssuedCertificate(other.certificate, first.private_key_pem))
    assert Handshake(context, trusting()).serial == first.certificate.serial_number


def test_handshakes_in_threads_while_it_changes() -> None:
    """Each sees one of the certificates, whole."""
    context, wanted = LiveContext(issued()), {""}
    failed: list[Exception] = []
    ended = threading.Event()

    def connect() -> None:
        client = trusting()
        while not ended.is_set():
            try:
                Handshake(context, client)
            except (OSError, AssertionError) as error:
                failed.append(error)
                return

    threads = [threading.Thread(target=connect) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        made = issued()
        wanted.add(made.certificate.serial_number)
        context.present(made)
    ended.set()
    for thread in threads:
        thread.join()
    assert failed == []


def test_nothing_is_left_open() -> None:
    """Neither descriptors nor contexts pile up over many changes."""
    context = LiveContext(issued())
    made = issued()

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for _ in range(50):
        context.present(made)
    assert descriptors() == before
