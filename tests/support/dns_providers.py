"""Providers that are no DNS servers of their own, each before something that writes into a real one."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.broker.issuers.dns.acme_dns import AcmeDnsSettings
from certplane.broker.issuers.dns.acme_dns.provider import AcmeDnsProvider
from certplane.broker.issuers.dns.exec import ExecProvider, ExecSettings
from certplane.broker.issuers.dns.lexicon import LexiconProvider, LexiconSettings
from certplane.broker.issuers.dns.provider import DnsProvider
from certplane.config.values import HostPort
from certplane.runtime.clock import SystemClock
from certplane.sandbox.dns_endpoint import DnsEndpoint
from tests.fakes.secrets import FakeSecretSource
from tests.support.acme_dns_server import AcmeDnsServer
from tests.support.httpreq_endpoint import HttpreqServer
from tests.support.powerdns_server import PowerDnsServer

_PROGRAM = """\
#!{python} -IS
import base64, http.client, json, sys
what, fqdn, value = sys.argv[1:]
password = sys.stdin.readline().rstrip("\\n")
authorization = "Basic " + base64.b64encode(b"exec:" + password.encode()).decode()
connection = http.client.HTTPConnection("127.0.0.1", {port}, timeout=10)
body = json.dumps({{"fqdn": fqdn, "value": value}})
connection.request("POST", "/dns/" + what, body, {{"Authorization": authorization}})
status = connection.getresponse().status
print("status", status, file=sys.stderr)
sys.exit(0 if status == 200 else 77 if status == 401 else 1)
"""


def dns_program(path: Path, port: int) -> Path:
    """A program as an operator may write it, for the endpoint at `port` with the user `exec`."""
    path.write_text(_PROGRAM.format(python=sys.executable, port=port))
    path.chmod(0o755)
    return path


def _acme_dns(
    dns: DnsEndpoint, request: pytest.FixtureRequest, credentials: str
) -> tuple[DnsProvider, FakeSecretSource]:
    ages = itertools.count(1)
    server = AcmeDnsServer(dns, clock=lambda: next(ages))
    request.addfinalizer(server.__exit__)
    server.__enter__()
    account = server.register(f"_acme-challenge.{request.getfixturevalue('own_name')}")
    secrets = FakeSecretSource({credentials: json.dumps(account)})
    settings = AcmeDnsSettings(server.url, "unused")
    return AcmeDnsProvider(settings, secrets, SystemClock(), random.Random(), spacing=timedelta()), secrets


def _exec(dns: DnsEndpoint, request: pytest.FixtureRequest, credentials: str) -> tuple[DnsProvider, FakeSecretSource]:
    server = HttpreqServer(dns, credentials=("exec", "pa:ss word"))
    request.addfinalizer(server.__exit__)
    server.__enter__()
    folder: Path = request.getfixturevalue("tmp_path")
    secrets = FakeSecretSource({credentials: "pa:ss word"})
    program = ExecSettings(dns_program(folder / "dns-hook", int(server.url.rpartition(":")[2].partition("/")[0])))
    return ExecProvider(program, secrets, random.Random()), secrets


def _lexicon(
    dns: DnsEndpoint, request: pytest.FixtureRequest, credentials: str
) -> tuple[DnsProvider, FakeSecretSource]:
    server = PowerDnsServer(dns, names=(f"_acme-challenge.{request.getfixturevalue('own_name')}",))
    request.addfinalizer(server.__exit__)
    server.__enter__()
    secrets = FakeSecretSource({credentials: f"auth_token={server.key}"})
    resolver = HostPort(dns.addresses[0], dns.port)
    api = LexiconSettings("powerdns", "unused", {"pdns-server": server.url}, recursive_nameservers=(resolver,))
    return LexiconProvider(api, secrets, random.Random()), secrets


Maker = Callable[[DnsEndpoint, pytest.FixtureRequest, str], tuple[DnsProvider, FakeSecretSource]]
MAKERS: Mapping[str, Maker] = {"acme-dns": _acme_dns, "exec": _exec, "lexicon": _lexicon}
