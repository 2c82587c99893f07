"""Work that is counted as one: messages that list as many costly things as fit into one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter

import grpc

from attacks.target import PROFILE, Target, refusal_of, until
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.v1 import certificate_pb2 as certificates
from certplane.v1 import certificate_pb2_grpc, renewal_pb2_grpc
from certplane.v1 import renewal_pb2 as pb

_LETTERS = "αβγδεζηθικλμνξοπρστυφχψω"
_AT_ONCE = 91
"""Names in one message or CSR: 15 KB, and both may have 16 or a little more."""


def _long_names(most: int) -> list[str]:
    """Names of A-labels that nobody has seen before, as long as they can be."""
    names: list[str] = []
    while len(names) < most:
        labels: list[str] = []
        while len(labels) < 2:
            label = "xn--" + "".join(random.choices(_LETTERS, k=30)).encode("punycode").decode()
            if len(label) <= 63:
                labels.append(label)
        names.append(".".join((*labels, "test")))
    return names


def hello(reports: int = 0) -> pb.StreamRenewalStatusRequest:
    """A hello, with reports."""
    message = pb.StreamRenewalStatusRequest()
    message.hello.agent_version, message.hello.epoch = "attack", f"{random.getrandbits(60):x}"
    message.hello.certificate_names.append("web")
    message.hello.host_time.GetCurrentTime()
    for number in range(reports):
        report = message.hello.reports.add(sequence=number + 1)
        report.certificate.name, report.certificate.state = "web", pb.CertificateStatus.STATE_WAITING
    return message


async def reports(target: Target, seconds: float) -> Counter[str]:
    """Report names that cost as much as a message can."""
    counts: Counter[str] = Counter()
    numbers = itertools.count(1)
    pool = _long_names(200)
    prepared = [sorted(random.sample(pool, _AT_ONCE)) for _ in range(40)]
    async with target.channel() as channel:
        stub = renewal_pb2_grpc.RenewalServiceStub(channel)
        with contextlib.suppress(TimeoutError):
            async with until(seconds):
                while True:
                    stream = stub.StreamRenewalStatus()
                    try:
                        await stream.write(hello())
                        await stream.read()
                        while True:
                            message = pb.StreamRenewalStatusRequest()
                            message.report.sequence = next(numbers)
                            certificate = message.report.certificate
                            certificate.name, certificate.state = "web", pb.CertificateStatus.STATE_WAITING
                            certificate.dns_names.extend(prepared[message.report.sequence % len(prepared)])
                            await stream.write(message)
                            counts["reports"] += 1
                    except grpc.aio.AioRpcError as error:
                        counts[refusal_of(error)] += 1
                    except (grpc.aio.UsageError, asyncio.InvalidStateError):
                        counts["streams ended"] += 1
    return counts


async def hellos(target: Target, seconds: float) -> Counter[str]:
    """Say hello with as many reports as fit, again and again."""
    counts: Counter[str] = Counter()
    async with target.channel() as channel:
        stub = renewal_pb2_grpc.RenewalServiceStub(channel)
        with contextlib.suppress(TimeoutError):
            async with until(seconds):
                while True:
                    stream = stub.StreamRenewalStatus()
                    try:
                        await stream.write(hello(600))
                        await stream.read()
                        counts["hellos"] += 1
                        stream.cancel()
                    except grpc.aio.AioRpcError as error:
                        counts[refusal_of(error)] += 1
                    except (grpc.aio.UsageError, asyncio.InvalidStateError):
                        counts["streams ended"] += 1
    return counts


async def csrs(target: Target, seconds: float) -> Counter[str]:
    """Ask with CSRs of names that nobody has; each is another one."""
    counts: Counter[str] = Counter()
    key = generate_private_key(KeyType.EC_P256)
    pool = _long_names(200)
    prepared = [build_csr(key, sans=random.sample(pool, _AT_ONCE)) for _ in range(int(20 * seconds))]
    async with target.channel() as channel:
        stub = certificate_pb2_grpc.CertificateServiceStub(channel)
        with contextlib.suppress(TimeoutError):
            async with until(seconds):
                for csr in itertools.cycle(prepared):
                    try:
                        await stub.IssueCertificate(certificates.IssueCertificateRequest(profile=PROFILE, csr_pem=csr))
                    except grpc.aio.AioRpcError as error:
                        counts[refusal_of(error)] += 1
    return counts
