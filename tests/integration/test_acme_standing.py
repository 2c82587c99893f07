"""`challenge: dns-persist-01` with a real Pebble (draft 01) and a real name server: records, their check, certificates."""

from __future__ import annotations

import asyncio
import io
import json
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.broker import adapters
from certplane.broker.cli import main
from certplane.broker.issuers.acme import AcmeIssuer
from certplane.broker.issuers.dns.preflight import DnsPreflight
from certplane.broker.model import IssuerOrderStatus, Profile
from certplane.broker.settings import BrokerSettings, load_settings
from certplane.errors import Reason, RefusalError
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.runtime.clock import SystemClock
from certplane.sandbox.dns_endpoint import DnsEndpoint
from certplane.sandbox.pebble import Pebble, PebbleOptions
from certplane.sandbox.ports import DnsServer
from tests.fakes.secrets import FakeSecretSource
from tests.support.broker_files import BrokerFiles, account_keys
from tests.support.parts import need_part

pytestmark = pytest.mark.integration

SOON = timedelta(seconds=30)
POLICY = """\
version: 1
profiles:
  web: {type: mixed, dns_names: ["%(name)s", "*.%(name)s"]}
hosts:
  web1: {identity: web1.certplane.test, profiles: [web]}
"""


@dataclass
class World:
    """A broker's files, a CA that takes standing records, and the DNS."""

    files: BrokerFiles
    pebble: Pebble
    dns: DnsEndpoint
    name: str

    @property
    def settings(self) -> BrokerSettings:
        return load_settings(self.files.config)

    @property
    def profile(self) -> Profile:
        return Profile("web", "mixed", (self.name, f"*.{self.name}"), "hash")

    def command(self, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
        """`certplane-broker account persist-records`: its status, rows and standard error."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main(["-c", str(self.files.config), "--json", "account", "persist-records", *arguments])
        return status, [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()

    async def printed(self, *arguments: str) -> list[dict[str, Any]]:
        status, rows, said = await asyncio.to_thread(self.command, *arguments)
        assert status == 0, said
        return rows

    async def look(self) -> tuple[int, dict[str, Any]]:
        status, (row,), _ = await asyncio.to_thread(self.command, "--check")
        return status, row

    @asynccontextmanager
    async def adapters(self) -> AsyncIterator[tuple[AcmeIssuer, DnsPreflight]]:
        """The issuer and the preflight as the issuing process has them."""
        settings, clock, rng, secrets = self.settings, SystemClock(), random.Random(1), FakeSecretSource({})
        key = (await account_keys(settings))["default"]
        async with adapters.cas(settings, clock) as cas:
            issuer = AcmeIssuer("default", cas["default"], key, rng=rng)
            solver = adapters.solver(settings, secrets, clock, rng)
            yield issuer, adapters.preflight(solver, cas, {"default": issuer}, clock)
            await solver.close()


@pytest.fixture
async def world(tmp_path: Path, dns_server: DnsServer, own_name: str) -> AsyncIterator[World]:
    part, dns = need_part("pebble"), dns_server.endpoint
    if part.version < "2.10":
        pytest.skip("this Pebble doesn't know dns-persist-01")
    async with Pebble(tmp_path / "pebble", dns.host_port, PebbleOptions(), part=part) as pebble:
        files = BrokerFiles(tmp_path)
        acme = files.settings["issuer"]["acme"]
        del acme["dns_provider"], acme["rfc2136"]
        acme |= {
            "directory_url": pebble.directory_url,
            "ca_bundle": str(pebble.https_roots_file),
            "challenge": "dns-persist-01",
            "propagation": {"nameservers": [dns.host_port]},
        }
        files.config.write_text(yaml.safe_dump(files.settings))
        files.policy.write_text(POLICY % {"name": own_name})
        await account_keys(load_settings(files.config))
        yield World(files, pebble, dns, own_name)
        shutil.rmtree(tmp_path / "pebble", ignore_errors=True)


def csr_of(world: World) -> bytes:
    pem = build_csr(generate_private_key(KeyType.EC_P256), sans=world.profile.dns_names)
    return x509.load_pem_x509_csr(pem.encode()).public_bytes(Encoding.DER)


async def publish(world: World, value: str) -> None:
    await world.dns.add(f"_validation-persist.{world.name}", "TXT", f'"{value}"')


async def test_from_the_printed_record_to_the_certificate(world: World) -> None:
    """What is printed is published; it is found; the CA takes it, for the name and its wildcard; nothing is written."""
    (row,) = await world.printed("--profile", "web")
    assert row["value"].startswith("pebble.letsencrypt.org; accounturi=https://127.0.0.1")
    assert row["value"].endswith("; policy=wildcard")
    status, looked = await world.look()
    assert (status, looked["result"]) == (1, "failed")
    assert row["record"] in looked["remedy"]
    await publish(world, row["value"])
    status, looked = await world.look()
    assert (status, looked["result"], "remedy" in looked) == (0, "ok", False)
    async with world.adapters() as (issuer, preflight):
        await preflight.check_order(world.profile.dns_names, "default", SOON)
        csr_der = csr_of(world)
        order = await issuer.create_order(csr_der, world.profile, SOON)
        assert [challenge.standing for challenge in order.challenges] == [True, True]
        ready = await issuer.answer_challenges(order, SOON)
        assert ready.status is IssuerOrderStatus.READY
        chain = await issuer.download(await issuer.finalize(ready, csr_der, SOON), SOON)
        assert "BEGIN CERTIFICATE" in chain
    assert await world.dns.txt(f"_acme-challenge.{world.name}") == frozenset()


async def test_an_order_without_its_record_is_not_spent(world: World) -> None:
    """The refusal has the record to publish, and no order was made; nor does one made all the same get further."""
    async with world.adapters() as (issuer, preflight):
        with pytest.raises(RefusalError) as caught:
            await preflight.check_order(world.profile.dns_names, "default", SOON)
        refusal = caught.value.refusal
        assert refusal.reason is Reason.DNS_REJECTED
        assert "shows none for pebble.letsencrypt.org" in refusal.message
        assert f"publish `_validation-persist.{world.name}. IN TXT" in refusal.message
        assert world.pebble.log.orders == ()
        order = await issuer.create_order(csr_of(world), world.profile, SOON)
        with pytest.raises(RefusalError) as caught:
            await issuer.answer_challenges(order, SOON)
        assert caught.value.refusal.reason is Reason.ISSUER_REJECTED
        assert f"_validation-persist.{world.name}" in caught.value.refusal.message


WRONG = [
    pytest.param("pebble.letsencrypt.org; accounturi={uri}", "lacks policy=wildcard", id="no-wildcard"),
    pytest.param("pebble.letsencrypt.org; accounturi={uri}1; policy=wildcard", "ours is another", id="other-account"),
    pytest.param(
        "pebble.letsencrypt.org; accounturi={uri}; policy=wildcard; persistUntil=1700000000", "it ended", id="ended"
    ),
    pytest.param("letsencrypt.org; accounturi={uri}; policy=wildcard", "shows none for pebble", id="other-ca"),
]


@pytest.mark.parametrize(("value", "said"), WRONG)
async def test_a_record_that_does_not_count(world: World, value: str, said: str) -> None:
    """It is refused before the CA is asked, who would refuse it too, with what is wrong and the record to publish."""
    (row,) = await world.printed()
    uri = row["value"].split("accounturi=")[1].split(";")[0]
    await publish(world, value.format(uri=uri))
    status, looked = await world.look()
    assert (status, looked["result"]) == (1, "failed")
    assert said in looked["detail"]
    async with world.adapters() as (issuer, preflight):
        with pytest.raises(RefusalError) as caught:
            await preflight.check_order(world.profile.dns_names, "default", SOON)
        assert said in caught.value.refusal.message
        order = await issuer.create_order(csr_of(world), world.profile, SOON)
        with pytest.raises(RefusalError):
            await issuer.answer_challenges(order, SOON)


async def test_the_end_of_a_record(world: World) -> None:
    """`--until` is in the record, and told where it stands; close to its end, what to do is told too."""
    (row,) = await world.printed("--until", "2099-01-01")
    assert row["value"].endswith("; persistUntil=4070908800")
    await publish(world, row["value"])
    status, looked = await world.look()
    assert (status, looked["result"], "remedy" in looked) == (0, "ok", False)
    assert "it ends 2099-01-01" in looked["detail"]
