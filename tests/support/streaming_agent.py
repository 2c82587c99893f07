"""An agent in this process whose broker holds certificates back: what it is told, and what it reports of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
from typing_extensions import override

from certplane.agent.app import Agent
from certplane.v1 import renewal_pb2 as pb
from tests.support.agent_streams import OneBroker
from tests.support.agent_world import AgentWorld
from tests.support.renewal_server import RenewalServer
from tests.support.waiting import HANG


class PlainChannels(OneBroker):
    """`ChannelSource` to a scripted broker."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.opened = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])

    @property
    @override
    def channel(self) -> grpc.aio.Channel:
        return self.opened


@contextlib.asynccontextmanager
async def broker(world: AgentWorld) -> AsyncIterator[RenewalServer]:
    """The scripted broker, by the clock of `world`."""
    async with RenewalServer(world.clock).running() as server:
        yield server


@contextlib.asynccontextmanager
async def agent_of(world: AgentWorld, server: RenewalServer) -> AsyncIterator[Agent]:
    """The agent of a new process, with streams to `server`."""
    channels = PlainChannels(server.port)
    agent = Agent(world.start(), world.progress, broker=world.broker, channels=channels)
    try:
        yield agent
    finally:
        await channels.channel.close()


@contextlib.asynccontextmanager
async def running(world: AgentWorld, server: RenewalServer) -> AsyncIterator[Agent]:
    """The same as a daemon."""
    async with agent_of(world, server) as agent:
        stop = asyncio.Event()
        task = asyncio.create_task(agent.run(stop, world.progress))
        try:
            yield agent
        finally:
            stop.set()
            await asyncio.wait_for(task, HANG)


def last_report(server: RenewalServer, name: str) -> pb.CertificateStatus:
    """What the broker heard last of a certificate."""
    return next((each for each in reversed(server.taken) if each.name == name), pb.CertificateStatus())


def in_use(server: RenewalServer, name: str) -> int:
    """The version that the broker knows to be in use, once all is well; 0 before."""
    last = last_report(server, name)
    return last.installed.version if last.state == pb.CertificateStatus.STATE_WAITING else 0


async def held_renewal(world: AgentWorld, name: str, *, new_key: bool = False) -> pb.Renewal:
    """Renew it now for `rollout-1`, and hold what comes for two days."""
    newest = (await world.versions(name))[-1].certificate_id
    message = pb.Renewal(
        certificate_id=newest,
        cause=pb.Renewal.CAUSE_OPERATOR,
        hold_activation=True,
        new_key=new_key,
        rollout_id="rollout-1",
    )
    message.renew_time.FromDatetime(world.clock.now())
    message.activate_by_time.FromDatetime(world.clock.now() + timedelta(days=2))
    return message
