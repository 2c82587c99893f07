"""The neighbour: a host in good standing that asks for its cached certificate again and again, and takes the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from attacks.target import PROFILE
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import KeyPair, channel_credentials
from certplane.v1 import certificate_pb2 as pb
from certplane.v1 import certificate_pb2_grpc

_PAUSE = 0.055
"""Between two calls: under the 20 calls a second that an identity may make."""
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Felt:
    """What the neighbour felt: one figure per call, in milliseconds, in ascending order; calls that had no answer."""

    milliseconds: Sequence[float]
    failed: int

    def quantile(self, share: float) -> float:
        """The share's quantile; a call without an answer counts as the longest wait."""
        figures = [*self.milliseconds, *[_PATIENCE * 1000] * self.failed]
        return figures[min(len(figures) - 1, int(share * len(figures)))] if figures else float("nan")

    def __str__(self) -> str:
        """P50 and p99, and of how many."""
        failed = f", {self.failed} without an answer" if self.failed else ""
        return f"{self.quantile(0.5):.1f}/{self.quantile(0.99):.1f} ms (n={len(self.milliseconds)}{failed})"


class Neighbour:
    """Its connection and its request."""

    def __init__(self, folder: Path, port: int, names: Sequence[str]) -> None:
        pair = KeyPair((folder / "neighbour.key").read_bytes(), (folder / "neighbour.crt").read_bytes())
        credentials = channel_credentials((folder / "root.crt").read_bytes(), pair)
        self._channel = open_channel(f"https://localhost:{port}", credentials)
        self._stub = certificate_pb2_grpc.CertificateServiceStub(self._channel)
        csr = build_csr(generate_private_key(KeyType.EC_P256), sans=names)
        self._request = pb.IssueCertificateRequest(profile=PROFILE, csr_pem=csr)

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()

    async def settle(self) -> None:
        """Get the certificate, so that later calls are answered from the cache."""
        for _ in range(10):
            response = await self._stub.IssueCertificate(self._request, timeout=60)
            if response.HasField("certificate"):
                return
        raise RuntimeError(f"the neighbour got no certificate: {response.order}")

    async def feel(self, seconds: float) -> Felt:
        """Call for `seconds`, and take the time of each call."""
        figures: list[float] = []
        failed = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begun = time.monotonic()
            try:
                await self._stub.IssueCertificate(self._request, timeout=_PATIENCE)
                figures.append((time.monotonic() - begun) * 1000)
            except grpc.aio.AioRpcError:
                failed += 1
            await asyncio.sleep(_PAUSE)
        return Felt(sorted(figures), failed)
