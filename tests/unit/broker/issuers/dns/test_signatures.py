"""What is wrong with a server's signed answers, as far as no real server can be made to give them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dns.dnssec
import dns.message
import dns.name
import dns.rdatatype
import dns.rrset
from cryptography.hazmat.primitives.asymmetric import ec

from certplane.broker.issuers.dns.signatures import ServerAnswers, fault_of

NOW = datetime(2026, 11, 29, tzinfo=UTC)
ZONE = dns.name.from_text("shop.test")
PRIVATE = ec.generate_private_key(ec.SECP256R1())
KEY = dns.dnssec.make_dnskey(PRIVATE.public_key(), "ECDSAP256SHA256", flags=257)
DS = dns.dnssec.make_ds(ZONE, KEY, "SHA256")


def answer(
    kind: str, *rrsets: dns.rrset.RRset, name: dns.name.Name = ZONE, denies: bool = False
) -> dns.message.Message:
    made = dns.message.make_response(dns.message.make_query(name, kind))
    (made.authority if denies else made.answer).extend(rrsets)
    return made


def signed(rrset: dns.rrset.RRset) -> tuple[dns.rrset.RRset, dns.rrset.RRset]:
    day = timedelta(days=1)
    rrsig = dns.dnssec.sign(rrset, PRIVATE, ZONE, KEY, inception=NOW - day, expiration=NOW + day)
    return rrset, dns.rrset.from_rdata(rrset.name, rrset.ttl, rrsig)


KEYS = answer("DNSKEY", *signed(dns.rrset.from_rdata(ZONE, 60, KEY)))
SOA = dns.rrset.from_text(ZONE, 60, "IN", "SOA", "ns.shop.test. host.shop.test. 1 60 60 60 60")


def test_an_answer_that_is_right() -> None:
    """A record and a denial, each with its signature."""
    denial = signed(dns.rrset.from_text(ZONE, 60, "IN", "NSEC", "shop.test. NS SOA"))
    others = [answer("SOA", *signed(SOA)), answer("CAA", *signed(SOA), *denial, denies=True)]
    assert fault_of(ZONE, [DS], ServerAnswers(KEYS, others), NOW) == ""


def test_a_denial_without_proof() -> None:
    """The SOA alone, signed or not, proves nothing of what isn't there."""
    others = [answer("CAA", *signed(SOA), name=dns.name.from_text("www.shop.test"), denies=True)]
    said = fault_of(ZONE, [DS], ServerAnswers(KEYS, others), NOW)
    assert said == "sends no signed proof (NSEC, NSEC3) that there is no CAA of www.shop.test"


def test_no_keys() -> None:
    """The zone was signed once, says its parent."""
    assert "sends no DNSKEY" in fault_of(ZONE, [DS], ServerAnswers(answer("DNSKEY"), []), NOW)


def test_a_signature_of_a_key_that_is_gone() -> None:
    """As where a key was taken out of the zone before what it had signed."""
    gone = ec.generate_private_key(ec.SECP256R1())
    key = dns.dnssec.make_dnskey(gone.public_key(), "ECDSAP256SHA256", flags=256)
    rrsig = dns.dnssec.sign(SOA, gone, ZONE, key, inception=NOW, expiration=NOW + timedelta(days=1))
    others = [answer("SOA", SOA, dns.rrset.from_rdata(ZONE, 60, rrsig))]
    said = fault_of(ZONE, [], ServerAnswers(KEYS, others), NOW)
    assert said == (
        f"sends SOA of shop.test with a signature by key {dns.dnssec.key_id(key)}, which isn't among its DNSKEYs"
    )
    both = [answer("SOA", SOA, dns.rrset.from_rdata(ZONE, 60, rrsig, *signed(SOA)[1]))]
    assert fault_of(ZONE, [], ServerAnswers(KEYS, both), NOW) == ""


def test_what_cannot_be_judged_is_no_fault() -> None:
    """An algorithm or a digest that nobody here knows; and what another zone of the same server has signed."""
    unknown = dns.rrset.from_text(ZONE, 60, "IN", "DS", f"{DS.key_tag} 13 250 00ff")
    assert fault_of(ZONE, list(unknown), ServerAnswers(KEYS, []), NOW) == ""
    name = dns.name.from_text("www.sub.shop.test")
    text = "A 250 4 60 20261201000000 20261101000000 1 sub.shop.test. AAAA"
    others = [
        answer(
            "A",
            dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.1"),
            dns.rrset.from_text(name, 60, "IN", "RRSIG", text),
            name=name,
        )
    ]
    assert fault_of(ZONE, [DS], ServerAnswers(KEYS, others), NOW) == ""
