"""Whether standing records are there, at every server, as the CA will want them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.issuers.dns.no_provider import NoProvider
from certplane.broker.issuers.dns.propagation import PropagationCheck
from certplane.broker.issuers.dns.routes import Route, Routes
from certplane.broker.issuers.dns.settings import Mode
from certplane.broker.issuers.dns.standing import StandingRecords
from certplane.broker.issuers.standing_records import StandingAccount, StandingRecord
from certplane.broker.model import PreflightCheck, PreflightResult, TxtRecord
from certplane.config.values import HostPort
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.dns import SandboxDnsServer

OK, FAILED, UNKNOWN = PreflightResult.OK, PreflightResult.FAILED, PreflightResult.UNKNOWN
ACCOUNT = StandingAccount(("ca.example",), "https://ca.example/acct/1", "thumbprint")
WANTED = StandingRecord("www.certplane.test")
SOON = timedelta(seconds=20)


async def check(
    server: SandboxDnsServer,
    wanted: StandingRecord = WANTED,
    account: StandingAccount = ACCOUNT,
    mode: Mode = Mode.AUTHORITATIVE,
) -> PreflightCheck:
    servers = [HostPort(address, server.endpoint.port) for address in server.endpoint.addresses]
    lookup = DnsLookup(servers=servers, resolvers=servers if mode is Mode.RECURSIVE else ())
    routes = Routes(Route(NoProvider(), lookup, PropagationCheck(lookup, mode=mode)))
    found = await StandingRecords(routes, SystemClock()).check(
        wanted, "main", account, Deadline.after(SOON, SystemClock())
    )
    assert found.subject == f"{wanted.name} at main"
    return found


async def publish(server: SandboxDnsServer, name: str, *values: str) -> None:
    for value in values:
        await server.endpoint.add(name, "TXT", f'"{value}"')


async def test_at_every_server(sandbox_dns: SandboxDnsServer) -> None:
    """One that stands beside others' records is enough, and it has to stand at all servers."""
    await publish(
        sandbox_dns, WANTED.name, "v=spf1 -all", "other.example; accounturi=https://o/1", WANTED.value(ACCOUNT)
    )
    found = await check(sandbox_dns)
    assert (found.result, found.detail, found.remedy) == (OK, "shown by 2 of 2 servers", "")
    sandbox_dns.faults["127.0.0.2"].visible_after = timedelta(hours=1)
    found = await check(sandbox_dns)
    assert found.result is FAILED
    assert found.detail.startswith("127.0.0.2")
    assert "shows none for ca.example" in found.detail
    assert found.remedy == f'publish `{WANTED.name}. IN TXT "{WANTED.value(ACCOUNT)}"`'


async def test_a_server_that_says_nothing_of_use(sandbox_dns: SandboxDnsServer) -> None:
    """Those that answer decide, and the silent one is told; where none answers nothing is known."""
    await publish(sandbox_dns, WANTED.name, WANTED.value(ACCOUNT))
    sandbox_dns.faults["127.0.0.2"].servfail = True
    found = await check(sandbox_dns)
    assert found.result is UNKNOWN
    assert "shown by 1 of 2 servers; 127.0.0.2" in found.detail
    assert "answers SERVFAIL" in found.detail
    sandbox_dns.faults["127.0.0.1"].servfail = True
    assert (await check(sandbox_dns)).result is UNKNOWN


async def test_behind_a_cname(sandbox_dns: SandboxDnsServer) -> None:
    """A CA's resolver follows it, to whatever zone."""
    await sandbox_dns.endpoint.add(WANTED.name, "CNAME", "standing.example.test.")
    assert (await check(sandbox_dns)).result is FAILED
    await publish(sandbox_dns, "standing.example.test", WANTED.value(ACCOUNT))
    assert (await check(sandbox_dns)).result is OK


async def test_a_loop_of_cnames(sandbox_dns: SandboxDnsServer) -> None:
    """It ends, without a verdict."""
    await sandbox_dns.endpoint.add(WANTED.name, "CNAME", "a.example.test.")
    await sandbox_dns.endpoint.add("a.example.test", "CNAME", f"{WANTED.name}.")
    assert (await check(sandbox_dns)).result is UNKNOWN


async def test_a_record_above_may_do(sandbox_dns: SandboxDnsServer) -> None:
    """With `policy=wildcard` it covers names below it, for CAs that take it so: only they know."""
    await publish(sandbox_dns, "_validation-persist.certplane.test", StandingRecord("certplane.test").value(ACCOUNT))
    assert (await check(sandbox_dns)).result is FAILED
    above = StandingRecord("certplane.test", wildcard=True)
    await publish(sandbox_dns, above.name, above.value(ACCOUNT))
    found = await check(sandbox_dns)
    assert found.result is UNKNOWN
    assert f"the CA may take the one at {above.name}" in found.detail


@pytest.mark.parametrize(
    ("account", "result", "detail", "remedy"),
    [
        pytest.param(StandingAccount(()), UNKNOWN, "doesn't say by which name", "ask the CA", id="ca-without-a-name"),
        pytest.param(
            StandingAccount(("ca.example",)), UNKNOWN, "wasn't looked up", "account persist-records", id="no-account"
        ),
        pytest.param(
            StandingAccount(("ca.example",), "https://ca.example/acct/2"),
            FAILED,
            "ours is another",
            "publish `",
            id="other",
        ),
    ],
)
async def test_as_far_as_the_account_is_known(
    sandbox_dns: SandboxDnsServer, account: StandingAccount, result: PreflightResult, detail: str, remedy: str
) -> None:
    """What isn't known is a doubt, which holds nothing up."""
    await publish(sandbox_dns, WANTED.name, WANTED.value(ACCOUNT))
    found = await check(sandbox_dns, account=account)
    assert found.result is result
    assert detail in found.detail
    assert remedy in found.remedy


async def test_by_resolvers(sandbox_dns: SandboxDnsServer) -> None:
    """Where no other server can be asked, one of them is."""
    assert (await check(sandbox_dns, mode=Mode.RECURSIVE)).result is FAILED
    await publish(sandbox_dns, WANTED.name, WANTED.value(ACCOUNT))
    found = await check(sandbox_dns, mode=Mode.RECURSIVE)
    assert (found.result, found.detail) == (OK, "shown by 1 of 1 server")


async def test_nobody_who_writes() -> None:
    """Without a DNS provider a record of an older order can't be removed, and the refusal says what is missing."""
    record = TxtRecord("", "_acme-challenge.www.certplane.test", "value")
    deadline = Deadline.after(SOON, SystemClock())
    for call in (NoProvider().add_txt(record, deadline), NoProvider().remove_txt(record, deadline)):
        with pytest.raises(RefusalError) as caught:
            await call
        assert caught.value.refusal.reason is Reason.DNS_REJECTED
        assert "add issuer.acme.dns_provider" in caught.value.refusal.message
