"""What an agent's status stream works with, in tests of it: the way to a single broker, and who obeys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import grpc
from typing_extensions import override

from certplane.agent.link.answering import DirectiveTaker
from certplane.agent.link.stream import ChannelSource
from certplane.agent.model import Activation, DirectedRenewal
from certplane.errors import CertplaneError, OperationError


class OneBroker(ChannelSource):
    """`ChannelSource` where there is no other broker; whoever inherits it says what the channel is."""

    url = "https://broker.example:8443"
    several = False

    def __init__(self) -> None:
        self.left: list[timedelta] = []

    @override
    async def leave(self, channel: grpc.aio.Channel, hold: timedelta, *, reconnect: bool = False) -> bool:
        self.left.append(hold)
        return False

    @override
    def answered(self, url: str) -> None: ...

    @override
    async def why_unreachable(self, said: str) -> CertplaneError:
        return OperationError(said)


class Taker(DirectiveTaker):
    """`DirectiveTaker` that keeps what it is told."""

    def __init__(self) -> None:
        self.taken: list[DirectedRenewal] = []
        self.activated: list[Activation] = []
        self.hashes: list[str] = []
        self.epochs: list[str] = []

    @override
    async def renew(self, renewals: Sequence[DirectedRenewal]) -> None:
        self.taken += renewals

    @override
    async def activate(self, activations: Sequence[Activation]) -> None:
        self.activated += activations

    @override
    async def connected(self) -> None: ...

    @override
    async def policy_changed(self, policy_hash: str) -> None:
        self.hashes.append(policy_hash)

    @override
    async def retry_epoch_changed(self, retry_epoch: str) -> None:
        self.epochs.append(retry_epoch)
