"""The bare grpc.aio mTLS server and client: what grpc.aio, TLS and protobuf cost before any of our code runs.

`python -m benchmarks.reference server ...` answers `IssueCertificate` with one message made beforehand, of the size
of a real answer, and `EnrollmentService` with empty ones; it has no interceptor and looks at nothing. It prints a
line with a monotonic time for each first call of a connection, so that a client's start can be timed from outside.
`python -m benchmarks.reference client ...` opens a channel, makes one call and idles.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

import grpc

from certplane.v1 import certificate_pb2, certificate_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc

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


async def _serve(folder: Path, port: int) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    certificate_pb2_grpc.add_CertificateServiceServicer_to_server(_Certificates(), server)
    enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(_Enrollment(), server)
    read = lambda name: (folder / name).read_bytes()  # noqa: E731 - shorter than a function here
    credentials = grpc.ssl_server_credentials(
        [(read("server.key"), read("server.pem"))], read("root.pem"), require_client_auth=True
    )
    bound = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    print(f"port {bound}", flush=True)
    await server.wait_for_termination()


async def _idle(folder: Path, port: int) -> None:
    read = lambda name: (folder / name).read_bytes()  # noqa: E731 - shorter than a function here
    credentials = grpc.ssl_channel_credentials(read("root.pem"), read("client.key"), read("client.pem"))
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        await enrollment_pb2_grpc.EnrollmentServiceStub(channel).GetIdentity(enrollment_pb2.GetIdentityRequest())
        await asyncio.Event().wait()


def _broker_loop():
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
    arguments = parser.parse_args()
    if arguments.role == "server":
        with asyncio.Runner(loop_factory=_broker_loop()) as runner:
            runner.run(_serve(arguments.folder, arguments.port))
    else:
        asyncio.run(_idle(arguments.folder, arguments.port))


if __name__ == "__main__":
    main()
