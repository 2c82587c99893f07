"""From broker.yml to acme-dns: a challenge name whose CNAME leads to an account, through a real DNS server."""

from __future__ import annotations

import itertools
import json
import random
import uuid
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.broker import adapters
from certplane.broker.model import DnsChallenge, Profile
from certplane.broker.settings import load_settings
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.ports import DnsServer
from tests.fakes.secrets import FakeSecretSource
from tests.support.acme_dns_server import AcmeDnsServer
from tests.support.broker_files import BrokerFiles

pytestmark = pytest.mark.integration

SOON = timedelta(seconds=20)


async def test_delegated_apex_and_wildcard(dns_server: DnsServer, own_name: str, tmp_path: Path) -> None:
    """Both values of a domain with its wildcard stand where the CNAME leads, seen by the servers that are asked."""
    dns = dns_server.endpoint
    fulldomain = f"{uuid.uuid4()}.auth.example.test"
    await dns.add(f"_acme-challenge.{own_name}", "CNAME", f"{fulldomain}.")
    ages = itertools.count(1)
    with AcmeDnsServer(dns, clock=lambda: next(ages)) as server:
        secrets = FakeSecretSource({"acme-dns/accounts": json.dumps({own_name: server.register(fulldomain)})})
        files = BrokerFiles(tmp_path)
        acme = files.settings["issuer"]["acme"]
        acme |= {"dns_provider": "acme-dns", "acme_dns": {"endpoint": server.url, "polling_interval": "50ms"}}
        files.settings["dns"] = {
            "delegations": ["auth.example.test"],
            "resolvers": [f"{dns.addresses[0]}:{dns.port}"],
            "authoritative_servers": [f"{address}:{dns.port}" for address in dns.addresses],
        }
        files.write()
        solver = adapters.solver(load_settings(files.config), secrets, SystemClock(), random.Random(1))
        challenges = [
            DnsChallenge(own_name, f"_acme-challenge.{own_name}", letter * 43, "https://ca/a", "https://ca/c", "t.t")
            for letter in "aw"
        ]
        plan = await solver.plan(challenges, Profile("web", "mixed", (own_name,), "hash"), SOON)
        assert {record.name for record in plan} == {fulldomain}
        written = await solver.present(plan, SOON)
        await solver.wait_until_visible(written, SOON)
        assert await dns.txt(fulldomain) == {"a" * 43, "w" * 43}
        assert list(await solver.remove(written, SOON)) == []

        another = [
            DnsChallenge("x.example.test", "_acme-challenge.x.example.test", "x" * 43, "https://ca/a", "", "t.t")
        ]
        with pytest.raises(RefusalError, match="no acme-dns account") as caught:
            await solver.present(await solver.plan(another, Profile("web", "mixed", (), "hash"), SOON), SOON)
        assert caught.value.refusal.reason is Reason.DNS_REJECTED
        await solver.close()
