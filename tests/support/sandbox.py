"""Fixtures: the sandbox's servers, each started when a test first asks for it.

What takes long to start, or forgets nothing, lives for the session (and for each worker of pytest-xdist): step-ca,
Pebble, BIND, PostgreSQL. Tests share it, so they use names and databases of their own. What is cheap is made for each
test. For other options than the default ones a test enters the server's class itself, with a folder below `tmp_path`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.sandbox import servers
from certplane.sandbox.bind import BindServer
from certplane.sandbox.cloudflare_api import CloudflareApi
from certplane.sandbox.dns import SandboxDnsServer
from certplane.sandbox.identity_ca import SandboxIdentityCa
from certplane.sandbox.pebble import Pebble, PebbleOptions
from certplane.sandbox.ports import DnsServer, IdentityCa
from certplane.sandbox.postgres import PostgresCluster
from certplane.sandbox.step_ca import StepCa
from tests.support.parts import need_part

ZONES = ("certplane.test", "sub.certplane.test", "example.test", "other.test")
"""What every DNS server of the fixtures serves; sub.certplane.test is delegated by certplane.test."""

_numbers = itertools.count(1)


@pytest.fixture
def own_name() -> str:
    """A host name in certplane.test that no other test uses, for the servers that tests share."""
    return f"host{next(_numbers)}-{os.getpid()}.certplane.test"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def step_ca(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[StepCa]:
    """A real step-ca."""
    part = need_part("step-ca")
    async with StepCa(tmp_path_factory.mktemp("step-ca"), part=part) as ca:
        yield ca


@pytest_asyncio.fixture
async def sandbox_identity_ca(tmp_path: Path) -> AsyncIterator[SandboxIdentityCa]:
    """The sandbox's own identity CA."""
    async with SandboxIdentityCa(tmp_path / "identity-ca") as ca:
        yield ca


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def identity_ca(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[IdentityCa]:
    """step-ca, or the sandbox's own where there is none: for tests that only need identities."""
    async with servers.identity_ca(tmp_path_factory.mktemp("identity-ca")) as ca:
        yield ca


@pytest_asyncio.fixture(params=["step-ca", "sandbox"])
async def any_identity_ca(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[IdentityCa]:
    """Each identity CA in turn, one of its own for each test."""
    ca: IdentityCa
    if request.param == "step-ca":
        ca = StepCa(tmp_path / "step-ca", part=need_part("step-ca"))
    else:
        ca = SandboxIdentityCa(tmp_path / "identity-ca")
    async with ca:
        yield ca


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def bind(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BindServer]:
    """A real BIND."""
    part = need_part("bind")
    async with BindServer(tmp_path_factory.mktemp("bind"), ZONES, part=part) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def dns_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DnsServer]:
    """BIND, or the sandbox's own server where there is none; Pebble validates through it."""
    async with servers.dns_server(tmp_path_factory.mktemp("dns"), ZONES) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def trusting_pebble(tmp_path_factory: pytest.TempPathFactory, dns_server: DnsServer) -> AsyncIterator[Pebble]:
    """A Pebble that takes every challenge for met, and never reuses an authorization."""
    options = PebbleOptions(always_valid=True)
    folder = tmp_path_factory.mktemp("trusting-pebble")
    async with Pebble(folder, dns_server.endpoint.host_port, options, part=need_part("pebble")) as server:
        yield server


@pytest_asyncio.fixture
async def sandbox_dns() -> AsyncIterator[SandboxDnsServer]:
    """The sandbox's own DNS server with two name servers, for faults."""
    async with SandboxDnsServer(ZONES, addresses=("127.0.0.1", "127.0.0.2")) as server:
        yield server


@pytest_asyncio.fixture(params=["bind", "sandbox"])
async def any_dns_server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DnsServer]:
    """Each DNS server in turn, one of its own for each test."""
    server: DnsServer
    if request.param == "bind":
        server = BindServer(tmp_path / "bind", ZONES, part=need_part("bind"))
    else:
        server = SandboxDnsServer(ZONES)
    async with server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pebble(tmp_path_factory: pytest.TempPathFactory, dns_server: DnsServer) -> AsyncIterator[Pebble]:
    """A real Pebble with default options, validating through `dns_server`."""
    part = need_part("pebble")
    async with Pebble(tmp_path_factory.mktemp("pebble"), dns_server.endpoint.host_port, part=part) as server:
        yield server


@pytest_asyncio.fixture
async def cloudflare_api(tmp_path: Path, dns_server: DnsServer) -> AsyncIterator[CloudflareApi]:
    """Cloudflare's API over the zones of `dns_server`."""
    async with CloudflareApi(tmp_path / "cloudflare", dns_server.endpoint) as api:
        yield api


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres() -> AsyncIterator[PostgresCluster]:
    """A real PostgreSQL."""
    part = need_part("postgresql")
    async with PostgresCluster(part=part) as cluster:
        yield cluster


@pytest_asyncio.fixture
async def postgres_url(postgres: PostgresCluster) -> AsyncIterator[str]:
    """The URL of an empty database of the test's own."""
    name = f"test_{next(_numbers)}_{os.getpid()}"
    yield await postgres.create_database(name)
    await postgres.drop_database(name)


@pytest.fixture(scope="session")
def grpcurl() -> Path:
    """The real grpcurl."""
    return need_part("grpcurl").path


@pytest.fixture(scope="session")
def openssl() -> Path:
    """The `openssl` command."""
    return need_part("openssl").path
