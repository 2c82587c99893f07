"""The operator's night: how fast a fleet is taken through a rollout, to what a CA allows, and what it never does.

A thousand hosts with keys, CSRs and streams of their own (`night_hosts`), beside them real agents with nginx, one for
50 of those (`night_agents`), two brokers on one PostgreSQL, a real Pebble, BIND as the DNS of all names. Each host has
one certificate, for one name. In turn:

- plain: all hosts ask at once for their first certificates, without limits: what the machine does by itself.
- renew: a rollout of all of them in one ring, without limits, to that.
- rekey: a rollout of all in three rings with new keys, revoked after they are served; the limits are the bound.
- killed: the same, with one of the brokers killed in the middle, which comes back after a while.
- drill: the CA sets the windows of a third of the certificates into the past (RFC 9773), as Let's Encrypt did on 19
  March 2026, and the brokers ask it about them; nobody asks for anything. Its time is from the CA's first answer.
- halt: a rollout in rings, whose first ring has hosts on which every reload fails.

Times are from the call that creates a rollout to the last host that uses its new certificate; of a real agent that is
seen in what its nginx serves. The limits' own lower bound is what GCRA allows: a full bucket at once, then places as
they come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
import yaml
from google.protobuf.duration_pb2 import Duration

from benchmarks.fleet import Process
from benchmarks.hosts import identity_file
from benchmarks.night_agents import NAME as REAL
from benchmarks.night_agents import Agents
from benchmarks.night_hosts import NAME
from benchmarks.processes import processor_seconds
from benchmarks.result import Figure, figure
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import KeyPair, channel_credentials
from certplane.sandbox.certificates import CertificateAuthority, Credential, write_private
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.fleet_broker import shared
from certplane.sandbox.loopback import free_port
from certplane.sandbox.parts import LeftOut, find
from certplane.sandbox.postgres import PostgresCluster
from certplane.v1 import fleet_pb2, rollout_pb2, rollout_pb2_grpc
from tests.support.limits import UNLIMITED
from tests.support.several_brokers import Broker

HOSTS = 1_000
PROCESSES = 2
_OPERATOR = "night.certplane.test"
_CANARIES = 20
"""One host in so many is of the ring `canary`."""
_BROKEN = 3
"""Hosts of that ring on which a reload fails."""
_HOSTS_TO_AN_AGENT = 50
_LIMIT_SECONDS = 10
_BURST_SHARE = 20
"""The bucket holds one in so many of the hosts, and as many come back in `_LIMIT_SECONDS`."""
_KILLED_AFTER, _AWAY_SECONDS = 0.3, 20.0
"""Of the lower bound, when a broker is killed; and until it is started again."""
_LONGEST: Final = 3600.0
_PAST: Final = '{"suggestedWindow": {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}}'
_DURABLE = {"fsync": "on", "synchronous_commit": "on"}

_Spec = rollout_pb2.RolloutSpec
_State = rollout_pb2.Rollout
_ENDED = (_State.STATE_COMPLETED, _State.STATE_ABORTED, _State.STATE_HALTED)


@dataclass(frozen=True, slots=True)
class Ended:
    """A rollout that has ended or halted.

    Attributes:
        seconds: from its creation to the last host that uses what is new.
        changes: host, time, certificate and the one before, of each host's change.
        rollout: as the broker has it.
        processor: processor seconds of all brokers meanwhile.
    """

    seconds: float
    changes: Sequence[tuple[int, float, str, str]]
    rollout: Any
    processor: float


@dataclass
class Night:
    """What is running."""

    folder: Path
    deployment: Deployment
    brokers: list[Broker]
    hosts: list[Process]
    operator: Credential
    count: int
    url: str
    agents: Agents
    agents_ended: dict[str, float] = field(default_factory=dict)
    """When real agents had ended to use a certificate, as the rollouts have seen it."""
    changes: list[tuple[int, float, str, str]] = field(default_factory=list)

    @property
    def burst(self) -> int:
        """Places of the limit, and how many come back in `_LIMIT_SECONDS`."""
        return max(2, self.count // _BURST_SHARE)

    def lower_bound(self, count: int) -> float:
        """Seconds that the limit alone makes so many orders take."""
        return (count - self.burst) / self.burst * _LIMIT_SECONDS

    @property
    def processor(self) -> float:
        """Processor seconds of all brokers that run, so far."""
        return sum(processor_seconds(broker.process.pid) for broker in self.brokers if broker.process.running)

    async def ask(self, command: str) -> list[dict[str, Any]]:
        """Tell all processes of hosts, and wait for all."""
        return await asyncio.gather(*(asyncio.to_thread(process.ask, command) for process in self.hosts))

    async def look(self) -> None:
        """Take what hosts have changed."""
        for answer in await self.ask("look"):
            self.changes += [tuple(change) for change in answer["changes"]]

    @contextlib.asynccontextmanager
    async def rollouts(self) -> AsyncIterator[Any]:
        """The stub of the rollouts' service, at the last broker, which isn't the one that is killed."""
        pair = KeyPair(self.operator.key_pem, self.operator.chain_pem)
        roots = (self.deployment.broker_folder / "root.crt").read_bytes()
        async with open_channel(self.brokers[-1].url, channel_credentials(roots, pair)) as channel:
            yield rollout_pb2_grpc.RolloutServiceStub(channel)

    async def run(self, spec: Any, *, killed: bool = False) -> Ended:
        """Create a rollout, and follow it until it has ended or halted."""
        before, used = len(self.changes), self.processor
        async with self.rollouts() as stub:
            created = await stub.CreateRollout(rollout_pb2.CreateRolloutRequest(spec=spec), timeout=120)
            begun, rollout = time.time(), created.rollout
            kill = asyncio.create_task(self._lose_a_broker()) if killed else None
            asked = rollout_pb2.GetRolloutRequest(rollout_id=rollout.rollout_id)
            while rollout.state not in _ENDED:
                if time.time() - begun > _LONGEST:
                    raise RuntimeError(f"the rollout isn't over after {_LONGEST:.0f} s: {rollout.state_reason}")
                await asyncio.sleep(0.5)
                rollout = (await stub.GetRollout(asked, timeout=60)).rollout
            if kill is not None:
                await kill
        await self.look()
        mine = self.changes[before:]
        last = max([begun, *(change[1] for change in mine), *await self._served_at(rollout.rollout_id)])
        counts = {
            rollout_pb2.RolloutItem.State.Name(each.state): each.certificate_count for each in rollout.item_counts
        }
        _say(f"{_State.State.Name(rollout.state)} after {last - begun:.1f} s: {counts} {rollout.state_reason}")
        return Ended(last - begun, mine, rollout, self.processor - used)

    async def _served_at(self, rollout_id: str) -> Sequence[float]:
        """When real agents have been seen to serve what is new."""
        found: dict[str, float] = {}
        async with self.rollouts() as stub:
            token = ""
            while True:
                asked = rollout_pb2.ListRolloutItemsRequest(rollout_id=rollout_id, page_size=1000, page_token=token)
                page = await stub.ListRolloutItems(asked, timeout=60)
                real = [item for item in page.items if item.host.startswith("real") and item.HasField("done_time")]
                found |= {item.certificate_id: item.done_time.ToNanoseconds() / 1e9 for item in real}
                token = page.next_page_token
                if not token:
                    self.agents_ended |= found
                    return [*found.values()]

    async def _lose_a_broker(self) -> None:
        await asyncio.sleep(self.lower_bound(self.count) * _KILLED_AFTER)
        self.brokers[0].process.kill()
        _say("one broker was killed")
        await asyncio.sleep(_AWAY_SECONDS)
        await self.brokers[0].start()

    async def drill(self, count: int) -> float:
        """Set the windows of the first hosts' certificates into the past; seconds until the last has another in use.

        From the CA's first answer about one of them.
        """
        numbers = range(count)
        latest = {number: certificate_id for number, _, certificate_id, _ in self.changes}
        wanted = [latest[number] for number in numbers]
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            found = await connection.execute(
                "SELECT certificate_pem FROM certificates WHERE certificate_id = ANY(%s)", [wanted]
            )
            for (pem,) in await found.fetchall():
                await self.deployment.pebble.set_renewal_info(pem, _PAST)
            # Else they would be asked about within the six hours that the CA has named.
            await connection.execute(
                "UPDATE renewal_plans SET next_check_time = 0 WHERE certificate_id = ANY(%s)", [wanted]
            )
            # A broker looks twice a minute for whom to ask about: before that nobody knows of it.
            asked = "SELECT 1 FROM renewal_plans WHERE certificate_id = ANY(%s) AND next_check_time > 0 LIMIT 1"
            while not await (await connection.execute(asked, [wanted])).fetchone():  # noqa: ASYNC110 - a table says nothing
                await asyncio.sleep(0.1)
            begun = time.time()
        answers = await self.ask(f"serving 0 {count}")
        changes = [tuple(change) for answer in answers for change in answer["changes"]]
        self.changes += changes
        seconds = max(change[1] for change in changes) - begun
        _say(f"windows of {count} set into the past: {seconds:.1f} s, at least {self.lower_bound(count):.1f}")
        return seconds

    async def limit(self) -> None:
        """From now on the CA's limits are the bound: the brokers start anew with them."""
        per = f"{_LIMIT_SECONDS}s"
        limit = {"name": "night", "scope": "account", "amount": self.burst, "per": per, "exempt": []}
        for broker in self.brokers:
            settings = yaml.safe_load(broker.config.read_text(encoding="utf-8"))
            settings["issuer"]["acme"]["limits"] = [limit]
            broker.config.write_text(yaml.safe_dump(settings), encoding="utf-8")
            await broker.start()
        await self.ask("back")

    async def revoked_while_served(self) -> int:
        """Certificates that were revoked before their hosts had ended to use them, or that are in use now."""
        ended = {before: moment for _, moment, _, before in self.changes if before} | self.agents_ended
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            rows = await (
                await connection.execute(
                    "SELECT certificate_id, revoke_time FROM certificates WHERE revoke_time IS NOT NULL"
                )
            ).fetchall()
        return sum(revoked / 1e6 < ended.get(certificate_id, float("inf")) for certificate_id, revoked in rows)


@dataclass(frozen=True, slots=True)
class Measured:
    """All of it.

    Attributes:
        count: hosts.
        plain: seconds that their first certificates took, all at once and without limits.
        renewed: seconds of a rollout of all without limits.
        bound: seconds that the limits alone make it take.
        rekeyed: seconds of a rollout with the limits, and with a broker killed in the middle of it.
        processor: processor seconds of all brokers for the first of these.
        drill: seconds from the CA's first word until all hosts whose windows it has moved use another certificate, and
            their lower bound.
        outside: hosts that were activated outside the ring that failed.
        revoked_in_use: certificates that were revoked while their hosts used them.
    """

    count: int
    plain: float
    renewed: float
    bound: float
    rekeyed: tuple[float, float]
    processor: float
    drill: tuple[float, float]
    outside: int
    revoked_in_use: int


def measure(folder: Path, *, share: float) -> Measured:
    """All of it once; `share` makes it smaller."""
    return asyncio.run(_measure(folder, max(20, int(HOSTS * share))))


def figures(found: Measured) -> list[Figure]:
    """The goals' figures."""
    undisturbed, killed = (seconds / found.bound for seconds in found.rekeyed)
    drilled, bound = found.drill
    return [
        figure("hosts of the night", [found.count], ""),
        figure("plain orders of all at once, s", [found.plain], ""),
        figure("rollout of all without limits, to plain orders at once", [found.renewed / found.plain], "<= 1.3"),
        figure("new keys for all in rings, to the limits' lower bound", [undisturbed], "<= 1.15"),
        figure("the same with a broker killed", [killed], "<= 1.15"),
        figure("windows of a third moved by the CA, to the limits' lower bound", [drilled / bound], "<= 1.15"),
        figure("the brokers' processor time a host of it, ms", [found.processor / found.count * 1e3], ""),
        figure("hosts activated outside the failing ring", [found.outside], "<= 0"),
        figure("certificates revoked while served", [found.revoked_in_use], "<= 0"),
    ]


async def _measure(folder: Path, count: int) -> Measured:
    async with _night(folder, count) as night:
        await night.ask("connect")
        issued = await night.ask("issue")
        begun = min(answer["begun"] for answer in issued)
        plain = max(max(answer["times"]) for answer in issued) - begun
        await night.agents.start()
        for answer in issued:
            night.changes += [tuple(change) for change in answer["changes"]]
        _say(f"{count} first certificates at once: {plain:.1f} s")
        renewed = await night.run(_spec(action=_Spec.ACTION_RENEW))
        await night.limit()
        rekey = _spec(action=_Spec.ACTION_REKEY, revoke=_Spec.REVOKE_AFTER_SERVED, rings=_RINGS)
        undisturbed = await night.run(rekey)
        await asyncio.sleep(_LIMIT_SECONDS)  # the bucket is full again
        killed = await night.run(rekey, killed=True)
        await asyncio.sleep(_LIMIT_SECONDS)
        third = count // 3
        return Measured(
            count=count,
            plain=plain,
            renewed=renewed.seconds,
            bound=night.lower_bound(count + night.agents.count),
            rekeyed=(undisturbed.seconds, killed.seconds),
            processor=undisturbed.processor,
            drill=(await night.drill(third), night.lower_bound(third)),
            outside=await _halt(night),
            revoked_in_use=await night.revoked_while_served(),
        )


async def _halt(night: Night) -> int:
    """A rollout whose first ring fails; hosts of other rings that use something new."""
    served = await night.agents.serials()
    await night.ask(f"break 0 {_CANARIES * (_BROKEN - 1) + 1}")
    ended = await night.run(_spec(action=_Spec.ACTION_RENEW, rings=_RINGS))
    if ended.rollout.state != _State.STATE_HALTED:
        raise RuntimeError(f"the rollout has not halted: {ended.rollout.state_reason}")
    await asyncio.sleep(10)
    before = len(night.changes)
    await night.look()
    changed = [*ended.changes, *night.changes[before:]]
    async with night.rollouts() as stub:
        await stub.AbortRollout(
            rollout_pb2.AbortRolloutRequest(rollout_id=ended.rollout.rollout_id, reason="measured"), timeout=60
        )
    await night.ask("mend")
    now_served = await night.agents.serials()
    real = sum(
        was != now and number % _CANARIES != 0 for number, (was, now) in enumerate(zip(served, now_served, strict=True))
    )
    return real + sum(number % _CANARIES != 0 for number, *_ in changed)


_RINGS: Final = (
    rollout_pb2.RingSpec(name="canary", labels=["ring=canary"], bake_duration=Duration(seconds=1)),
    rollout_pb2.RingSpec(name="tenth", percent=10, bake_duration=Duration(seconds=1)),
    rollout_pb2.RingSpec(name="rest", rest=True),
)


def _spec(*, action: int, revoke: int = _Spec.REVOKE_NEVER, rings: Sequence[Any] = ()) -> Any:
    return _Spec(
        selection=fleet_pb2.Selection(all=True), action=action, revoke=revoke, rings=rings, reason="the bench",
        halt=_Spec.Halt(failed_hosts=1, silent_after=Duration(seconds=600)),
    )  # fmt: skip


@contextlib.asynccontextmanager
async def _night(folder: Path, count: int) -> AsyncIterator[Night]:
    """Everything started; no host is connected yet."""
    signer_root = CertificateAuthority.root("Night Identity Root")
    signer = signer_root.intermediate("Night Identity CA")
    hosts_folder = folder / "hosts"
    (hosts_folder / "identities").mkdir(parents=True)
    for number in range(count):
        name = NAME.format(number)
        identity = signer.issue(name, [name])
        write_private(identity_file(hosts_folder, number), identity.chain_pem + identity.key_pem)
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(PostgresCluster(settings=_DURABLE))
        url = await cluster.create_database("night")
        settings, secrets = shared(url)
        over: dict[str, Any] = {
            "rate_limits": UNLIMITED,
            "server": {"calls_per_identity_per_second": 1_000_000, "calls_burst": 1_000_000},
            "logging": {"level": "warning"},
        }
        agents = max(2, count // _HOSTS_TO_AN_AGENT)
        options = DeploymentOptions(
            _policy(count, agents), dns_provider="rfc2136", broker=_merged(over, settings), secrets=secrets
        )
        deployment = await stack.enter_async_context(Deployment(folder / "deployment", options))
        (hosts_folder / "root.pem").write_bytes((deployment.broker_folder / "root.crt").read_bytes())
        bundle = deployment.broker_folder / "agent-roots.crt"
        bundle.write_bytes(signer_root.pem + deployment.identity_ca.roots_file.read_bytes())
        mtls = {"agent_ca_bundle": str(bundle), "allow_missing_provisioner": True}
        deployment.write_broker_config({"server": {"mtls": mtls}})
        brokers = [Broker(deployment, n, port=free_port() if n > 1 else 0, store_url=url) for n in (1, 2)]
        for broker in brokers:
            await broker.start()
            stack.push_async_callback(broker.process.stop)
        ports = [str(broker.port) for broker in brokers]
        each = -(-count // PROCESSES)
        hosts = []
        for first in range(0, count, each):
            arguments = ("--first", str(first), "--count", str(min(each, count - first)))
            process = Process(
                "benchmarks.night_hosts", "--folder", str(hosts_folder), "--port", *ports, *arguments,
                log=folder / f"hosts-{first}.log",
            )  # fmt: skip
            stack.callback(process.end, signal.SIGKILL)
            hosts.append(process)
        operator = signer.issue(_OPERATOR, [_OPERATOR])
        nginx = find("nginx")
        if isinstance(nginx, LeftOut):
            raise RuntimeError(f"nginx is needed: {nginx.reason}")  # noqa: TRY004 - it is a part that isn't there
        real = Agents(deployment, [broker.url for broker in brokers], nginx, agents)
        stack.push_async_callback(real.stop)
        yield Night(folder, deployment, brokers, hosts, operator, count, url, real)


def _policy(count: int, agents: int) -> dict[str, Any]:
    def host(name: str, number: int) -> dict[str, Any]:
        ring = "canary" if number % _CANARIES == 0 else "other"
        return {"identity": name.format(number), "profiles": ["web"], "labels": {"ring": ring}}

    return {
        "version": 1,
        "profiles": {"web": {"type": "multi_san", "dns_names": ["{label}.certplane.test"]}},
        "hosts": {
            **{f"host{number}": host(NAME, number) for number in range(count)},
            **{f"real{number}": host(REAL, number) for number in range(agents)},
        },
        "operators": {"night": {"identity": _OPERATOR, "roles": ["admin"]}},
    }


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {**one, **{key: {**one.get(key, {}), **value} for key, value in other.items()}}


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr)
