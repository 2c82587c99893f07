"""What a broker says that isn't one of ours: nothing raises, nothing reaches a terminal, nothing is done without end."""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from certplane.agent import cli
from certplane.agent.app import Agent
from certplane.agent.link.broker import GrpcBroker
from certplane.agent.settings import load_settings
from certplane.errors import CertplaneError
from certplane.runtime.logging import TextFormatter
from certplane.runtime.progress import PlainProgress
from certplane.v1 import certificate_pb2, enrollment_pb2
from certplane.v1 import renewal_pb2 as pb
from tests.support.agent_world import AgentWorld
from tests.support.hostile_broker import Failure, HostileBroker
from tests.support.logs import of_certplane

ESC = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202e\r\nFORGED line\x00" + "x" * 20_000


def in_order(change: Any) -> Any:
    """A twist of each answer that has an order."""

    def twist(message: Any) -> Any:
        if isinstance(message, certificate_pb2.IssueCertificateResponse | certificate_pb2.RenewCertificateResponse):
            change(message)
        return message

    return twist


def failed(message: Any) -> None:
    message.ClearField("certificate")
    message.order.state = certificate_pb2.Order.STATE_FAILED
    message.order.error.message = ESC


def failed_later(seconds: int, nanos: int = 0) -> Any:
    def change(message: Any) -> None:
        failed(message)
        message.order.retry_time.seconds, message.order.retry_time.nanos = seconds, nanos

    return change


def renewed(seconds: int, nanos: int = 0) -> Any:
    def change(message: Any) -> None:
        message.certificate.renew_time.seconds, message.certificate.renew_time.nanos = seconds, nanos

    return change


def ids(message: Any) -> None:
    message.order.order_id = ESC


def certificate_ids(message: Any) -> None:
    message.certificate.certificate_id = ESC


def odd_state(message: Any) -> None:
    message.ClearField("certificate")
    message.order.state = 99  # type: ignore[assignment]


def in_identity(**fields: Any) -> Any:
    def twist(message: Any) -> Any:
        if isinstance(message, enrollment_pb2.GetIdentityResponse):
            for name, value in fields.items():
                target = message if hasattr(message, name) and name != "name" else message.identity
                if isinstance(value, tuple):
                    getattr(target, name).seconds, getattr(target, name).nanos = value
                else:
                    setattr(target, name, value)
        return message

    return twist


def refusing(details: str) -> Any:
    def twist(message: Any) -> Any:
        if not isinstance(message, enrollment_pb2.ReportEnrollmentResponse):
            raise Failure(grpc.StatusCode.FAILED_PRECONDITION, details)
        return message

    return twist


def in_welcome(change: Any) -> Any:
    def twist(message: Any) -> Any:
        if isinstance(message, pb.StreamRenewalStatusResponse) and message.HasField("welcome"):
            change(message)
        return message

    return twist


def parting(message: Any) -> None:
    message.goodbye.reason = ESC
    message.goodbye.reconnect_delay.seconds = 2**62


def odd_times(message: Any) -> None:
    message.welcome.broker_time.seconds, message.welcome.broker_time.nanos = 2**62, -7
    message.welcome.heartbeat_interval.seconds = -(2**62)
    message.welcome.policy_hash = ESC[:1000]
    message.welcome.retry_epoch = ESC[:1000]
    message.welcome.broker_version = ESC[:1000]


MODES = {
    "a failure without a reason": in_order(failed),
    "to be retried after the end of time": in_order(failed_later(2**62)),
    "to be retried before all time": in_order(failed_later(-(2**62))),
    "to be retried at negative nanos": in_order(failed_later(0, -1)),
    "to be renewed after the end of time": in_order(renewed(2**62)),
    "to be renewed before all time": in_order(renewed(-(2**62))),
    "to be renewed in the year 1": in_order(renewed(-62_135_596_800)),
    "to be renewed at negative nanos": in_order(renewed(0, -(2**31))),
    "an order's id with escapes": in_order(ids),
    "a certificate's id with escapes": in_order(certificate_ids),
    "a state of another release": in_order(odd_state),
    "another name for this host": in_identity(name=ESC, label=ESC, serial_number=ESC),
    "a time of the broker's that is none": in_identity(broker_time=(2**62, 0)),
    "an end of the identity that is none": in_identity(expire_time=(0, -1)),
    "gRPC's details with escapes": refusing(ESC[:3000]),
    "a goodbye with escapes": in_welcome(parting),
    "a welcome of nonsense": in_welcome(odd_times),
}


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[AgentWorld]:
    made = AgentWorld(tmp_path)
    await made.broker.use_identity(await made.enroll())
    yield made
    made.close()


@pytest.mark.parametrize("twist", MODES.values(), ids=MODES)
async def test_nothing_that_a_broker_says_reaches_a_terminal_or_raises(
    world: AgentWorld, tmp_path: Path, twist: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """`run --once`, `renew`, `status` and `check` end with a status; what they print and log is printable and short."""
    root = world.authority.root
    server = HostileBroker(world.broker, root, root.issue("broker", ["localhost"]), twist=twist)
    shown = io.StringIO()
    caplog.set_level(logging.DEBUG, "certplane")
    async with server.running():
        for command in ("run", "renew", "check"):
            host = world.start()
            link = GrpcBroker(
                [server.url],
                server_ca_bundle=tmp_path / "broker-ca.crt",
                timeout=timedelta(seconds=5),
                clock=world.clock,
                disk=host.disk,
            )
            agent = Agent(host, PlainProgress(shown), broker=link, channels=link)
            try:
                match command:
                    case "run":
                        await world.run_once(agent)
                    case "renew":
                        shown.write((await agent.by_hand("renew", "web")).text + "\n")
                    case _:
                        await link.use_identity((await world.versions("identity"))[0])
                        await link.get_identity()
            except CertplaneError as error:
                shown.write(f"{error}\n")
            finally:
                await agent.close()
    options = cli._parser().parse_args(["status"])
    assert await cli._run(options, load_settings(tmp_path / "agent.yml")) == 0
    shown.write(capsys.readouterr().out)
    lines = [*shown.getvalue().splitlines(), *(TextFormatter().format(record) for record in caplog.records)]
    assert lines
    for line in lines:
        assert line.isprintable()
        assert len(line) < 5000
        assert not line.startswith("FORGED")
    assert not [record for record in of_certplane(caplog) if record.exc_info]
    kept = [path.stat().st_size for path in (tmp_path / "state").rglob("*.json")]
    assert max(kept) < 30_000
