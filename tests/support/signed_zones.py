"""Signed zones on real BINDs, right and broken on purpose, and a resolver that validates them.

`signed.test` holds the delegation of `shop.signed.test`, which is what tests break. Both are signed here, so that any
signature can have ended, be missing or be wrong; the servers load them as they are.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.dnssec
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import dns.rdtypes.ANY.RRSIG
import dns.zone
from cryptography.hazmat.primitives.asymmetric import ec

from certplane.config.values import HostPort
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.process import ServerProcess, start_on_free_port
from tests.support.parts import need_part

PARENT, CHILD = "signed.test", "shop.signed.test"
_DAY = timedelta(days=1)
_ALGORITHM = dns.dnssec.Algorithm.ECDSAP256SHA256
_TTL = 1
_OPTIONS = """\
controls {{ }};
options {{
    directory "{folder}"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
    pid-file none; lock-file none; session-keyfile none; empty-zones-enable no; notify no;
    allow-query {{ 127.0.0.0/8; }}; max-cache-ttl 1; max-ncache-ttl 1; servfail-ttl 0;
    {more}
}};
"""
Change = Callable[[dns.zone.Zone], None]


@dataclass
class Key:
    """A zone's one key, which signs all of it."""

    private: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def dnskey(self) -> Any:
        flags = 257  # a key that a DS may be of (RFC 4034 2.1.1)
        return dns.dnssec.make_dnskey(self.private.public_key(), _ALGORITHM, flags=flags)

    @property
    def tag(self) -> int:
        return dns.dnssec.key_id(self.dnskey)

    def ds(self, zone: str) -> str:
        return dns.dnssec.make_ds(dns.name.from_text(zone), self.dnskey, "SHA256").to_text()


def nothing(zone: dns.zone.Zone) -> None:
    """Leave it as it is."""


def without_signatures(kind: str) -> Change:
    """The records of this type have none."""

    def change(zone: dns.zone.Zone) -> None:
        for node in zone.values():
            node.delete_rdataset(zone.rdclass, dns.rdatatype.RRSIG, dns.rdatatype.from_text(kind))

    return change


def another_serial(zone: dns.zone.Zone) -> None:
    """The SOA isn't the one that was signed."""
    rdataset = zone.find_rdataset("@", "SOA")
    (soa,) = list(rdataset)
    rdataset.clear()
    rdataset.add(soa.replace(serial=soa.serial + 1))


@dataclass(frozen=True)
class SignedZones:
    """What is running.

    Attributes:
        servers: of both zones, as they are configured (`dns.authoritative_servers`).
        resolver: validates, from the key of `signed.test` on.
        plain_resolver: doesn't.
        key: that of `shop.signed.test`.
    """

    servers: tuple[HostPort, ...]
    resolver: HostPort
    plain_resolver: HostPort
    key: Key


def _text(zone: str, port: int, key: Key, more: str, *, until: datetime, change: Change) -> str:
    text = (
        f"$TTL {_TTL}\n@ IN SOA ns.{zone}. hostmaster.{zone}. 1 60 60 3600 {_TTL}\n@ IN NS ns.{zone}.\n"
        f"ns IN A {LOOPBACK}\nwww IN A {LOOPBACK}\n{more}"
    )
    made = dns.zone.from_text(text, origin=zone, relativize=False)
    with made.writer() as transaction:
        dns.dnssec.sign_zone(
            made,
            txn=transaction,
            keys=[(key.private, key.dnskey)],
            inception=until - 30 * _DAY,
            expiration=until,
            dnskey_ttl=_TTL,
            deterministic=True,
        )
    change(made)
    return made.to_text(relativize=False)


@asynccontextmanager
async def signed_zones(
    folder: Path,
    *changes: Change,
    until: timedelta = _DAY,
    ds_of: Key | None = None,
    signed: bool = True,
    parent_until: timedelta = _DAY,
) -> AsyncIterator[SignedZones]:
    """Start them.

    Args:
        folder: for all files.
        changes: what is done to `shop.signed.test` after it was signed, by server; one server without any.
        until: when its signatures end, from now.
        ds_of: the key that the parent has a DS of; default: the zone's.
        signed: whether the parent has a DS.
        parent_until: when the signatures of `signed.test` end.
    """
    parent_key, key, now = Key(), Key(), datetime.now(UTC)
    delegation = f"shop IN NS ns.{CHILD}.\nns.shop IN A {LOOPBACK}\n"
    delegation += f"shop IN DS {(ds_of or key).ds(CHILD)}\n" if signed else ""
    async with AsyncExitStack() as stack:
        servers = []
        for number, change in enumerate(changes or (nothing,)):
            of_server = folder / f"server{number}"

            def zones(port: int, change: Change = change) -> dict[str, str]:
                parent = _text(PARENT, port, parent_key, delegation, until=now + parent_until, change=nothing)
                return {PARENT: parent, CHILD: _text(CHILD, port, key, "", until=now + until, change=change)}

            servers.append(await _named(stack, of_server, zones))
        forwarders = " ".join(f"{server.host} port {server.port};" for server in servers[:1])
        anchor = parent_key.dnskey
        trust = (
            f'trust-anchors {{ {PARENT}. static-key {anchor.flags} 3 {int(anchor.algorithm)} "{_base64(anchor)}"; }};'
        )
        forwarding = f"forward only; forwarders {{ {forwarders} }}; recursion yes; allow-recursion {{ 127.0.0.0/8; }};"
        resolvers = [
            await _named(stack, folder / name, None, f"{forwarding} dnssec-validation {mode};", more)
            for name, mode, more in (("validating", "yes", trust), ("plain", "no", ""))
        ]
        yield SignedZones(tuple(servers), *resolvers, key)


def _base64(key: Any) -> str:
    return key.to_text().split(" ", 3)[3].replace(" ", "")


async def _named(
    stack: AsyncExitStack,
    folder: Path,
    zones: Callable[[int], dict[str, str]] | None,
    options: str = "recursion no; dnssec-validation no;",
    more: str = "",
) -> HostPort:
    """A BIND with these zones."""
    program = _program(folder)

    async def start(port: int) -> tuple[int, ServerProcess]:
        text = _OPTIONS.format(folder=folder, port=port, more=options) + more
        for name, content in (zones(port) if zones is not None else {}).items():
            (folder / f"{name}.zone").write_text(content)
            text += f'zone "{name}" {{ type primary; file "{folder}/{name}.zone"; }};\n'
        (folder / "named.conf").write_text(text)
        command = [program, "-g", "-4", "-n", "1", "-c", folder / "named.conf"]
        process = ServerProcess("BIND", command, log=folder / "named.log")
        await process.start(lambda: _answers(port))
        return port, process

    port, process = await start_on_free_port(start, udp=True)
    stack.push_async_callback(process.stop)
    return HostPort(LOOPBACK, port)


def _program(folder: Path) -> Path:
    """A copy: AppArmor's profile is of the program in its place."""
    folder.mkdir(parents=True)
    return Path(shutil.copy2(need_part("bind").path, folder / "named"))


async def _answers(port: int) -> bool:
    try:
        await dns.asyncquery.udp(dns.message.make_query(PARENT, "SOA"), LOOPBACK, timeout=2, port=port)
    except (dns.exception.DNSException, OSError):
        return False
    return True
