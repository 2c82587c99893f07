"""The `DnsServer` contract, on BIND and on the sandbox's own server: what Certplane and Pebble rely on."""

from __future__ import annotations

from dataclasses import replace

import dns.asyncquery
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.update
import pytest

from certplane.sandbox.dns_endpoint import DnsEndpoint, TsigKey
from certplane.sandbox.errors import ServerRefusedError
from certplane.sandbox.ports import DnsServer
from tests.support.waiting import HANG

pytestmark = pytest.mark.integration


@pytest.fixture
def endpoint(any_dns_server: DnsServer) -> DnsEndpoint:
    return any_dns_server.endpoint


async def test_adds_beside_what_is_there(endpoint: DnsEndpoint) -> None:
    """Two values at one name are both served: the apex and its wildcard are validated at the same name."""
    await endpoint.add("_acme-challenge.certplane.test", "TXT", "first")
    await endpoint.add("_acme-challenge.certplane.test", "TXT", "second")
    assert await endpoint.txt("_acme-challenge.certplane.test") == {"first", "second"}


async def test_adding_twice_is_adding_once(endpoint: DnsEndpoint) -> None:
    """A record that is there already is neither doubled nor refused."""
    await endpoint.add("a.certplane.test", "TXT", "value")
    await endpoint.add("a.certplane.test", "TXT", "value")
    answer = await endpoint.query("a.certplane.test")
    assert [len(rrset) for rrset in answer.answer] == [1]


async def test_removes_one_value_of_several(endpoint: DnsEndpoint) -> None:
    """Removing a value leaves the others at its name."""
    await endpoint.add("b.certplane.test", "TXT", "mine")
    await endpoint.add("b.certplane.test", "TXT", "another's")
    await endpoint.remove("b.certplane.test", "TXT", "mine")
    assert await endpoint.txt("b.certplane.test") == {"another's"}


async def test_removing_nothing_is_no_error(endpoint: DnsEndpoint) -> None:
    """Cleaning up twice is fine."""
    await endpoint.remove("never.certplane.test", "TXT", "x")
    await endpoint.remove("never.certplane.test", "TXT")


async def test_a_name_is_gone_with_its_last_record(endpoint: DnsEndpoint) -> None:
    """After its only record was removed a name doesn't exist, and the answer holds the SOA for negative caching."""
    await endpoint.add("c.certplane.test", "TXT", "x")
    await endpoint.remove("c.certplane.test", "TXT")
    answer = await endpoint.query("c.certplane.test")
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert [rrset.rdtype for rrset in answer.authority] == [dns.rdatatype.SOA]


async def test_a_name_with_other_records_answers_nodata(endpoint: DnsEndpoint) -> None:
    """A name that exists without the type that was asked for is no NXDOMAIN."""
    await endpoint.add("d.certplane.test", "A", "192.0.2.1")
    answer = await endpoint.query("d.certplane.test")
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])


async def test_an_empty_name_between_exists(endpoint: DnsEndpoint) -> None:
    """A name below which there is a record exists, though it has none itself (RFC 8020)."""
    await endpoint.add("_acme-challenge.deep.certplane.test", "TXT", "x")
    assert (await endpoint.query("deep.certplane.test")).rcode() == dns.rcode.NOERROR


@pytest.mark.parametrize("tcp", [pytest.param(False, id="udp"), pytest.param(True, id="tcp")])
async def test_answers_with_authority(endpoint: DnsEndpoint, tcp: bool) -> None:
    """Answers for its zones carry the AA bit, over UDP and TCP."""
    answer = await endpoint.query("certplane.test", "SOA", tcp=tcp)
    assert answer.flags & dns.flags.AA
    assert [rrset.rdtype for rrset in answer.answer] == [dns.rdatatype.SOA]


async def test_names_its_servers_with_addresses(endpoint: DnsEndpoint) -> None:
    """The name servers of a zone have addresses in the zone, so that a checker can find and ask each of them."""
    servers = await endpoint.query("certplane.test", "NS")
    names = [record.to_text() for rrset in servers.answer for record in rrset]
    assert names == ["ns1.certplane.test."]
    addresses = await endpoint.query(names[0], "A")
    assert [record.to_text() for rrset in addresses.answer for record in rrset] == ["127.0.0.1"]


async def test_serves_a_delegated_zone_itself(endpoint: DnsEndpoint) -> None:
    """A zone below another is a zone of its own: its names have its SOA, and updates go to it."""
    await endpoint.add("_acme-challenge.sub.certplane.test", "TXT", "deep")
    answer = await endpoint.query("nothing.sub.certplane.test")
    assert [rrset.name.to_text() for rrset in answer.authority] == ["sub.certplane.test."]
    assert await endpoint.txt("_acme-challenge.sub.certplane.test") == {"deep"}


async def test_an_update_of_a_name_in_another_zone_is_refused(endpoint: DnsEndpoint) -> None:
    """A record can't be slipped into a zone by an update for a different one."""
    update = dns.update.UpdateMessage(
        "example.test", keyring=endpoint.key.keyring, keyname=dns.name.from_text(endpoint.key.name)
    )
    update.add(dns.name.from_text("x.other.test."), 60, "TXT", '"x"')
    answer = await dns.asyncquery.tcp(update, "127.0.0.1", port=endpoint.port, timeout=HANG)
    assert answer.rcode() == dns.rcode.NOTZONE


async def test_an_update_without_a_signature_is_refused(endpoint: DnsEndpoint) -> None:
    """Only who holds the key may write."""
    update = dns.update.UpdateMessage("certplane.test")
    update.add("unsigned", 60, "TXT", '"x"')
    answer = await dns.asyncquery.tcp(update, "127.0.0.1", port=endpoint.port, timeout=HANG)
    assert answer.rcode() == dns.rcode.REFUSED
    assert await endpoint.txt("unsigned.certplane.test") == frozenset()


@pytest.mark.parametrize(
    "name", [pytest.param("certplane-sandbox", id="wrong-secret"), pytest.param("stranger", id="unknown-key")]
)
async def test_an_update_with_another_key_is_refused(endpoint: DnsEndpoint, name: str) -> None:
    """A signature by another key is NOTAUTH (RFC 8945, 5.2), and nothing is written."""
    forger = replace(endpoint, key=TsigKey.generate(name))
    with pytest.raises((ServerRefusedError, dns.tsig.PeerError)):
        await forger.add("forged.certplane.test", "TXT", "x")
    assert await endpoint.txt("forged.certplane.test") == frozenset()


@pytest.mark.parametrize(
    ("recursion", "answers"),
    [pytest.param(True, 2, id="recursion-desired"), pytest.param(False, 1, id="authority-only")],
)
async def test_an_alias_into_another_zone(endpoint: DnsEndpoint, recursion: bool, answers: int) -> None:
    """An alias across zones is followed for a resolver's client (Pebble), not for who asks the authority."""
    await endpoint.add("_acme-challenge.certplane.test", "CNAME", "here.other.test.")
    await endpoint.add("here.other.test", "TXT", "delegated")
    question = dns.message.make_query("_acme-challenge.certplane.test", "TXT")
    if not recursion:
        question.flags &= ~dns.flags.RD
    answer = await dns.asyncquery.tcp(question, "127.0.0.1", port=endpoint.port, timeout=HANG)
    assert len(answer.answer) == answers


async def test_an_alias_inside_the_zone_is_followed(endpoint: DnsEndpoint) -> None:
    """The target's records come with the alias when both are in one zone."""
    await endpoint.add("alias.certplane.test", "CNAME", "target.certplane.test.")
    await endpoint.add("target.certplane.test", "TXT", "x")
    assert await endpoint.txt("alias.certplane.test") == {"x"}


async def test_answers_that_dont_fit_are_fetched_by_tcp(endpoint: DnsEndpoint) -> None:
    """More values than a datagram holds are truncated over UDP and whole over TCP."""
    values = {f"{number:02d}" + "x" * 200 for number in range(12)}
    for value in values:
        await endpoint.add("many.certplane.test", "TXT", value)
    assert await endpoint.txt("many.certplane.test") == values


async def test_each_change_raises_the_serial(endpoint: DnsEndpoint) -> None:
    """Secondaries would notice: the SOA's serial goes up with an update."""

    async def serial() -> int:
        return int((await endpoint.query("certplane.test", "SOA")).answer[0][0].serial)

    before = await serial()
    await endpoint.add("serial.certplane.test", "TXT", "x")
    assert await serial() > before


@pytest.mark.parametrize(
    ("name", "answered"),
    [
        pytest.param("app.wild.certplane.test", True, id="below"),
        pytest.param("_acme-challenge.app.wild.certplane.test", True, id="two-levels-below"),
        pytest.param("there.wild.certplane.test", False, id="a-name-that-is-there"),
        pytest.param("x.there.wild.certplane.test", False, id="below-a-name-that-is-there"),
        pytest.param("between.wild.certplane.test", False, id="empty-name-with-names-below"),
        pytest.param("wild.certplane.test", False, id="the-wildcard's-parent"),
        pytest.param("elsewhere.certplane.test", False, id="beside"),
    ],
)
async def test_wildcard(endpoint: DnsEndpoint, name: str, answered: bool) -> None:
    """A wildcard's CNAME answers for names that aren't there, and for no others (RFC 4592)."""
    await endpoint.add("*.wild.certplane.test", "CNAME", "lb.example.test.")
    await endpoint.add("there.wild.certplane.test", "TXT", "x")
    await endpoint.add("x.between.wild.certplane.test", "TXT", "x")
    answer = await endpoint.query(name, "TXT")
    aliases = [rrset for rrset in answer.answer if rrset.rdtype == dns.rdatatype.CNAME]
    assert [str(rrset.name) for rrset in aliases] == ([f"{name}."] if answered else [])


async def test_record_hides_a_wildcard(endpoint: DnsEndpoint) -> None:
    """A record at the name itself is what is answered, for as long as it is there."""
    name = "_acme-challenge.app.hidden.certplane.test"
    await endpoint.add("*.hidden.certplane.test", "CNAME", "lb.example.test.")
    await endpoint.add(name, "TXT", "mine")
    assert await endpoint.txt(name) == {"mine"}
    await endpoint.remove(name, "TXT", "mine")
    answer = await endpoint.query(name, "TXT")
    assert dns.rdatatype.CNAME in {rrset.rdtype for rrset in answer.answer}
