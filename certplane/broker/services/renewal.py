# ruff: noqa: N802 - methods bear the names of the proto file
"""`RenewalService`: the hosts' status streams, who watches the fleet, and services that watch what they have."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final

import grpc

from certplane import __version__
from certplane.broker.fleet.hub import FleetHub
from certplane.broker.fleet.messages import Outgoing
from certplane.broker.fleet.stream import ServedStream
from certplane.broker.fleet.view import FleetView, HostNotFoundError, HostView
from certplane.broker.fleet.watching import (
    CertificateChanged,
    CertificateRecorded,
    CertificateRemoved,
    FleetChanged,
    HostChanged,
)
from certplane.broker.services.calls import current_call, take_messages
from certplane.broker.services.convert import invalid_request
from certplane.broker.services.fleet_convert import add_certificates, host_message
from certplane.broker.services.renewal_convert import (
    directive_result,
    hello_of,
    outgoing_message,
    report_of,
    status_message,
    time_of,
)
from certplane.broker.services.watch_convert import client_version, watch_message
from certplane.broker.watches.desk import WatchDesk
from certplane.errors import Reason, RefusalError
from certplane.rpc.times import timestamp
from certplane.rpc.tracing import context_in
from certplane.runtime import tracing
from certplane.runtime.tracing import SpanKind
from certplane.v1 import renewal_pb2 as pb
from certplane.v1 import renewal_pb2_grpc

RpcContext = grpc.aio.ServicerContext[Any, Any]

_MAX_HOSTS: Final = 100


class RenewalServicer(renewal_pb2_grpc.RenewalServiceServicer):
    """See the proto file: the comment of each method there is its contract."""

    service = pb.DESCRIPTOR.services_by_name["RenewalService"].full_name

    def __init__(self, hub: FleetHub, view: FleetView, watches: WatchDesk) -> None:
        self._hub = hub
        self._view = view
        self._watches = watches

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        renewal_pb2_grpc.add_RenewalServiceServicer_to_server(self, server)

    async def StreamRenewalStatus(  # type: ignore[override]  # it writes: the stub knows only handlers that yield
        self, requests: AsyncIterator[pb.StreamRenewalStatusRequest], context: RpcContext
    ) -> None:
        """Serve a host's stream: what it says is read here, what it is told is sent by the hub."""
        caller, request_id = current_call()
        stream = self._hub.attach(caller, request_id, functools.partial(_send, context))
        try:
            async for message in requests:
                await self._take(stream, message)
                del message  # the stream may wait for hours for the next one
            await stream.settle()
        except asyncio.CancelledError:
            if not stream.was_ended():
                raise
            if stream.end_reason is not None:
                raise stream.end_reason from None
        finally:
            self._hub.detach(stream)

    async def _take(self, stream: ServedStream, message: pb.StreamRenewalStatusRequest) -> None:
        match message.WhichOneof("message"):
            case "report":
                above = context_in(message.report.traceparent)
                with tracing.span("report", SpanKind.CONSUMER, parent=above) if above else contextlib.nullcontext():
                    await self._hub.report(stream, report_of(message.report))
            case "heartbeat":
                self._hub.heartbeat(stream, time_of("heartbeat.host_time", message.heartbeat.host_time))
            case "directive_result":
                self._hub.answer(stream, directive_result(message.directive_result))
            case "hello":
                take_messages(len(message.hello.reports))
                await self._hub.hello(stream, await hello_of(message.hello))
            case _:
                raise invalid_request("message", "is required, and one that this broker knows")

    async def WatchRenewals(  # type: ignore[override]  # it writes: the stub knows only handlers that yield
        self, request: pb.WatchRenewalsRequest, context: RpcContext
    ) -> None:
        """Send the fleet as it is, then what changes, the latest of each certificate."""
        if len(request.hosts) > _MAX_HOSTS:
            raise invalid_request("hosts", f"must be at most {_MAX_HOSTS}")
        hosts = frozenset(self._view.identity(host) for host in request.hosts)
        with self._hub.watchers.watching(hosts.__contains__ if hosts else _everything) as watcher:
            if not request.changes_only:
                event = pb.WatchRenewalsResponse()
                event.snapshot_end.host_count = await self._send_fleet(hosts, context)
                event.event_time.CopyFrom(timestamp(self._hub.now()))
                await self._send(event, context)
            while (change := await watcher.next_change()) is not None:
                if isinstance(change, FleetChanged):
                    await self._send_fleet(hosts, context)
                else:
                    await self._send_change(change, context)
        raise RefusalError(Reason.DRAINING, "the broker is shutting down; watch again shortly")

    async def WatchMyCertificates(  # type: ignore[override]  # it writes: the stub knows only handlers that yield
        self, request: pb.WatchMyCertificatesRequest, context: RpcContext
    ) -> None:
        """Send what the caller has, then what becomes of it, until either side says goodbye."""
        caller, _ = current_call()
        with self._watches.watching(caller, client_version(request.client_version)) as watch:
            while (message := await watch.next_message()) is not None:
                await self._write(watch_message(message, __version__), context)

    async def _send_fleet(self, hosts: frozenset[str], context: RpcContext) -> int:
        """Every host that is watched, as it is; how many they were."""
        count = 0
        async with aclosing(self._view.hosts()) as views:
            async for view in views:
                if not hosts or view.record.host in hosts:
                    await self._send_host(view, self._hub.now(), context)
                    count += 1
        return count

    async def _send_change(
        self, change: HostChanged | CertificateChanged | CertificateRemoved | CertificateRecorded, context: RpcContext
    ) -> None:
        event = pb.WatchRenewalsResponse(event_time=timestamp(change.time))
        match change:
            case HostChanged():
                try:
                    view = await self._view.host(change.host)
                except HostNotFoundError:
                    event.host_removed = change.host
                    await self._send(event, context)
                else:
                    await self._send_host(view, change.time, context)
                return
            case CertificateRecorded():
                event.certificate_change.CopyFrom(await self._recorded(change))
            case CertificateChanged():
                health = await self._view.health(change.host, change.certificate)
                event.certificate_change.certificate.CopyFrom(status_message(change.certificate, health))
            case CertificateRemoved():
                event.certificate_change.certificate.name = change.name
                event.certificate_change.removed = True
        event.certificate_change.host = change.host
        await self._send(event, context)

    async def _recorded(self, change: CertificateRecorded) -> pb.WatchRenewalsResponse.CertificateChange:
        """The certificate as it is by now."""
        with contextlib.suppress(HostNotFoundError):
            view = await self._view.host(change.host)
            for certificate in view.record.certificates:
                if certificate.name == change.name:
                    status = status_message(certificate, view.health[change.name])
                    return pb.WatchRenewalsResponse.CertificateChange(certificate=status)
        status = pb.CertificateStatus(name=change.name)
        return pb.WatchRenewalsResponse.CertificateChange(certificate=status, removed=True)

    async def _send_host(self, view: HostView, time: datetime, context: RpcContext) -> None:
        """A host, and those of its certificates that have no room beside it as changes."""
        message = host_message(view)
        sent = add_certificates(message, view.record.certificates, view.health)
        await self._send(pb.WatchRenewalsResponse(event_time=timestamp(time), host=message), context)
        for certificate in view.record.certificates[sent:]:
            event = pb.WatchRenewalsResponse(event_time=timestamp(time))
            event.certificate_change.host = view.record.host
            status = status_message(certificate, view.health[certificate.name])
            event.certificate_change.certificate.CopyFrom(status)
            await self._send(event, context)

    async def _send(self, event: pb.WatchRenewalsResponse, context: RpcContext) -> None:
        await self._write(event, context)

    async def _write(
        self, event: pb.WatchRenewalsResponse | pb.WatchMyCertificatesResponse, context: RpcContext
    ) -> None:
        try:
            async with asyncio.timeout(self._hub.context.settings.write_timeout.total_seconds()):
                await context.write(event)
        except TimeoutError as error:
            raise RefusalError(Reason.STREAM_TIMED_OUT, "the watcher doesn't read its stream") from error


def _everything(_host: str) -> bool:
    return True


async def _send(context: RpcContext, message: Outgoing) -> None:
    await context.write(outgoing_message(message, __version__))
