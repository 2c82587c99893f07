"""From broker.yml to adapters: what is configured arrives, and what is wrong is told with its line."""

from __future__ import annotations

import dataclasses
import random
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from certplane.broker import adapters, database
from certplane.broker.checking import check
from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.dns_messages import name_of
from certplane.broker.issuers.dns.providers import ProviderSections
from certplane.broker.issuers.dns.settings import Follow, Mode, propagation_limit
from certplane.broker.issuers.dns.solver import DnsSolver
from certplane.broker.model import PreflightResult
from certplane.broker.preflight import preflight
from certplane.broker.settings import BrokerSettings, load_settings
from certplane.broker.wiring import issuance_settings
from certplane.errors import ConfigurationError, OperationError
from certplane.runtime.clock import SystemClock
from certplane.runtime.pool import BlockingPool
from tests.fakes.clock import ManualClock
from tests.fakes.secrets import FakeSecretSource
from tests.support.broker_files import BrokerFiles, account_keys
from tests.support.scripted_acme import Answer, ScriptedAcme
from tests.support.vault_server import VaultServer


@pytest.fixture
def files(tmp_path: Path) -> BrokerFiles:
    return BrokerFiles(tmp_path)


def settings(files: BrokerFiles, **changes: Any) -> BrokerSettings:
    """The settings with keys like `issuer.acme.dns_provider` set to values."""
    for path, value in changes.items():
        *above, key = path.split("__")
        section = files.settings
        for name in above:
            section = section.setdefault(name, {})
        section[key] = value
    files.write()
    return load_settings(files.config)


EXAMPLE = yaml.safe_load((Path(__file__).parents[1] / "config" / "examples" / "broker.yml").read_text())
SECTIONS = {each.name: EXAMPLE["issuer"]["acme"][each.name] for each in dataclasses.fields(ProviderSections)}


@pytest.mark.parametrize("section", SECTIONS)
async def test_every_dns_provider_can_be_configured(files: BrokerFiles, section: str) -> None:
    """Each DNS provider of the format, with all its keys, becomes a solver."""
    here = {"program": "/bin/true", "ca_bundle": str(files.directory / "agent-ca.pem")}
    written = {key: here.get(key, value) for key, value in SECTIONS[section].items()}
    provider = section.replace("_", "-")
    made = settings(files, **{"issuer__acme__dns_provider": provider, f"issuer__acme__{section}": written})
    solver = adapters.solver(made, FakeSecretSource({}), ManualClock(), random.Random(1))
    assert isinstance(solver, DnsSolver)
    assert type(solver._routes.default.provider).__name__.lower() == f"{section.replace('_', '')}provider"
    await solver.close()


async def test_zones_have_routes_of_their_own(files: BrokerFiles) -> None:
    """Provider, server, credentials, servers and times go by zone; what a zone doesn't say is the general."""
    zones = [
        {"zone": "Acme.example", "provider": "cloudflare", "credentials": "cf/acme"},
        {
            "zone": "corp.example",
            "server": "127.0.0.1:5353",
            "authoritative_servers": ["192.0.2.1", "[2001:db8::1]:54"],
        },
        {"zone": "slow.example", "propagation": {"mode": "wait", "settle": "30m"}},
    ]
    made = settings(files, dns={"zones": zones, "propagation": {"timeout": "3m"}, "delegations": ["acme.example"]})
    solver = adapters.solver(made, FakeSecretSource({}), ManualClock(), random.Random(1))
    routes = solver._routes
    default, acme, corp, slow = routes.default, *(routes.of(f"x.{z}.example") for z in ("acme", "corp", "slow"))
    assert [type(one.provider).__name__ for one in (default, acme, corp)] == [
        "Rfc2136Provider",
        "CloudflareProvider",
        "Rfc2136Provider",
    ]
    assert corp.provider is not default.provider
    assert slow.provider is default.provider
    assert (acme.credentials_for("profile"), corp.credentials_for("profile")) == ("cf/acme", "profile")
    assert [
        (s.name, s.port) for s in await corp.lookup.servers_of(name_of("corp.example"), Deadline(ManualClock(), 1))
    ] == [
        ("192.0.2.1:53", 53),
        ("[2001:db8::1]:54", 54),
    ]
    assert (default.check._timeout, slow.check.mode) == (timedelta(minutes=3), "wait")
    assert propagation_limit(made.issuer.acme, made.dns) == timedelta(minutes=33)
    await solver.close()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        pytest.param(
            {
                "issuer__acme__dns_provider": "cloudflare",
                "issuer__acme__cloudflare": {"base_url": "http://api.example"},
            },
            "issuer.acme.cloudflare.base_url",
            id="API in plain HTTP",
        ),
        pytest.param(
            {
                "issuer__acme__dns_provider": "httpreq",
                "issuer__acme__httpreq": {
                    "endpoint": "http://dns.example",
                    "username_secret": "dns/user",
                    "password_secret": "dns/password",
                },
            },
            "issuer.acme.httpreq.endpoint",
            id="endpoint in plain HTTP",
        ),
        pytest.param(
            {"issuer__acme__dns_provider": "acme-dns", "issuer__acme__acme_dns": {"endpoint": "http://auth.example"}},
            "issuer.acme.acme_dns.endpoint",
            id="acme-dns in plain HTTP",
        ),
        pytest.param(
            {"issuer__acme__dns_provider": "exec", "issuer__acme__exec": {"program": "/nowhere/hook"}},
            "issuer.acme.exec.program",
            id="program that isn't there",
        ),
        pytest.param(
            {"issuer__acme__dns_provider": "lexicon", "issuer__acme__lexicon": {"provider": "powerdsn"}},
            "issuer.acme.lexicon.provider",
            id="provider that lexicon doesn't have",
        ),
        pytest.param(
            {"dns": {"zones": [{"zone": "a.test", "provider": "httpreq"}]}},
            "dns.zones[0].provider",
            id="zone whose provider has no section",
        ),
        pytest.param(
            {"dns": {"zones": [{"zone": "a.test", "provider": "cloudflare", "server": "127.0.0.1:53"}]}},
            "dns.zones[0].server",
            id="server of a provider that has none",
        ),
        pytest.param(
            {"dns": {"zones": [{"zone": "a.test", "resolvers": ["dns.example"]}]}},
            "dns.zones[0].resolvers",
            id="resolver that is no address",
        ),
    ],
)
def test_provider_that_cannot_be_used(files: BrokerFiles, changes: dict[str, Any], key: str) -> None:
    """What an adapter refuses is told with file, line and key."""
    made = settings(files, **changes)
    with pytest.raises(ConfigurationError) as caught:
        adapters.solver(made, FakeSecretSource({}), ManualClock(), random.Random(1))
    (problem,) = caught.value.problems
    assert (problem.file, problem.key) == (str(files.config), key)
    assert problem.line is not None


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        pytest.param(Answer(404), True, id="404"),
        pytest.param(Answer(200, b"<html>", "text/html"), True, id="html"),
        pytest.param(None, False, id="directory"),
        pytest.param(Answer(503), False, id="outage"),
    ],
)
async def test_check_asks_for_the_directories(
    files: BrokerFiles, tmp_path: Path, answer: Answer | None, failed: bool
) -> None:
    """`check` tells a directory that isn't one with its line and URL; an outage is a doubt, and nothing is made."""
    with ScriptedAcme(tmp_path) as ca:
        ca.fail("GET /directory", *[answer] * 9 if answer else ())
        made = settings(files, issuer__acme__directory_url=ca.directory_url, issuer__acme__ca_bundle=str(ca.roots_file))
        assert not any(ca.url in doubt for doubt in (await check(made, offline=True))[1])
        assert ca.requests == []
        if failed:
            with pytest.raises(ConfigurationError) as caught:
                await check(made)
            [problem] = caught.value.problems
            assert (problem.key, problem.line is None) == ("issuer.acme.directory_url", False)
            assert f"{ca.directory_url} is no ACME directory" in str(problem)
        else:
            _, doubts = await check(made)
            assert sum(ca.directory_url in doubt for doubt in doubts) == bool(answer)
        assert ca.count("GET /directory") == 1
    assert not (files.directory / "account.key").exists()


async def test_check_of_a_directory_where_nobody_is(files: BrokerFiles) -> None:
    """Each issuer that can't be reached is told, with its own key."""
    other = {"directory_url": "https://127.0.0.1:9/other", "account_key": str(files.directory / "other.key")}
    with pytest.raises(ConfigurationError) as caught:
        await check(settings(files, issuers={"other": {"acme": other}}))
    assert [problem.key for problem in caught.value.problems] == [
        "issuer.acme.directory_url",
        "issuers.other.acme.directory_url",
    ]
    assert "check host and port of issuers.other.acme.directory_url" in caught.value.problems[1].message


async def test_preflight_of_all_profiles(files: BrokerFiles, tmp_path: Path) -> None:
    """Without a name each profile is looked at, and what they share once."""
    with ScriptedAcme(tmp_path) as ca:
        made = settings(files, issuer__acme__directory_url=ca.directory_url, issuer__acme__ca_bundle=str(ca.roots_file))
        policy = yaml.safe_load(files.policy.read_text())
        policy["profiles"]["more"] = {"type": "multi_san", "dns_names": ["more.certplane.test"]}
        files.policy.write_text(yaml.safe_dump(policy))
        one, other, both = [await preflight(made, name) for name in ("web", "more", None)]
    assert {row.subject for row in both} == {row.subject for row in (*one, *other)}
    assert [row.check for row in both].count("directory") == 1
    assert any("more.certplane.test" in row.subject for row in other)
    assert not any("more.certplane.test" in row.subject for row in one)


async def test_preflight_of_names_that_differ_from_host_to_host(files: BrokerFiles, tmp_path: Path) -> None:
    """Each host's own are looked at; a profile that nobody has has none, and it says so."""
    with ScriptedAcme(tmp_path) as ca:
        made = settings(files, issuer__acme__directory_url=ca.directory_url, issuer__acme__ca_bundle=str(ca.roots_file))
        policy = yaml.safe_load(files.policy.read_text())
        policy["profiles"]["own"] = {"type": "multi_san", "dns_names": ["{label}.certplane.test"]}
        files.policy.write_text(yaml.safe_dump(policy))
        with pytest.raises(OperationError, match="nobody has the profile 'own'"):
            await preflight(made, "own")
        policy["hosts"] = {
            f"own{number}": {"identity": f"own{number}.example", "profiles": ["own"]} for number in range(3)
        }
        files.policy.write_text(yaml.safe_dump(policy))
        found = await preflight(made, "own")
    subjects = " ".join(row.subject for row in found)
    assert [f"own{number}.certplane.test" in subjects for number in range(3)] == [True] * 3
    assert "{" not in subjects


async def test_preflight_looks_at_the_directory(files: BrokerFiles, tmp_path: Path) -> None:
    """It fails where no order could begin: no directory, or not the certificate profile that policy names."""
    with ScriptedAcme(tmp_path) as ca:
        made = settings(files, issuer__acme__directory_url=ca.directory_url, issuer__acme__ca_bundle=str(ca.roots_file))

        async def looked() -> tuple[PreflightResult, str]:
            [row] = [row for row in await preflight(made, "web") if row.check == "directory"]
            return row.result, row.detail

        assert await looked() == (PreflightResult.OK, "can be read")
        files.policy.write_text(
            files.policy.read_text().replace("challenge: dns-01", "challenge: dns-01, profile: fast")
        )
        result, detail = await looked()
        assert (result, "it has no certificate profile 'fast'" in detail) == (PreflightResult.FAILED, True)
        ca.fail("GET /directory", Answer(404))
        result, detail = await looked()
        assert (result, f"{ca.directory_url} is no ACME directory" in detail) == (PreflightResult.FAILED, True)


HTTPREQ: dict[str, Any] = {
    "issuer__acme__propagation": {},
    "issuer__acme__dns_provider": "httpreq",
    "issuer__acme__httpreq": {
        "endpoint": "https://dns.example",
        "recursive_nameservers": ["127.0.0.1", "localhost:54"],
    },
}


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        pytest.param({}, Mode.RECURSIVE, id="set"),
        pytest.param({"dns": {"propagation": {"mode": "authoritative"}}}, Mode.AUTHORITATIVE, id="mode-set"),
        pytest.param({"dns": {"authoritative_servers": ["192.0.2.1"]}}, Mode.AUTHORITATIVE, id="servers-set"),
        pytest.param({"dns": {"resolvers": ["192.0.2.1"]}}, Mode.AUTHORITATIVE, id="resolvers-set"),
        pytest.param(
            {"issuer__acme__propagation": {"nameservers": ["192.0.2.1:53"]}}, Mode.AUTHORITATIVE, id="nameservers-set"
        ),
        pytest.param({"issuer__acme__httpreq": {"endpoint": "https://dns.example"}}, Mode.AUTHORITATIVE, id="not-set"),
    ],
)
async def test_httpreq_recursive_nameservers(files: BrokerFiles, changes: dict[str, Any], mode: Mode) -> None:
    """They are who must show a record, unless a key of the broker's own says who; names and missing ports are fine."""
    made = settings(files, **HTTPREQ | changes)
    route = adapters.solver(made, FakeSecretSource({}), SystemClock(), random.Random(1)).routes.default
    assert route.check.mode is mode
    if not changes:
        asked = [(server.name, server.port) for server in await route.lookup.resolvers.servers()]
        assert asked == [("127.0.0.1:53", 53), ("localhost:54", 54)]


async def test_zone_with_httpreq(files: BrokerFiles) -> None:
    """A zone that is written by httpreq is looked for at its servers, the others as before."""
    changes = HTTPREQ | {"issuer__acme__dns_provider": "rfc2136"}
    made = settings(files, **changes, dns={"zones": [{"zone": "a.test", "provider": "httpreq"}]})
    routes = adapters.solver(made, FakeSecretSource({}), SystemClock(), random.Random(1)).routes
    assert (routes.default.check.mode, routes.of("x.a.test").check.mode) == (Mode.AUTHORITATIVE, Mode.RECURSIVE)
    assert [server.port for server in await routes.of("x.a.test").lookup.resolvers.servers()] == [53, 54]


def test_which_cnames_are_followed(files: BrokerFiles) -> None:
    """A zone's setting counts before the general one."""
    dns = {"follow_cnames": "never", "zones": [{"zone": "a.test", "follow_cnames": "always"}, {"zone": "b.test"}]}
    routes = adapters.solver(settings(files, dns=dns), FakeSecretSource({}), SystemClock(), random.Random(1)).routes
    assert [routes.of(name).follow for name in ("x.test", "a.test", "b.test")] == [
        Follow.NEVER,
        Follow.ALWAYS,
        Follow.NEVER,
    ]


async def test_account_key_is_made_once(files: BrokerFiles) -> None:
    """The account's key is made on first use, its own only, and never issued for."""
    made = settings(files)
    first = (await account_keys(made))["default"]
    assert (await account_keys(made))["default"].public_key_sha256 == first.public_key_sha256
    assert (files.directory / "account.key").stat().st_mode & 0o777 == 0o600
    assert issuance_settings(made, {first.public_key_sha256}).account_keys_sha256 == {first.public_key_sha256}


async def test_every_issuer_has_its_own_account(files: BrokerFiles) -> None:
    """Further issuers come after the default one, each with its directory and a key of its own."""
    other = {"directory_url": "https://other.test/directory", "account_key": str(files.directory / "other.key")}
    made = settings(files, issuers={"other": {"acme": other}})
    accounts = await account_keys(made)
    secrets, rng, files_pool = FakeSecretSource({}), random.Random(1), BlockingPool("files", 1)
    keep = partial(adapters.account_keeper, made, secrets=secrets, files=files_pool, rows=None)
    async with adapters.cas(made, ManualClock()) as cas:
        issuers = {
            name: adapters.issuer(made, name, ca, accounts[name], keeper=keep(name), secrets=secrets, rng=rng)
            for name, ca in cas.items()
        }
    files_pool.close()
    assert [(name, issuer.name) for name, issuer in issuers.items()] == [("default", "default"), ("other", "other")]
    assert issuers["other"].directory == "https://other.test/directory"
    keys = {account.public_key_sha256 for account in accounts.values()}
    assert len(keys) == 2
    assert issuance_settings(made, keys).account_keys_sha256 is keys


async def test_what_is_wrong_with_a_further_issuer_is_told_of_it(files: BrokerFiles) -> None:
    """Its own key and line, not those of the default one."""
    other = {"directory_url": "https://other.test/directory", "account_key": str(files.directory / "no" / "other.key")}
    with pytest.raises(ConfigurationError) as caught:
        await account_keys(settings(files, issuers={"other": {"acme": other}}))
    (problem,) = caught.value.problems
    assert (problem.file, problem.key) == (str(files.config), "issuers.other.acme.account_key")
    assert problem.line is not None


CHECKS = [
    pytest.param(
        {"secrets": {"provider": "file", "file": {"directory": "/nowhere"}}}, "secrets.file.directory", id="secrets"
    ),
    pytest.param(
        {"secrets": {"provider": "vault", "vault": {"address": "http://v.example", "token": "t"}}},
        "secrets.vault.address",
        id="vault",
    ),
    pytest.param({"issuer__acme__ca_bundle": "/nowhere.pem"}, "issuer.acme.ca_bundle", id="roots-of-the-CA"),
    pytest.param({"issuer__acme__allowed_hosts": ["a b"]}, "issuer.acme.directory_url", id="host-of-the-CA"),
    pytest.param({"issuer__acme__account_key": "/nowhere/a.key"}, "issuer.acme.account_key", id="account-key"),
    pytest.param(
        {"issuers": {"two": {"acme": {"directory_url": "https://t.test/d", "account_key": "/nowhere/b.key"}}}},
        "issuers.two.acme.account_key",
        id="further-issuer",
    ),
    pytest.param(
        {"issuer__acme__dns_provider": "exec", "issuer__acme__exec": {"program": "/nowhere/hook"}},
        "issuer.acme.exec.program",
        id="dns-provider",
    ),
    pytest.param(
        {"dns": {"zones": [{"zone": "a.test", "resolvers": ["dns.example"]}]}}, "dns.zones[0].resolvers", id="zone"
    ),
]


@pytest.mark.parametrize(("changes", "key"), CHECKS)
async def test_check_finds_what_keeps_a_broker_from_starting(
    files: BrokerFiles, changes: dict[str, Any], key: str
) -> None:
    """Secrets, issuers and DNS are looked at too, with file, line and key, beside whatever else is wrong."""
    made = settings(files, **changes)
    files.policy.write_text("version: 9\n")
    with pytest.raises(ConfigurationError) as caught:
        await check(made, offline=True)
    (problem,) = (problem for problem in caught.value.problems if problem.key == key)
    assert (problem.file, problem.line is not None, bool(problem.remedy)) == (str(files.config), True, True)
    assert len(caught.value.problems) > 1
    assert not list(files.directory.glob("*.db"))


async def test_check_only_doubts_what_the_environment_decides(
    files: BrokerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator's shell hasn't the variables of the service: what may stand there is a doubt, and no problem."""
    for name in ("VAULT_ADDR", "VAULT_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    prepared, doubts = await check(settings(files, secrets={"provider": "vault"}), offline=True)
    assert prepared.policy.current.profiles
    assert ["secrets.vault.address" in doubt for doubt in doubts] == [True]
    assert await check(settings(files, secrets={"provider": "env"}), offline=True) is not None
    assert not (files.directory / "account.key").exists()


def test_limits_and_times_reach_the_story(files: BrokerFiles) -> None:
    """Limits are the configuration's, and an order's time covers what its DNS may take."""
    made = settings(
        files,
        rate_limits={"per_identity_per_hour": 7, "per_identity_profile_per_hour": 0},
        issuer__acme__propagation={"timeout": "20m", "settle": "10s", "nameservers": ["127.0.0.1:9"]},
    )
    story = issuance_settings(made, [])
    assert story.limits.per_identity_per_hour == 7
    assert story.limits.per_identity_profile_per_hour is None
    assert story.propagation_timeout.total_seconds() > 20 * 60
    assert story.order_time_limit > story.propagation_timeout


@pytest.mark.parametrize(
    ("mtls", "kinds"),
    [
        pytest.param({}, ("JWK",), id="default"),
        pytest.param({"provisioners": ["JWK", "X5C"]}, ("JWK", "X5C"), id="two kinds"),
        pytest.param({"allow_missing_provisioner": True}, ("JWK", ""), id="those that don't say"),
    ],
)
def test_provisioners(files: BrokerFiles, mtls: dict[str, Any], kinds: tuple[str, ...]) -> None:
    """Only the configured kinds of provisioners make identities; absent is refused unless allowed."""
    bundle = str(files.directory / "agent-ca.pem")
    assert settings(files, server__mtls={"agent_ca_bundle": bundle, **mtls}).server.mtls.accepted_provisioners == kinds


async def test_database_password_is_a_secret(files: BrokerFiles) -> None:
    """The password is read as a secret, quoted into the URL, and missing it names the key."""
    made = settings(
        files,
        store={
            "driver": "postgresql",
            "url": "postgresql://broker@db.example:5432/certplane",
            "password_secret": "db/pw",
        },
    )
    url = await database.database_url(made, FakeSecretSource({"db/pw": "p@ss/word"}), made.store.url)
    assert url == "postgresql://broker:p%40ss%2Fword@db.example:5432/certplane"
    with pytest.raises(ConfigurationError) as caught:
        await database.database_url(made, FakeSecretSource({}), made.store.url)
    assert caught.value.problems[0].key == "store.password_secret"


@pytest.mark.parametrize(
    ("vault", "key", "message"),
    [
        pytest.param({"address": "http://vault.example:8200"}, "address", "must be https", id="plain HTTP"),
        pytest.param(
            {"address": "https://v", "ca_bundle": "/nowhere.pem"}, "ca_bundle", "/nowhere.pem", id="no bundle"
        ),
        pytest.param({"token": "t"}, "address", "is required", id="no address"),
    ],
)
def test_vault_that_cannot_be_used(
    files: BrokerFiles, monkeypatch: pytest.MonkeyPatch, vault: dict[str, str], key: str, message: str
) -> None:
    """What is wrong with a vault's settings is told at the start, with its line."""
    monkeypatch.delenv("VAULT_ADDR", raising=False)
    made = settings(files, secrets={"provider": "vault", "vault": {"token": "t", **vault}})
    pool = BlockingPool("test", 1)
    try:
        with pytest.raises(ConfigurationError) as caught:
            database.secret_source(made, pool, ManualClock())
    finally:
        pool.close()
    (problem,) = caught.value.problems
    assert (problem.key, message in problem.message) == (f"secrets.vault.{key}", True)
    assert problem.line is not None


async def test_vault_of_the_environment(files: BrokerFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Address and token may both be the environment's; a loopback address may be plain HTTP."""
    pool = BlockingPool("test", 1)
    with VaultServer(entries={"dns/token": {"value": "s3cret"}}) as vault:
        monkeypatch.setenv("BAO_ADDR", vault.url)
        monkeypatch.setenv("BAO_TOKEN", vault.token)
        source = database.secret_source(settings(files, secrets={"provider": "openbao"}), pool, ManualClock())
        assert await source.read("dns/token") == "s3cret"
    pool.close()
