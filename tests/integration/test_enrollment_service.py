"""`EnrollmentService` for admins, over real mTLS: one-time tokens, and identities that are shut out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from certplane.broker.enrolling.tokens import IdentityCa
from certplane.broker.identity.allowances import AllowanceSettings
from certplane.broker.model import DenyEntry, Grant, IdentityKind
from certplane.errors import Reason, RefusalError
from certplane.sandbox.tokens import ProvisionerKey, parse_jws, verify_jws
from certplane.v1 import enrollment_pb2 as pb
from certplane.v1 import enrollment_pb2_grpc
from tests.fakes.policy import FakePolicy
from tests.fakes.secrets import FakeSecretSource
from tests.support.calls import refused
from tests.support.edge import HOST, OPERATOR, SERVICE, EdgeServer, serve_edge
from tests.support.waiting import HANG

pytestmark = pytest.mark.integration

KEY = ProvisionerKey.generate()
CA = IdentityCa("https://ca.example:8443", "ab" * 32, "certplane-broker", "bootstrap-key", timedelta(minutes=5))
SCOPE_NAME, SCOPE_CERTIFICATES = pb.DenyIdentityRequest.SCOPE_NAME, pb.DenyIdentityRequest.SCOPE_CERTIFICATES


@pytest.fixture
async def edge() -> AsyncIterator[EdgeServer]:
    secrets = FakeSecretSource({"bootstrap-key": json.dumps(KEY.private_jwk)})
    async with serve_edge(identity_ca=CA, secrets=secrets) as server:
        yield server


def admin(edge: EdgeServer) -> AbstractAsyncContextManager[grpc.aio.Channel]:
    return edge.channel(edge.ca.issue([OPERATOR]))


def stub(channel: grpc.aio.Channel) -> Any:
    return enrollment_pb2_grpc.EnrollmentServiceStub(channel)


async def create(edge: EdgeServer, identity: str = HOST, **fields: Any) -> pb.CreateBootstrapTokenResponse:
    async with admin(edge) as channel:
        request = pb.CreateBootstrapTokenRequest(identity=identity, **fields)
        answer: pb.CreateBootstrapTokenResponse = await stub(channel).CreateBootstrapToken(request, timeout=HANG)
        return answer


async def deny(edge: EdgeServer, identity: str = HOST, **fields: Any) -> pb.DenyIdentityResponse:
    async with admin(edge) as channel:
        request = pb.DenyIdentityRequest(**{"identity": identity, "reason": "a new machine", **fields})
        answer: pb.DenyIdentityResponse = await stub(channel).DenyIdentity(request, timeout=HANG)
        return answer


async def call(edge: EdgeServer, leaf: Any) -> str:
    """What the host of this identity certificate is told: its serial number."""
    async with edge.channel(leaf) as channel:
        return str((await stub(channel).GetIdentity(pb.GetIdentityRequest(), timeout=HANG)).identity.serial_number)


def events(edge: EdgeServer, kind: str) -> list[Any]:
    return [event for event in edge.stores.database.events if event.event_type == kind]


async def test_a_token_says_what_step_ca_wants(edge: EdgeServer) -> None:
    """It is signed by the provisioner's key, for this name, at this CA, for as long as the broker allows."""
    before = edge.clock.now().replace(microsecond=0)
    answer = await create(edge)
    verify_jws(answer.token, KEY.key.public_key())
    header, claims = parse_jws(answer.token)
    assert header == {"alg": "ES256", "kid": KEY.key_id, "typ": "JWT"}
    assert before.timestamp() <= claims["iat"] == claims["nbf"] <= edge.clock.now().timestamp()
    assert claims["exp"] - claims["iat"] == 300
    assert len(claims["jti"]) == 64
    assert {name: claims[name] for name in ("aud", "iss", "sans", "sha", "sub")} == {
        "aud": "https://ca.example:8443/1.0/sign",
        "iss": "certplane-broker",
        "sans": [HOST],
        "sha": "ab" * 32,
        "sub": HOST,
    }
    assert int(answer.expire_time.ToDatetime(UTC).timestamp()) == claims["exp"]
    assert (answer.ca_url, answer.ca_root_fingerprint, answer.provisioner, answer.identity) == (
        "https://ca.example:8443",
        "ab" * 32,
        "certplane-broker",
        HOST,
    )


async def test_a_token_is_audited_before_it_is_handed_out(edge: EdgeServer) -> None:
    """The event has who asked, for whom, and the token's id; the token is nowhere."""
    answer = await create(edge)
    (event,) = events(edge, "bootstrap_token_created")
    assert (event.identity, event.severity) == (OPERATOR, "warning")
    assert f"for the host {HOST}, of the provisioner certplane-broker" in event.reason
    assert parse_jws(answer.token)[1]["jti"] in event.reason
    for part in (answer.token, *answer.token.split(".")):
        assert part not in event.encode()


async def test_no_token_without_its_event(edge: EdgeServer) -> None:
    """A broker that can't record it, and fails closed, hands out none."""

    async def away(_: object) -> None:
        raise RefusalError(Reason.AUDIT_UNAVAILABLE, "no space")

    edge.stores.audit.append = away
    async with admin(edge) as channel:
        request = pb.CreateBootstrapTokenRequest(identity=HOST)
        refusal = await refused(stub(channel).CreateBootstrapToken(request, timeout=HANG))
    assert refusal.reason is Reason.AUDIT_UNAVAILABLE


async def test_two_calls_make_two_tokens(edge: EdgeServer) -> None:
    """Each has an id of its own, so that the CA takes each once."""
    first, second = await create(edge), await create(edge)
    assert parse_jws(first.token)[1]["jti"] != parse_jws(second.token)[1]["jti"]


async def test_a_services_token_and_a_label(edge: EdgeServer) -> None:
    """A service gets one by its name, a host also by its label in the policy."""
    assert (await create(edge, SERVICE)).identity == SERVICE
    assert parse_jws((await create(edge, "web1")).token)[1]["sub"] == HOST


async def test_a_dry_run_makes_none(edge: EdgeServer) -> None:
    """It says what a token would be, and nothing is audited."""
    answer = await create(edge, dry_run=True)
    assert (answer.token, answer.identity) == ("", HOST)
    assert events(edge, "bootstrap_token_created") == []


async def test_a_shorter_life(edge: EdgeServer) -> None:
    """A token may end sooner than the broker allows."""
    claims = parse_jws((await create(edge, lifetime=Duration(seconds=30))).token)[1]
    assert claims["exp"] - claims["iat"] == 30


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"identity": ""}, "identity", id="no-name"),
        pytest.param({"identity": "web9.example"}, "identity", id="unknown"),
        pytest.param({"identity": "*.example"}, "identity", id="wildcard"),
        pytest.param({"identity": "x" * 5000}, "identity", id="endless"),
        pytest.param({"identity": OPERATOR}, "identity", id="an-operators"),
        pytest.param({"lifetime": Duration(seconds=301)}, "lifetime", id="too-long"),
        pytest.param({"lifetime": Duration(seconds=9)}, "lifetime", id="too-short"),
        pytest.param({"lifetime": Duration(seconds=-1)}, "lifetime", id="negative"),
    ],
)
async def test_who_gets_none(edge: EdgeServer, fields: dict[str, Any], field: str) -> None:
    """What is wrong with a request is named by field and audited, and no token is made."""
    async with admin(edge) as channel:
        request = pb.CreateBootstrapTokenRequest(**{"identity": HOST, **fields})
        refusal = await refused(stub(channel).CreateBootstrapToken(request, timeout=HANG))
    assert (refusal.reason, refusal.fields) == (Reason.REQUEST_INVALID, [field])
    assert events(edge, "bootstrap_token_created") == []
    assert edge.denied == ["REQUEST_INVALID"]


async def test_who_is_denied_gets_none(edge: EdgeServer) -> None:
    """A name that an operator has shut out gets no token until it is let in again."""
    await edge.stores.deny_list.deny(DenyEntry(name=HOST, reason="stolen"), [])
    async with admin(edge) as channel:
        request = pb.CreateBootstrapTokenRequest(identity=HOST)
        refusal = await refused(stub(channel).CreateBootstrapToken(request, timeout=HANG))
    assert refusal.fields == ["identity"]
    assert "is denied" in refusal.refusal.message
    assert f"certplane-broker identity allow --name {HOST}" in refusal.refusal.message


@pytest.mark.parametrize("roles", [(), ("viewer",), ("operator",)])
async def test_tokens_are_for_admins(edge: EdgeServer, roles: tuple[str, ...]) -> None:
    """Nobody else may make one, or shut anybody out; nor may a host or a service."""
    grants = dict(edge.policy.policy.grants)
    grants[OPERATOR] = Grant(OPERATOR, IdentityKind.OPERATOR, "admin", roles=roles)
    grants[SERVICE] = Grant(SERVICE, IdentityKind.SERVICE, "builder", roles=("admin",))
    edge.policy.policy = FakePolicy(grants)
    for name in (OPERATOR, SERVICE, HOST):
        async with edge.channel(edge.ca.issue([name])) as channel:
            token = stub(channel).CreateBootstrapToken(pb.CreateBootstrapTokenRequest(identity=HOST), timeout=HANG)
            assert (await refused(token)).reason is Reason.ROLE_REQUIRED
            shut = pb.DenyIdentityRequest(identity=HOST, scope=SCOPE_NAME, reason="x")
            assert (await refused(stub(channel).DenyIdentity(shut, timeout=HANG))).reason is Reason.ROLE_REQUIRED
    assert await edge.stores.deny_list.entries() == []


async def test_a_token_costs_as_much_as_twenty_calls() -> None:
    """Who asks for tokens in a loop gets few: the allowance of forty calls is two tokens."""
    allowances = AllowanceSettings(calls_per_second=0.001, calls_burst=40)
    secrets = FakeSecretSource({"bootstrap-key": json.dumps(KEY.private_jwk)})
    async with serve_edge(identity_ca=CA, secrets=secrets, allowances=allowances) as edge, admin(edge) as channel:
        request = pb.CreateBootstrapTokenRequest(identity=HOST)
        for _ in range(2):
            await stub(channel).CreateBootstrapToken(request, timeout=HANG)
        assert (await refused(stub(channel).CreateBootstrapToken(request, timeout=HANG))).reason is Reason.RATE_LIMITED


@pytest.mark.parametrize(
    ("ca", "secret", "said"),
    [
        pytest.param(None, "", "this broker makes no tokens", id="no-section"),
        pytest.param(CA, "", "can't be read: there is no secret", id="no-secret"),
        pytest.param(CA, "not a key", "`bootstrap.key_secret` can't be used: not a private key", id="no-key"),
    ],
)
async def test_a_broker_without_a_key(ca: IdentityCa | None, secret: str, said: str) -> None:
    """It says what is missing, and never what the secret holds."""
    secrets = FakeSecretSource({"bootstrap-key": secret})
    async with serve_edge(identity_ca=ca, secrets=secrets) as edge, admin(edge) as channel:
        request = pb.CreateBootstrapTokenRequest(identity=HOST)
        refusal = await refused(stub(channel).CreateBootstrapToken(request, timeout=HANG))
    assert refusal.reason is Reason.BOOTSTRAP_NOT_CONFIGURED
    assert said in refusal.refusal.message
    assert "not a key" not in refusal.refusal.message


async def test_a_replaced_machine_is_let_in_without_a_contest(edge: EdgeServer) -> None:
    """The old identity certificate is refused, the new one activated; the same words again shut out nobody."""
    old, new = edge.ca.issue([HOST]), edge.ca.issue([HOST])
    await call(edge, old)

    planned = await deny(edge, scope=SCOPE_CERTIFICATES, dry_run=True)
    assert [each.serial_number for each in planned.denied] == [old.serial_number]
    assert await call(edge, old) == old.serial_number

    answer = await deny(edge, scope=SCOPE_CERTIFICATES)
    assert [(each.serial_number, each.already_denied) for each in answer.denied] == [(old.serial_number, False)]
    async with edge.channel(old) as channel:
        assert (await refused(stub(channel).GetIdentity(pb.GetIdentityRequest(), timeout=HANG))).reason is (
            Reason.IDENTITY_REVOKED
        )
    again = await deny(edge, scope=SCOPE_CERTIFICATES)
    assert [(each.serial_number, each.already_denied) for each in again.denied] == [(old.serial_number, True)]

    assert await call(edge, new) == new.serial_number
    later = await deny(edge, scope=SCOPE_CERTIFICATES)
    assert (later.active_replaces_denied, later.active_serial_number) == (True, new.serial_number)
    assert await call(edge, new) == new.serial_number
    assert [event.event_type for event in edge.stores.database.events if "contest" in event.event_type] == []
    (event,) = events(edge, "identity_denied")
    assert event.identity == HOST
    assert f"certificate {old.serial_number} of " in event.reason
    assert f"by the operator {OPERATOR}: a new machine" in event.reason

    named = await deny(edge, scope=SCOPE_CERTIFICATES, active_serial_number=new.serial_number)
    assert new.serial_number in [each.serial_number for each in named.denied if not each.already_denied]


async def test_a_contest_ends_with_both_holders(edge: EdgeServer) -> None:
    """A token is refused while two holders contest the name, and made once the machine is replaced."""
    old, new = edge.ca.issue([HOST]), edge.ca.issue([HOST])
    await call(edge, old)
    await call(edge, new)
    edge.clock.shift += timedelta(minutes=10)
    async with edge.channel(old) as channel:
        assert (await refused(stub(channel).GetIdentity(pb.GetIdentityRequest(), timeout=HANG))).reason is (
            Reason.IDENTITY_RETIRED
        )
    async with admin(edge) as channel:
        refusal = await refused(
            stub(channel).CreateBootstrapToken(pb.CreateBootstrapTokenRequest(identity=HOST), timeout=HANG)
        )
    assert "is contested by two holders" in refusal.refusal.message
    assert refusal.fields == ["identity"]

    answer = await deny(edge, scope=SCOPE_CERTIFICATES)
    assert {each.serial_number for each in answer.denied} == {old.serial_number, new.serial_number}
    assert (await create(edge)).token


async def test_a_retired_name(edge: EdgeServer) -> None:
    """Denied by name, whatever certificate it uses is refused; a repeated call changes nothing."""
    leaf = edge.ca.issue([HOST])
    await call(edge, leaf)
    first, second = await deny(edge, scope=SCOPE_NAME), await deny(edge, scope=SCOPE_NAME, reason="twice")
    assert [(each.name, each.already_denied) for each in first.denied] == [(HOST, False)]
    assert [(each.name, each.already_denied) for each in second.denied] == [(HOST, True)]
    assert first.denied[0].deny_time == second.denied[0].deny_time
    for other in (leaf, edge.ca.issue([HOST])):
        async with edge.channel(other) as channel:
            assert (await refused(stub(channel).GetIdentity(pb.GetIdentityRequest(), timeout=HANG))).reason is (
                Reason.IDENTITY_REVOKED
            )
    assert len(events(edge, "identity_denied")) == 1
    assert [entry.reason for entry in await edge.stores.deny_list.entries()] == ["a new machine"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"identity": ""}, "identity", id="no-name"),
        pytest.param({"identity": "*.example"}, "identity", id="wildcard"),
        pytest.param({"identity": OPERATOR}, "identity", id="oneself"),
        pytest.param({"scope": 0}, "scope", id="no-scope"),
        pytest.param({"scope": 7}, "scope", id="another-scope"),
        pytest.param({"reason": " "}, "reason", id="no-reason"),
        pytest.param({"reason": "x" * 257}, "reason", id="endless-reason"),
        pytest.param({"active_serial_number": "1f"}, "active_serial_number", id="a-serial-with-a-name"),
        pytest.param(
            {"scope": SCOPE_CERTIFICATES, "active_serial_number": "0F"}, "active_serial_number", id="no-serial"
        ),
        pytest.param({"scope": SCOPE_CERTIFICATES, "active_serial_number": "1f"}, "active_serial_number", id="another"),
    ],
)
async def test_who_can_not_be_shut_out(edge: EdgeServer, fields: dict[str, Any], field: str) -> None:
    """What is wrong with a request is named by field, and nobody is shut out."""
    async with admin(edge) as channel:
        request = pb.DenyIdentityRequest(**{"identity": HOST, "scope": SCOPE_NAME, "reason": "x", **fields})
        refusal = await refused(stub(channel).DenyIdentity(request, timeout=HANG))
    assert (refusal.reason, refusal.fields) == (Reason.REQUEST_INVALID, [field])
    assert await edge.stores.deny_list.entries() == []
