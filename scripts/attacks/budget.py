"""The public CA's budget for a name set, which all share who have it: hosts that try to have it for themselves."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import grpc

from attacks.target import PROFILE, Target, over, refusal_of
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, PrivateKey, generate_private_key
from certplane.v1 import certificate_pb2 as pb
from certplane.v1 import certificate_pb2_grpc

CERTIFICATES = "certificates"
"""What these attacks count as theirs."""

_NAMES = ["www.certplane.test"]
_WAIT = 30
_PAUSE = 0.1
"""After a refusal: the bucket for calls isn't what is tried here."""


async def revoke(target: Target, seconds: float) -> Counter[str]:
    """Issue, revoke as superseded, and issue again: with the same key, and with another one when that is refused."""
    counts: Counter[str] = Counter()
    key, begun = generate_private_key(KeyType.EC_P256), time.monotonic()
    async with target.channel() as channel:
        stub = certificate_pb2_grpc.CertificateServiceStub(channel)
        while not over(begun, seconds):
            try:
                request = pb.IssueCertificateRequest(profile=PROFILE, csr_pem=_csr(key))
                request.wait_duration.seconds = _WAIT
                order = (await stub.IssueCertificate(request)).order
                counts[CERTIFICATES] += bool(order.certificate_id)
                reason = pb.REVOCATION_REASON_SUPERSEDED
                await stub.RevokeCertificate(
                    pb.RevokeCertificateRequest(certificate_id=order.certificate_id, reason=reason)
                )
            except grpc.aio.AioRpcError as error:
                counts[refusal_of(error)] += 1
                await asyncio.sleep(_PAUSE)
                key = generate_private_key(KeyType.EC_P256)
    return counts


async def renew(target: Target, seconds: float) -> Counter[str]:
    """Renew one's own with the same key, far from due, again and again."""
    counts: Counter[str] = Counter()
    csr, begun, own = _csr(generate_private_key(KeyType.EC_P256)), time.monotonic(), ""
    async with target.channel() as channel:
        stub = certificate_pb2_grpc.CertificateServiceStub(channel)
        while not over(begun, seconds):
            try:
                if own:
                    renewal = pb.RenewCertificateRequest(certificate_id=own, profile=PROFILE, csr_pem=csr)
                    renewal.wait_duration.seconds = _WAIT
                    order = (await stub.RenewCertificate(renewal)).order
                else:
                    request = pb.IssueCertificateRequest(profile=PROFILE, csr_pem=csr)
                    request.wait_duration.seconds = _WAIT
                    order = (await stub.IssueCertificate(request)).order
                counts[CERTIFICATES] += order.certificate_id not in ("", own)
                own = order.certificate_id or own
            except grpc.aio.AioRpcError as error:
                counts[refusal_of(error)] += 1
                await asyncio.sleep(_PAUSE)
    return counts


def _csr(key: PrivateKey) -> str:
    return build_csr(key, sans=_NAMES)
