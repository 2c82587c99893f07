"""The status stream of a host, with all that it works on: wiring, for `certplane.agent.app`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from certplane.agent.directives import HostDirectives
from certplane.agent.host import IDENTITY, Host
from certplane.agent.lineage_runner import LineageRunner
from certplane.agent.link.facts import host_facts
from certplane.agent.link.open_stream import StreamParts
from certplane.agent.link.state import LinkState
from certplane.agent.link.stream import ChannelSource, StatusStream
from certplane.agent.renewal.skew import ClockSkew

_SHOWN = timedelta(seconds=1)
"""A change of less is no reason to write to the disk of an idle host with each heartbeat."""

logger = logging.getLogger(__name__)


async def status_stream(
    host: Host,
    runners: Mapping[str, LineageRunner],
    identity_runner: LineageRunner,
    channels: ChannelSource,
    skew: ClockSkew,
) -> StatusStream:
    """The stream, not opened yet: it sends `host.reports`, and directives wake `runners`.

    Args:
        host: under its lock.
        runners: the certificates' runners by name.
        identity_runner: the identity's.
        channels: the channel in use.
        skew: fed with what the broker says of its time.
    """
    disk = host.disk
    known = await disk.run(host.link_file.load)
    loop = asyncio.get_running_loop()

    async def save(state: LinkState) -> None:
        await disk.run(host.link_file.save, state)

    def told_time(broker_time: datetime, sent: datetime, received: datetime) -> None:
        was_excessive = skew.excessive
        skew.record(broker_time, sent=sent, received=received)
        best = skew.best
        if best is None:
            return
        shown = stream.state.clock_skew
        if shown is None or abs(best.skew - shown) > _SHOWN:
            stream.note(replace(stream.state, clock_skew=best.skew))
        if skew.excessive and not was_excessive:
            logger.warning("this host's clock is %.0f s apart from the broker's", best.skew.total_seconds())

    def report() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: the report waits on disk
            loop.call_soon_threadsafe(stream.report)

    directives = HostDirectives(
        host.certificates,
        runners,
        identity=host.identity,
        identity_runner=identity_runner,
        disk=disk,
        clock=host.clock,
        policy_hash=known.policy_hash,
        on_policy=lambda policy_hash: stream.note(replace(stream.state, policy_hash=policy_hash)),
        retry_epoch=known.retry_epoch,
        on_retry_epoch=lambda retry_epoch: stream.note(replace(stream.state, retry_epoch=retry_epoch)),
        rng=host.rng,
    )
    parts = StreamParts(
        names=[IDENTITY, *host.certificates],
        spool=host.reports,
        directives=directives,
        disk=disk,
        clock=host.clock,
        rng=host.rng,
        told_time=told_time,
        trace_of=lambda name: (runners.get(name) or identity_runner).trace,
        facts=lambda: host_facts(stream.state, host.settings.broker.server_ca_bundle),
    )
    stream = StatusStream(channels, parts, patience=host.settings.broker.timeout, state=known, save=save)
    host.reports.listen(report)
    return stream
