"""The bare grpc.aio mTLS server and client: what grpc.aio, TLS and protobuf cost before any of our code runs.

`python -m benchmarks.reference server ...` answers `IssueCertificate` with one message made beforehand, of the size
of a real answer, and `EnrollmentService` with empty ones; it has no interceptor and looks at nothing. It prints a
line with a monotonic time for each first call of a connection, so that a client's start can be timed from outside.
A status stream it answers with one welcome, made beforehand too, and forgets what it hears after that; with `--json`
each line `push` on its standard input sends one directive to all of them, and the answer says when that began.
`python -m benchmarks.reference client ...` opens a channel, makes one call and idles.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from pathlib import Path

import grpc

from certplane.v1 import certificate_pb2, certificate_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc, renewal_pb2_grpc
from certplane.v1 import renewal_pb2 as pb

ANSWER_BYTES = 5_000
"""A leaf and one intermediate in PEM with the order's fields: what a cached answer weighs."""


class _Certificates(certificate_pb2_grpc.CertificateServiceServicer):
    def __init__(self) -> None:
        self._answer = certificate_pb2.IssueCertificateResponse(
            certificate=certificate_pb2.Certificate(certificate_pem="x" * ANSWER_BYTES)
        )

    async def IssueCertificate(self, request, context):  # noqa: ARG002, N802 - a bare servicer
        return self._answer


class _Enrollment(enrollment_pb2_grpc.EnrollmentServiceServicer):
    async def GetIdentity(self, request, context):  # noqa: ARG002, N802 - a bare servicer
        print(f"call {time.monotonic()}", flush=True)
        return enrollment_pb2.GetIdentityResponse()

    async def ReportEnrollment(self, request, context):  # noqa: ARG002, N802 - a bare servicer
        print(f"call {time.monotonic()}", flush=True)
        return enrollment_pb2.ReportEnrollmentResponse()


class _Renewals(renewal_pb2_grpc.RenewalServiceServicer):
    def __init__(self) -> None:
        digest = "0" * 64
        welcome = pb.StreamRenewalStatusResponse.Welcome(
            broker_version="0.0.0", policy_hash=digest, trust_bundle_hash=digest
        )
        welcome.heartbeat_interval.FromSeconds(60)
        self._welcome = pb.StreamRenewalStatusResponse(welcome=welcome)
        self._contexts: set[grpc.aio.ServicerContext] = set()
        renewal = pb.Renewal(
            certificate_id="certificate-1", cause=pb.Renewal.CAUSE_OPERATOR, reason="the bench wants it so"
        )
        renewal.renew_time.GetCurrentTime()
        directive = pb.StreamRenewalStatusResponse.Directive(
            nonce="0" * 16, renewals=[renewal], policy_hash=digest, trust_bundle_hash=digest
        )
        self._directive = pb.StreamRenewalStatusResponse(directive=directive)

    async def StreamRenewalStatus(self, requests, context):  # noqa: N802 - a bare servicer
        self._contexts.add(context)
        try:
            await context.write(self._welcome)
            async for _ in requests:
                pass
        finally:
            self._contexts.discard(context)

    async def push(self) -> None:
        """Send one directive to every stream, as fast as it goes."""
        await asyncio.gather(*(context.write(self._directive) for context in self._contexts))


async def _serve(folder: Path, port: int, *, json_lines: bool) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    renewals = _Renewals()
    renewal_pb2_grpc.add_RenewalServiceServicer_to_server(renewals, server)
    certificate_pb2_grpc.add_CertificateServiceServicer_to_server(_Certificates(), server)
    enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(_Enrollment(), server)
    read = lambda name: (folder / name).read_bytes()  # noqa: E731 - shorter than a function here
    credentials = grpc.ssl_server_credentials(
        [(read("server.key"), read("server.pem"))], read("root.pem"), require_client_auth=True
    )
    bound = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    if not json_lines:
        print(f"port {bound}", flush=True)
        await server.wait_for_termination()
    print(json.dumps({"port": bound}), flush=True)
    lines: asyncio.Queue[str] = asyncio.Queue()
    asyncio.get_running_loop().add_reader(0, lambda: lines.put_nowait(sys.stdin.readline()))
    while await lines.get():
        gc.collect()
        begun = time.monotonic()
        await renewals.push()
        print(json.dumps({"time": begun}), flush=True)


async def _idle(folder: Path, port: int) -> None:
    read = lambda name: (folder / name).read_bytes()  # noqa: E731 - shorter than a function here
    credentials = grpc.ssl_channel_credentials(read("root.pem"), read("client.key"), read("client.pem"))
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        await enrollment_pb2_grpc.EnrollmentServiceStub(channel).GetIdentity(enrollment_pb2.GetIdentityRequest())
        await asyncio.Event().wait()


def broker_loop():
    """The kind of loop that the broker takes: uvloop where it is installed."""
    try:
        import uvloop  # noqa: PLC0415 - an optional package
    except ImportError:
        return None
    return uvloop.new_event_loop


def main() -> None:
    """Run the server or the client until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("--folder", type=Path, required=True, help="root.pem, server.{pem,key}, client.{pem,key}")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="talk in JSON, and take commands")
    arguments = parser.parse_args()
    if arguments.role == "server":
        with asyncio.Runner(loop_factory=broker_loop()) as runner:
            runner.run(_serve(arguments.folder, arguments.port, json_lines=arguments.json))
    else:
        asyncio.run(_idle(arguments.folder, arguments.port))


if __name__ == "__main__":
    main()
