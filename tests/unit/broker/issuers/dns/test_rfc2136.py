"""Dynamic updates: what each answer of a server means, and what is sent."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Callable
from datetime import timedelta

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rrset
import dns.tsig
import dns.update
import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.rfc2136 import Rfc2136Settings
from certplane.broker.issuers.dns.rfc2136.provider import Rfc2136Provider
from certplane.broker.model import TxtRecord
from certplane.config.values import HostPort
from certplane.errors import Reason, Refusal, RefusalError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.dns import SandboxDnsServer
from tests.fakes.secrets import FakeSecretSource
from tests.support.scripted_dns import ScriptedDns

NAME = "_acme-challenge.www.certplane.test"
RECORD = TxtRecord("", NAME, "value")
SECRET = base64.b64encode(b"k" * 32).decode()
KEYRING = {dns.name.from_text("key."): dns.tsig.Key("key.", SECRET, "hmac-sha256")}
Answering = Callable[[dns.message.Message], dns.message.Message]


def provider_for(port: int, secret: str = SECRET, key_name: str = "key") -> Rfc2136Provider:
    server = Rfc2136Settings(HostPort("127.0.0.1", port), key_name, "tsig", timeout=timedelta(seconds=2))
    return Rfc2136Provider(server, FakeSecretSource({"tsig": secret}), random.Random(1))


def soon(seconds: float = 5) -> Deadline:
    return Deadline.after(timedelta(seconds=seconds), SystemClock())


async def refusal_of(provider: Rfc2136Provider, seconds: float = 0.5) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        await provider.add_txt(RECORD, soon(seconds))
    return caught.value.refusal


def server_of(on_update: Answering, on_query: Answering | None = None) -> ScriptedDns:
    """A server of certplane.test that answers updates, and signs, as told."""

    def soa(query: dns.message.Message) -> dns.message.Message:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA
        soa_data = "ns.certplane.test. x. 1 2 3 4 5"
        answer.authority.append(dns.rrset.from_text("certplane.test.", 5, "IN", "SOA", soa_data))
        return answer

    def reply(wire: bytes, _tcp: bool) -> bytes:
        message = dns.message.from_wire(wire, keyring=KEYRING)
        serve = on_update if message.opcode() == dns.opcode.UPDATE else on_query or soa
        content = serve(message).to_wire()
        return struct.pack("!H", len(content)) + content

    return ScriptedDns(reply)


def with_rcode(rcode: dns.rcode.Rcode) -> Answering:
    def answer(message: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(message)
        response.set_rcode(rcode)
        return response

    return answer


async def test_adds_one_record_in_its_zone() -> None:
    """The update adds a TXT record and deletes nothing, in the zone that the server has authority over, over TCP."""
    with server_of(with_rcode(dns.rcode.NOERROR)) as server:
        written = await provider_for(server.port).add_txt(RECORD, soon())
    assert written == TxtRecord("certplane.test", NAME, "value")
    assert all(tcp for _, tcp in server.queries)
    update = dns.message.from_wire(server.queries[-1][0], keyring=KEYRING)
    assert isinstance(update, dns.update.UpdateMessage)
    assert [str(rrset) for rrset in update.update] == [f'{NAME}. 60 IN TXT "value"']
    assert not update.prerequisite
    assert str(update.zone[0].name) == "certplane.test."


async def test_removes_that_record_only() -> None:
    """The deletion names the value (RFC 2136 2.5.4), never the whole set."""
    with server_of(with_rcode(dns.rcode.NOERROR)) as server:
        await provider_for(server.port).remove_txt(TxtRecord("certplane.test", NAME, "value"), soon())
    update = dns.message.from_wire(server.queries[-1][0], keyring=KEYRING)
    assert isinstance(update, dns.update.UpdateMessage)
    [rrset] = update.update
    assert (rrset.deleting, [str(record) for record in rrset]) == (dns.rdataclass.NONE, ['"value"'])
    assert len(server.queries) == 1


RCODES = [
    pytest.param(dns.rcode.REFUSED, Reason.DNS_REJECTED, id="refused"),
    pytest.param(dns.rcode.NOTAUTH, Reason.DNS_REJECTED, id="notauth"),
    pytest.param(dns.rcode.NOTZONE, Reason.DNS_REJECTED, id="notzone"),
    pytest.param(dns.rcode.NOTIMP, Reason.DNS_REJECTED, id="notimp"),
    pytest.param(dns.rcode.FORMERR, Reason.DNS_REJECTED, id="formerr"),
    pytest.param(dns.rcode.SERVFAIL, Reason.DNS_UNAVAILABLE, id="servfail"),
]


@pytest.mark.parametrize(("rcode", "reason"), RCODES)
async def test_refused_update(rcode: dns.rcode.Rcode, reason: Reason) -> None:
    """Only SERVFAIL may pass by itself; every other refusal is named and is a person's job."""
    with server_of(with_rcode(rcode)) as server:
        refusal = await refusal_of(provider_for(server.port))
    assert (refusal.reason, dns.rcode.to_text(rcode) in refusal.message) == (reason, True)


async def test_servfail_is_repeated() -> None:
    """A server that fails once is asked again."""
    rcodes = [dns.rcode.SERVFAIL, dns.rcode.NOERROR]

    def next_rcode(message: dns.message.Message) -> dns.message.Message:
        return with_rcode(rcodes.pop(0))(message)

    with server_of(next_rcode) as server:
        await provider_for(server.port).add_txt(RECORD, soon())
    assert not rcodes


TSIG = [
    pytest.param(dns.rcode.BADKEY, "doesn't accept the TSIG key (BadKey)", id="badkey"),
    pytest.param(dns.rcode.BADSIG, "doesn't accept the TSIG key (BadSignature)", id="badsig"),
    pytest.param(dns.rcode.BADTIME, "the clocks of this host and of the DNS server", id="badtime"),
]


@pytest.mark.parametrize(("error", "said"), TSIG)
async def test_refused_signature(error: dns.rcode.Rcode, said: str) -> None:
    """A key, a signature or a time that the server doesn't accept is a person's job, each with its own remedy."""

    def refuse(message: dns.message.Message) -> dns.message.Message:
        return dns.message.make_response(message, tsig_error=error)

    with server_of(refuse, refuse) as server:
        refusal = await refusal_of(provider_for(server.port))
    assert (refusal.reason, said in refusal.message) == (Reason.DNS_REJECTED, True)


async def test_unsigned_success_is_not_believed() -> None:
    """Success without the server's signature could come from anybody on the way."""

    def unsigned(message: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(message)
        response.tsig = None
        return response

    with server_of(unsigned) as server:
        refusal = await refusal_of(provider_for(server.port))
    assert (refusal.reason, "requires a TSIG" in refusal.message) == (Reason.DNS_UNAVAILABLE, True)


async def test_server_of_another_zone() -> None:
    """A server without authority over any zone of the name is the wrong server."""
    with server_of(with_rcode(dns.rcode.NOERROR), with_rcode(dns.rcode.REFUSED)) as server:
        refusal = await refusal_of(provider_for(server.port))
    assert (refusal.reason, "isn't authoritative" in refusal.message) == (Reason.DNS_REJECTED, True)


async def test_resolver_is_no_primary() -> None:
    """An SOA from a cache (no AA) shows no authority."""

    def cached(message: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(message)
        soa_data = "ns.certplane.test. x. 1 2 3 4 5"
        response.authority.append(dns.rrset.from_text("certplane.test.", 5, "IN", "SOA", soa_data))
        return response

    with server_of(with_rcode(dns.rcode.NOERROR), cached) as server:
        refusal = await refusal_of(provider_for(server.port))
    assert refusal.reason is Reason.DNS_REJECTED


async def test_nearest_zone_is_taken(sandbox_dns: SandboxDnsServer) -> None:
    """A delegated zone on the same server is updated itself, not the one above."""
    endpoint = sandbox_dns.endpoint
    server = Rfc2136Settings(HostPort("127.0.0.1", endpoint.port), endpoint.key.name, "tsig")
    provider = Rfc2136Provider(server, FakeSecretSource({"tsig": endpoint.key.secret}), random.Random(1))
    for name, zone in (("_acme-challenge.a.b.sub.certplane.test", "sub.certplane.test"), (NAME, "certplane.test")):
        assert (await provider.add_txt(TxtRecord("", name, "x"), soon())).zone == zone
        assert await endpoint.txt(name) == {"x"}


async def test_policy_of_the_server_is_obeyed(sandbox_dns: SandboxDnsServer) -> None:
    """A server that takes no updates from this key refuses, and nothing changes."""
    sandbox_dns.faults["127.0.0.1"].refuse_updates = True
    endpoint = sandbox_dns.endpoint
    refusal = await refusal_of(provider_for(endpoint.port, endpoint.key.secret, endpoint.key.name))
    assert (refusal.reason, "REFUSED" in refusal.message) == (Reason.DNS_REJECTED, True)


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param(SECRET, id="base64"),
        pytest.param(f"key:{SECRET}\n", id="name-and-base64"),
        pytest.param(f"hmac-sha256:key:{SECRET}", id="algorithm-name-and-base64"),
    ],
)
async def test_forms_of_a_key(secret: str) -> None:
    """A secret may be the bare key, or what `nsupdate -y` takes."""
    with server_of(with_rcode(dns.rcode.NOERROR)) as server:
        name = "key" if secret == SECRET else "not used"
        await provider_for(server.port, secret, name).add_txt(RECORD, soon())


@pytest.mark.parametrize("secret", ["not base64!", "key:", "hmac-md4:key:a2V5", "a..b:a2V5"])
async def test_secret_that_is_no_key(secret: str) -> None:
    """What isn't a key is said, without saying what it is."""
    refusal = await refusal_of(provider_for(1, secret))
    form = "base64, name:base64 or algorithm:name:base64"
    assert (refusal.reason, refusal.message) == (Reason.DNS_REJECTED, f"the secret 'tsig' isn't a TSIG key: {form}")


async def test_server_that_is_away() -> None:
    """Nobody listens: temporary."""
    refusal = await refusal_of(provider_for(1))
    assert (refusal.reason, "Connect call failed" in refusal.message) == (Reason.DNS_UNAVAILABLE, True)


async def test_server_that_says_nothing() -> None:
    """Silence ends at the deadline."""
    with ScriptedDns(lambda _query, _tcp: b"") as server:
        refusal = await refusal_of(provider_for(server.port))
    assert refusal.reason is Reason.DNS_UNAVAILABLE


async def test_long_values_are_split() -> None:
    """Strings of a TXT record have at most 255 bytes."""
    with server_of(with_rcode(dns.rcode.NOERROR)) as server:
        await provider_for(server.port).add_txt(TxtRecord("", NAME, "x" * 600), soon())
    update = dns.message.from_wire(server.queries[-1][0], keyring=KEYRING)
    assert isinstance(update, dns.update.UpdateMessage)
    [record] = update.update[0]
    assert [len(string) for string in record.strings] == [255, 255, 90]
