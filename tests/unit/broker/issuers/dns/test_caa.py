"""CAA: which records decide for a name, and what they say (RFC 8659, RFC 8657)."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import dns.name
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.caa import CaaRecord, ParentRecords, Verdict, judge, relevant_records
from certplane.broker.issuers.dns.dns_messages import Answer, NoDnsAnswerError
from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.issuers.dns.resolvers import Resolvers
from certplane.broker.ports import CaaIdentity
from certplane.config.values import HostPort
from certplane.runtime.clock import SystemClock
from certplane.sandbox.bind import BindServer
from tests.fakes.clock import ManualClock

ACCOUNT = "https://ca.example/acct/1"
OURS = CaaIdentity(("ca.example", "ca.example.org"), ACCOUNT)
ALLOWED, FORBIDDEN, UNKNOWN = Verdict.ALLOWED, Verdict.FORBIDDEN, Verdict.UNKNOWN


def issue(*values: str, tag: str = "issue", flags: int = 0) -> list[CaaRecord]:
    return [CaaRecord(flags, tag, value) for value in values]


RECORDS = [
    pytest.param([], ALLOWED, "no CAA records", id="none"),
    pytest.param(issue("ca.example"), ALLOWED, "allows it", id="ours"),
    pytest.param(issue("CA.Example."), ALLOWED, "allows it", id="case-and-dot"),
    pytest.param(issue("ca.example.org"), ALLOWED, "allows it", id="other-name-of-ours"),
    pytest.param(issue("other.example"), FORBIDDEN, '0 issue "other.example" (another CA)', id="another"),
    pytest.param(issue("other.example", "ca.example"), ALLOWED, "allows it", id="one-of-two"),
    pytest.param(issue(";"), FORBIDDEN, "names nobody", id="nobody"),
    pytest.param(issue(""), FORBIDDEN, "names nobody", id="empty"),
    pytest.param(issue("sub.ca.example"), FORBIDDEN, "another CA", id="not-a-suffix"),
    pytest.param(issue("%%%"), FORBIDDEN, "can't be read", id="malformed"),
    pytest.param(issue("mailto:x@y", tag="iodef"), ALLOWED, "restrict who may issue", id="iodef-only"),
    pytest.param(issue("other.example", tag="issuewild"), ALLOWED, "restrict who may issue", id="issuewild-only"),
    pytest.param(issue("x", tag="tbs", flags=128), FORBIDDEN, "critical", id="critical"),
    pytest.param(issue("Unknown", tag="tbs", flags=1), FORBIDDEN, "critical", id="critical-by-bit-1"),
    pytest.param(issue("x", tag="tbs", flags=129), FORBIDDEN, "critical", id="critical-by-both-bits"),
    pytest.param(issue("x", tag="tbs", flags=3), FORBIDDEN, "critical", id="critical-beside-a-reserved-bit"),
    pytest.param(issue("x", tag="tbs", flags=126), ALLOWED, "restrict who may issue", id="reserved-bits-only"),
    pytest.param(issue("x", tag="issuemail", flags=1), ALLOWED, "restrict who may issue", id="issuemail-by-bit-1"),
    pytest.param(issue("x", tag="issuevmc", flags=128), ALLOWED, "restrict who may issue", id="issuevmc-critical"),
    pytest.param(issue("ca.example", tag="issuewild", flags=1), ALLOWED, "restrict who", id="issuewild-by-bit-1"),
    pytest.param(issue("ca.example", flags=128), ALLOWED, "allows it", id="critical-and-known"),
    pytest.param(issue("x", tag="tbs"), ALLOWED, "restrict who may issue", id="unknown-not-critical"),
    pytest.param(issue("ca.example; validationmethods=dns-01"), ALLOWED, "allows it", id="method"),
    pytest.param(issue("ca.example; validationmethods=http-01,dns-01"), ALLOWED, "allows it", id="methods"),
    pytest.param(issue("ca.example; validationmethods=http-01"), FORBIDDEN, "without dns-01", id="other-method"),
    pytest.param(issue(f"ca.example;accounturi={ACCOUNT}"), ALLOWED, "allows it", id="account"),
    pytest.param(
        issue("ca.example; accounturi=https://ca.example/acct/2"), FORBIDDEN, "another account", id="other-acct"
    ),
    pytest.param(
        issue(f"ca.example; accounturi={ACCOUNT}; accounturi={ACCOUNT}"), FORBIDDEN, "more than one", id="2acct"
    ),
    pytest.param(issue("ca.example; nonsense"), FORBIDDEN, "parameters can't be read", id="malformed-parameter"),
    pytest.param(issue("ca.example; future=1"), ALLOWED, "allows it", id="unknown-parameter"),
    pytest.param(issue("ca.example; some-thing=1"), ALLOWED, "allows it", id="parameter-with-hyphen"),
    pytest.param(issue("ca.example; thing-=1"), FORBIDDEN, "parameters can't be read", id="hyphen-at-its-end"),
]


@pytest.mark.parametrize(("records", "verdict", "said"), RECORDS)
def test_judges(records: list[CaaRecord], verdict: Verdict, said: str) -> None:
    """Each property is taken as a CA has to take it, and the record is quoted."""
    judged = judge("www.test", "www.test" if records else "", records, OURS)
    assert (judged.verdict, said in judged.message) == (verdict, True)
    assert bool(judged.remedy) is (verdict is FORBIDDEN)


WILDCARDS = [
    pytest.param([*issue("ca.example"), *issue("other.example", tag="issuewild")], FORBIDDEN, id="issuewild-decides"),
    pytest.param([*issue("other.example"), *issue("ca.example", tag="issuewild")], ALLOWED, id="issuewild-alone"),
    pytest.param(issue("ca.example"), ALLOWED, id="issue-for-want-of-it"),
    pytest.param(issue("other.example"), FORBIDDEN, id="issue-for-want-of-it-forbids"),
]


@pytest.mark.parametrize(("records", "verdict"), WILDCARDS)
def test_wildcards(records: list[CaaRecord], verdict: Verdict) -> None:
    """Issuewild comes before issue, for wildcards only."""
    assert judge("*.www.test", "www.test", records, OURS).verdict is verdict


@pytest.mark.parametrize(
    ("records", "identity", "verdict"),
    [
        pytest.param(issue("ca.example"), CaaIdentity(), UNKNOWN, id="nameless-ca"),
        pytest.param(
            issue(f"ca.example; accounturi={ACCOUNT}"), CaaIdentity(("ca.example",)), UNKNOWN, id="no-account"
        ),
        pytest.param(issue("other.example; accounturi=x"), CaaIdentity(("ca.example",)), FORBIDDEN, id="other-anyway"),
        pytest.param([], CaaIdentity(), ALLOWED, id="no-records"),
    ],
)
def test_what_cannot_be_decided(records: list[CaaRecord], identity: CaaIdentity, verdict: Verdict) -> None:
    """A doubt is no refusal."""
    assert judge("www.test", "www.test", records, identity).verdict is verdict


def test_remedy_is_a_record() -> None:
    """The record that would allow it, at the name that decides, with the property that decides."""
    judged = judge("*.a.www.test", "www.test", issue("other.example", tag="issuewild"), OURS)
    assert 'add `www.test. CAA 0 issuewild "ca.example"`' in judged.remedy


@given(st.lists(st.builds(CaaRecord, st.integers(0, 255), st.sampled_from(["issue", "issuewild", "x"]), st.text())))
def test_any_records_are_judged(records: list[CaaRecord]) -> None:
    """Whatever stands in the DNS is judged without failing, in printable words."""
    judged = judge("*.www.test", "www.test", records, OURS)
    assert judged.message.isprintable()


class CountedResolvers(Resolvers):
    """Answer that there is nothing anywhere, or nothing at all while they are `away`."""

    def __init__(self) -> None:
        super().__init__([HostPort("127.0.0.1", 9)], ManualClock(), key="")
        self.asked: Counter[str] = Counter()
        self.away = False

    async def resolve(self, name: dns.name.Name, kind: dns.rdatatype.RdataType, deadline: Deadline) -> Answer | None:
        self.asked[name.to_text(omit_final_dot=True)] += 1
        await asyncio.sleep(0)
        if self.away:
            raise NoDnsAnswerError("away")
        return None


def counted_lookup(clock: ManualClock) -> tuple[DnsLookup, CountedResolvers]:
    resolvers = CountedResolvers()
    lookup = DnsLookup(resolvers=[HostPort("127.0.0.1", 9)], clock=clock)
    lookup.resolvers = resolvers
    return lookup, resolvers


async def test_orders_of_a_burst_share_what_stands_above_their_names() -> None:
    """Each asks for its own names; the zone's and what is above are asked for once, and again some seconds later."""
    clock = ManualClock()
    lookup, resolvers = counted_lookup(clock)
    parents, deadline = ParentRecords(clock), Deadline.after(timedelta(minutes=1), clock)

    async def burst() -> None:
        names = (f"w{number}.shop.test" for number in range(50))
        await asyncio.gather(*(relevant_records(lookup, name, deadline, parents) for name in names))

    await burst()
    assert (resolvers.asked["shop.test"], resolvers.asked["test"], resolvers.asked["w7.shop.test"]) == (1, 1, 1)
    clock.advance(timedelta(seconds=11))
    await burst()
    assert (resolvers.asked["shop.test"], resolvers.asked["w7.shop.test"]) == (2, 2)


async def test_a_parent_without_an_answer_is_asked_again() -> None:
    """That it couldn't be told is nobody else's answer."""
    lookup, resolvers = counted_lookup(ManualClock())
    parents, deadline = ParentRecords(ManualClock()), Deadline.after(timedelta(minutes=1), ManualClock())
    resolvers.away = True
    with pytest.raises(NoDnsAnswerError):
        await parents.at(lookup, dns.name.from_text("shop.test"), deadline)
    resolvers.away = False
    assert await parents.at(lookup, dns.name.from_text("shop.test"), deadline) == ()


@pytest.mark.integration
async def test_climbs_the_tree(bind: BindServer, own_name: str) -> None:
    """The nearest name upwards with records decides, aliases are followed, wildcards begin at their base."""
    address = [HostPort(bind.endpoint.addresses[0], bind.endpoint.port)]
    deadline = Deadline.after(timedelta(seconds=20), SystemClock())
    lookup = DnsLookup(resolvers=address, port=bind.endpoint.port)
    await bind.endpoint.add(own_name, "CAA", '0 issue "near.example"')
    await bind.endpoint.add("other.test", "CAA", '0 issue "far.example"')
    await bind.endpoint.add(f"alias.{own_name}", "CNAME", "other.test.")

    async def found(name: str) -> tuple[str, list[str]]:
        owner, records = await relevant_records(lookup, name, deadline, ParentRecords(SystemClock()))
        return owner, [record.value for record in records]

    assert await found(own_name) == (own_name, ["near.example"])
    assert await found(f"a.b.{own_name}") == (own_name, ["near.example"])
    assert await found(f"*.{own_name}") == (own_name, ["near.example"])
    assert await found(f"alias.{own_name}") == (f"alias.{own_name}", ["far.example"])
    await bind.endpoint.remove("other.test", "CAA")
    with pytest.raises(NoDnsAnswerError):  # this laboratory has no root: nothing can be told above its zones
        await found("x.other.test")
