"""The records of dns-persist-01: what they say, and what a CA will think of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.issuers.standing_records import (
    Standing,
    StandingAccount,
    StandingRecord,
    hash_prefix,
    issuer_domain_names,
    judge_record,
    standing_records,
    why_malformed,
    zone_line,
)

NOW = datetime(2026, 11, 29, tzinfo=UTC)
URL = "https://ca.example/acct/123"
PREFIX = "https://ca.example/account-hash/"
THUMBPRINT = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
FIRST = StandingAccount(("authority.example", "ca.example.net"), URL, THUMBPRINT)
"""As draft 01 names an account."""
SECOND = StandingAccount(("authority.example",), URL, THUMBPRINT, PREFIX)
"""As draft 02 does."""
PLAIN, WILD = StandingRecord("example.com"), StandingRecord("example.com", wildcard=True)


def test_the_hash_of_the_draft() -> None:
    """Section 10.2 of draft-ietf-acme-dns-persist-02, and its form for any name."""
    assert SECOND.account_uri("example.com") == f"{PREFIX}sha-256/5SQm7n6tPh2-PlLbCKGnViTXX5z19SCN4cPGQHSk-kw"
    assert SECOND.account_uri("*") == f"{PREFIX}sha-256/NpDnSwUthQK8zCgFdefYxAdAVPnygMLbs9US6oO-5ug"


def test_another_key_makes_another_record_from_draft_02_on() -> None:
    """What a change of the account's key means depends on the draft."""
    changed = "A" * 43
    first, second = StandingAccount(("ca",), URL, changed), StandingAccount(("ca",), URL, changed, PREFIX)
    assert first.account_uri("example.com") == FIRST.account_uri("example.com")
    assert second.account_uri("example.com") != SECOND.account_uri("example.com")


def test_a_name_and_its_wildcard_share_a_record() -> None:
    """One record each name, with the policy that a wildcard needs."""
    assert standing_records(["b.example", "*.a.example", "a.example"]) == (
        StandingRecord("b.example"),
        StandingRecord("a.example", wildcard=True),
    )
    assert WILD.name == "_validation-persist.example.com"
    assert WILD.value(FIRST, NOW) == f"authority.example; accounturi={URL}; policy=wildcard; persistUntil=1795910400"


def test_a_long_value_is_several_strings() -> None:
    """A string of a TXT record has 255 octets at most; joined they are the value."""
    account = StandingAccount(("authority.example",), "https://ca.example/" + "a" * 400)
    line = zone_line(PLAIN, PLAIN.value(account))
    strings = line.split(" IN TXT ")[1][1:-1].split('" "')
    assert "".join(strings) == PLAIN.value(account)
    assert len(strings) == 2
    assert max(map(len, strings)) == 255


GOOD = f"authority.example; accounturi={URL}"
JUDGED = [
    pytest.param(GOOD, PLAIN, FIRST, Standing.GOOD, "", id="as-it-should-be"),
    pytest.param(f"ca.example.net;accounturi={URL}", PLAIN, FIRST, Standing.GOOD, "", id="any-name-of-the-ca"),
    pytest.param(f"  {GOOD} ;\tpolicy = WildCard ", WILD, FIRST, Standing.GOOD, "", id="blanks-and-case"),
    pytest.param(f"{GOOD}; later=thing", PLAIN, FIRST, Standing.GOOD, "", id="unknown-parameter"),
    pytest.param(GOOD, WILD, FIRST, Standing.BAD, "policy=wildcard", id="wildcard-without-policy"),
    pytest.param(f"{GOOD}; policy=all", WILD, FIRST, Standing.BAD, "policy=wildcard", id="unknown-policy"),
    pytest.param(f"{GOOD}; persistUntil=1795910401", PLAIN, FIRST, Standing.GOOD, "", id="ends-later"),
    pytest.param(f"{GOOD}; persistUntil=1795910399", PLAIN, FIRST, Standing.BAD, "it ended 2026-11-28T", id="ended"),
    pytest.param(f"{GOOD}; persistUntil=-1", PLAIN, FIRST, Standing.BAD, "it ended 1969", id="ended-long-ago"),
    pytest.param(f"{GOOD}; persistUntil=999999999999999", PLAIN, FIRST, Standing.GOOD, "", id="for-ever"),
    pytest.param(f"{GOOD}; persistUntil=soon", PLAIN, FIRST, Standing.BAD, "isn't a UNIX time", id="no-time"),
    pytest.param(f"{GOOD}; accounturi={URL}", PLAIN, FIRST, Standing.BAD, "there twice", id="twice"),
    pytest.param(f"{GOOD};", PLAIN, FIRST, Standing.BAD, "can't be read", id="empty-parameter"),
    pytest.param("authority.example", PLAIN, FIRST, Standing.BAD, "names no account", id="no-account"),
    pytest.param(f"{GOOD}4", PLAIN, FIRST, Standing.BAD, "ours is another", id="another-account"),
    pytest.param(f"other.example; accounturi={URL}", PLAIN, FIRST, Standing.OTHER, "", id="another-ca"),
    pytest.param("v=spf1 -all", PLAIN, FIRST, Standing.OTHER, "", id="no-such-record"),
    pytest.param("", PLAIN, FIRST, Standing.OTHER, "", id="empty"),
    pytest.param(PLAIN.value(SECOND), PLAIN, SECOND, Standing.GOOD, "", id="hash"),
    pytest.param(
        f"authority.example; accounturi={SECOND.account_uri('*')}", PLAIN, SECOND, Standing.GOOD, "", id="hash-of-any"
    ),
    pytest.param(
        StandingRecord("other.example").value(SECOND), PLAIN, SECOND, Standing.DOUBTFUL, "of a key", id="other-hash"
    ),
    pytest.param(GOOD, PLAIN, SECOND, Standing.BAD, "ours is another", id="plain-url-where-hashes-are-wanted"),
    pytest.param(
        GOOD,
        PLAIN,
        StandingAccount(("authority.example",)),
        Standing.DOUBTFUL,
        "wasn't looked up",
        id="unknown-account",
    ),
]


@pytest.mark.parametrize(("text", "wanted", "account", "standing", "why"), JUDGED)
def test_what_a_record_is_worth(
    text: str, wanted: StandingRecord, account: StandingAccount, standing: Standing, why: str
) -> None:
    """As the CA's rules have it; what only the CA can know is a doubt."""
    found = judge_record(text, wanted, account, NOW)
    assert found.standing is standing
    assert why in found.why
    assert bool(found.why) == (standing in {Standing.BAD, Standing.DOUBTFUL})


@given(st.text(), st.booleans())
def test_nothing_makes_it_fail(text: str, wildcard: bool) -> None:
    """Whatever stands in the DNS, and none of it gets a raw control character into a message."""
    judged = judge_record(f"authority.example;{text}", StandingRecord("example.com", wildcard), FIRST, NOW)
    assert judged.why.isprintable()


@given(st.sampled_from([FIRST, SECOND]), st.booleans(), st.integers(0, 10**9), st.booleans())
def test_what_is_printed_is_good(account: StandingAccount, wildcard: bool, span: int, ends: bool) -> None:
    """A record that an operator publishes as printed is one that the CA takes."""
    wanted = StandingRecord("www.example.com", wildcard)
    until = NOW + timedelta(seconds=span) if ends else None
    judged = judge_record(wanted.value(account, until), wanted, account, NOW)
    assert (judged.standing, judged.until) == (Standing.GOOD, until)


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (["ca.example", "xn--bcher-kva.example"], ("ca.example", "xn--bcher-kva.example")),
        ([], ()),
        (["ca.example"] * 11, ()),
        (["CA.example"], ()),
        (["ca.example."], ()),
        (["ca.example; policy=wildcard"], ()),
        (["ca.example", 7], ()),
        ("ca.example", ()),
        (None, ()),
    ],
)
def test_names_of_the_ca(found: object, names: tuple[str, ...]) -> None:
    """Names that aren't as the draft wants them aren't relied on, none of them."""
    assert issuer_domain_names(found) == names


@pytest.mark.parametrize(
    "found", [None, "", "http://ca.example/", "https://ca.example/;policy=wildcard", 'https://a"b', 7]
)
def test_prefix_that_no_record_could_hold(found: object) -> None:
    """It would say more than an account."""
    assert hash_prefix(found) == ""


def test_names_of_a_challenge() -> None:
    """All of the directory's are among them, and all are the CA's in CAA, where it says these."""
    assert not why_malformed(["a.example", "b.example"], ["a.example"], ["a.example", "b.example"])
    assert not why_malformed(["a.example"], [], [])
    assert "usable" in why_malformed([], [], [])
    assert "lacks" in why_malformed(["a.example"], ["b.example"], [])
    assert "caaIdentities" in why_malformed(["a.example"], [], ["b.example"])
