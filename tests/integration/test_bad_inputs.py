"""The table of bad inputs against a broker as it is deployed: real identities, mTLS gRPC, a public CA, a DNS API.

Each rejection is looked at from three sides: what the caller is told, that neither CA nor DNS heard of it, and that the
audit log has it. Every case has a host of its own, so that no other case's denial is counted together with it.

| row | bad input | where |
|---|---|---|
| 1 to 4, 6 to 11, 14 to 19, 21 to 27, 29, 32 | a CSR that is wrong in itself | `test_bad_csr`; the parser alone: tests/unit/pki/test_csr.py |
| 5, 44 | a message or metadata that is too large | test_broker_edge.py |
| 12 | a key that is another's, the account's, or compromised | `test_row_12_...` |
| 13, 26, 28, 30, 31, 33, 43 | a CSR in order, for what policy doesn't give | `test_not_allowed` |
| 20 | names twice and in mixed case | `test_row_20_...` |
| 34 to 36 | bootstrap tokens | test_enrollment.py |
| 37, 38 | an identity that is over, or of a foreign CA | test_broker_edge.py, with the client that has none |
| 39 | the right name from the wrong hand | `test_wrong_hand`; other kinds: test_broker_edge.py |
| 40 | an identity revoked or renamed while connected | `test_row_40_...`; streams: test_broker_edge.py |
| 41 | what belongs to somebody else | `test_row_41_...` |
| 42 | one order asked for many times | `test_row_42_...` |
| 43 | a name that would leave its directory | e2e/test_configuration_errors.py |

The compromised keys of row 8 are those that were revoked here as such: no list is shipped (`certplane.pki.keys`).
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certplane.errors import Reason
from certplane.pki.csr import build_csr
from certplane.sandbox.certificates import CertificateAuthority, Credential
from certplane.sandbox.ports import X5C_PROVISIONER
from certplane.v1 import certificate_pb2 as pb
from tests.support.bad_csrs import BAD_CSRS, BadCsr, named
from tests.support.calls import Refused, refused
from tests.support.csr import craft, pem
from tests.support.deployed_broker import DeployedBroker, certificates, get_identity, issue
from tests.support.limits import UNLIMITED
from tests.support.parts import need_part
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.integration

ROWS = range(1, 45)

ON_THE_WIRE = [case for case in BAD_CSRS if case.name not in {"row-01-empty", "row-01-lone-surrogate"}]
"""An empty field is `test_row_01_no_csr`; a lone surrogate can't be sent, see "bytes that are no message" at the edge."""

NAMES = "a CSR must have exactly the profile's names"

NOT_ALLOWED = [
    ("row-13-extra-name", "site", named("www.example.test", "admin.example.test"), "asks for admin.example.test"),
    ("row-13-lacking-name", "pair", named("a.certplane.test"), "lacks b.certplane.test"),
    ("row-26-homograph", "site", named("www.xn--exmple-cua.com"), "asks for www.xn--exmple-cua.com"),
    ("row-28-whole-top-level-domain", "site", named("*.com"), "asks for *.com"),
    ("row-28-bare-star", "site", named("*"), "asks for *,"),
    ("row-30-wildcard-of-an-apex", "apex", named("*.certplane.test"), "lacks certplane.test and asks for"),
    ("row-30-apex-and-wildcard", "apex", named("*.certplane.test", "certplane.test"), "asks for *.certplane.test"),
    ("row-31-local", "site", named("printer.local"), "asks for printer.local"),
    ("row-31-public-suffix", "site", named("co.uk"), "asks for co.uk"),
    ("row-31-arpa", "site", named("1.0.0.127.in-addr.arpa"), "asks for 1.0.0.127.in-addr.arpa"),
]
"""Case, profile, CSR, and what the refusal says of its names."""

NO_PROFILES = [
    ("row-33-unknown-profile", "nothing"),
    ("row-33-profile-of-another", "others"),
    ("row-33-other-case", "SITE"),
    ("row-43-profile-that-is-a-path", "../../site"),
    ("row-43-profile-with-a-line-break", 'site\n{"event_type": "certificate_issued"}'),
]
"""Case, and a profile that the host doesn't have."""


def host_of(case: str) -> str:
    return f"{case}.certplane.test"


CASE_HOSTS = [
    *(case.name for case in BAD_CSRS),
    *(case for case, *_ in NOT_ALLOWED),
    *(case for case, _ in NO_PROFILES),
    *(f"row-12-{what}" for what in ("account-key", "owner", "other", "compromised")),
    *("row-20", "row-39", "row-40-denied", "row-40-renamed", "row-41-mallory", "row-42-many", "row-42-lost"),
    *("sound", "coalesced"),
]


def policy() -> dict[str, Any]:
    profiles = {
        "site": ("multi_san", ["www.example.test"]),
        "pair": ("multi_san", ["a.certplane.test", "b.certplane.test"]),
        "apex": ("multi_san", ["certplane.test"]),
        "others": ("multi_san", ["other.certplane.test"]),
    }
    own = ["site", "pair", "apex"]
    return {
        "version": 1,
        "profiles": {name: {"type": kind, "dns_names": names} for name, (kind, names) in profiles.items()},
        "hosts": {
            **{case: {"identity": host_of(case), "profiles": own} for case in CASE_HOSTS},
            "row-41-owner": {"identity": host_of("row-41-owner"), "profiles": ["pair", "others"]},
        },
    }


FOREIGN = CertificateAuthority.root("Another trusted CA")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DeployedBroker]:
    """One deployment for all; it trusts a second CA for agents, and counts no certificates: all cases share their names."""
    need_part("pebble")
    folder = tmp_path_factory.mktemp("bad-inputs")
    async with DeployedBroker.running(folder, policy(), more_roots=FOREIGN.pem, rate_limits=UNLIMITED) as running:
        yield running


@asynccontextmanager
async def host(broker: DeployedBroker, case: str) -> AsyncIterator[grpc.aio.Channel]:
    async with broker.channel(host_of(case)) as channel:
        yield channel


async def rejected(
    broker: DeployedBroker, identity: str, call: Callable[[], Awaitable[Any]], event_type: str = "certificate_denied"
) -> Refused:
    """How the call is refused, having made sure that nothing left the broker and that the audit log has it once."""
    await broker.settle()
    before = broker.asked
    answer = await refused(call())
    assert broker.asked == before
    (event,) = await broker.events(identity=identity, request_id=answer.request_id)
    assert (event["event_type"], event["decision"]) == (event_type, "deny")
    assert event["reason_code"] == answer.reason.value
    assert event["source_ip"] == "127.0.0.1"
    return answer


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pair_csr(key: ec.EllipticCurvePrivateKey | None = None) -> str:
    return build_csr(key or new_key(), sans=["a.certplane.test", "b.certplane.test"])


# --- the CSR itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in ON_THE_WIRE])
async def test_bad_csr(broker: DeployedBroker, case: BadCsr) -> None:
    """A CSR with anything wrong in it is INVALID_ARGUMENT, names its field and what is wrong, and goes no further."""
    async with host(broker, case.name) as channel:
        answer = await rejected(broker, host_of(case.name), lambda: issue(channel, profile="site", csr_pem=case.make()))
    assert answer.reason is case.reason
    assert answer.fields == ["csr_pem"]
    assert case.phrase in answer.refusal.message
    (event,) = await broker.events(identity=host_of(case.name))
    assert len(event["csr_sha256"]) == 64
    assert event["reason"] == answer.refusal.message


async def test_row_01_no_csr(broker: DeployedBroker) -> None:
    """A request without a CSR is REQUEST_INVALID and names the field."""
    async with host(broker, "row-01-empty") as channel:
        answer = await rejected(
            broker, host_of("row-01-empty"), lambda: issue(channel, profile="site"), event_type="rpc_denied"
        )
    assert (answer.reason, answer.fields) == (Reason.REQUEST_INVALID, ["csr_pem"])


async def test_sound_csr_is_served(broker: DeployedBroker) -> None:
    """The same CSR with nothing wrong in it gets its certificate: the cases above end for their one reason."""
    before = broker.asked
    async with host(broker, "sound") as channel:
        response = await issue(channel, profile="site", csr_pem=pem(craft(key=new_key())))
    assert response.order.state == pb.Order.STATE_ISSUED
    assert broker.asked.orders == before.orders + 1
    assert broker.asked.dns_calls > before.dns_calls


async def test_row_20_names_twice_and_in_mixed_case(broker: DeployedBroker) -> None:
    """Names are the same names in any case and any number: the order has each once, and the cache knows it."""
    key = new_key()
    shouted = pem(craft(names=["B.certplane.TEST", "a.certplane.test", "A.Certplane.test"], key=key))
    before = broker.asked
    async with host(broker, "row-20") as channel:
        first = await issue(channel, profile="pair", csr_pem=shouted)
        again = await issue(channel, profile="pair", csr_pem=pair_csr(key))
    assert list(first.order.dns_names) == ["a.certplane.test", "b.certplane.test"]
    leaf = x509.load_pem_x509_certificate(first.certificate.certificate_pem.encode())
    sans = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    # Pebble copies the CSR's spelling, Boulder normalises too: the names are the same ones either way.
    assert {name.lower() for name in sans.get_values_for_type(x509.DNSName)} == {"a.certplane.test", "b.certplane.test"}
    assert again.source == pb.CERTIFICATE_SOURCE_CACHE
    assert again.certificate.certificate_id == first.certificate.certificate_id
    assert broker.asked.orders == before.orders + 1


# --- what policy doesn't give -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "profile", "make", "phrase"), [pytest.param(*row, id=row[0]) for row in NOT_ALLOWED])
async def test_not_allowed(
    broker: DeployedBroker, case: str, profile: str, make: Callable[[], str], phrase: str
) -> None:
    """Names that differ from the profile's, in whatever way, are PERMISSION_DENIED, and the answer says which."""
    async with host(broker, case) as channel:
        answer = await rejected(broker, host_of(case), lambda: issue(channel, profile=profile, csr_pem=make()))
    assert answer.reason is Reason.NAMES_NOT_ALLOWED
    assert answer.refusal.message.startswith(NAMES)
    assert phrase in answer.refusal.message
    (event,) = await broker.events(identity=host_of(case))
    assert event["csr_dns_names"] != event["expected_dns_names"]


@pytest.mark.parametrize(("case", "profile"), [pytest.param(*row, id=row[0]) for row in NO_PROFILES])
async def test_no_such_profile(broker: DeployedBroker, case: str, profile: str) -> None:
    """An unknown profile and another's are one answer, so that nobody can list the policy; the log knows which it was."""
    async with host(broker, case) as channel:
        answer = await rejected(broker, host_of(case), lambda: issue(channel, profile=profile, csr_pem=pair_csr()))
    assert answer.reason is Reason.PROFILE_NOT_ALLOWED
    assert answer.refusal.message == (
        "policy does not allow this identity what it asks for; the broker's audit log has the decision"
    )
    (event,) = await broker.events(identity=host_of(case))
    assert event["profile_name"] == profile
    known = "policy does not give this profile to this identity"
    assert event["reason"] == (known if profile == "others" else "policy has no profile of this name")


# --- keys -------------------------------------------------------------------------------------------------------------


async def test_row_12_account_key(broker: DeployedBroker) -> None:
    """The key of the ACME account is never certified."""
    account = broker.deployment.broker_folder / "account.key"
    key = load_pem_private_key(account.read_bytes(), None)
    case = "row-12-account-key"
    async with host(broker, case) as channel:
        csr = pair_csr(key)  # type: ignore[arg-type]  # of either kind
        answer = await rejected(broker, host_of(case), lambda: issue(channel, profile="pair", csr_pem=csr))
    assert answer.reason is Reason.KEY_REUSED


async def test_row_12_key_of_another_host(broker: DeployedBroker) -> None:
    """A key belongs to the host that used it first, whatever it asks for."""
    key = new_key()
    async with host(broker, "row-12-owner") as owner, host(broker, "row-12-other") as other:
        issued = await issue(owner, profile="pair", csr_pem=pair_csr(key))
        assert issued.order.state == pb.Order.STATE_ISSUED
        answer = await rejected(
            broker, host_of("row-12-other"), lambda: issue(other, profile="pair", csr_pem=pair_csr(key))
        )
        same_again = await issue(owner, profile="pair", csr_pem=pair_csr(key))
    assert answer.reason is Reason.KEY_REUSED
    assert host_of("row-12-owner") not in answer.refusal.message
    assert same_again.certificate.certificate_id == issued.certificate.certificate_id


async def test_row_12_row_08_compromised_key(broker: DeployedBroker) -> None:
    """A key whose certificate was revoked as compromised stays out, for its own host too."""
    key, case = new_key(), "row-12-compromised"
    async with host(broker, case) as channel:
        issued = await issue(channel, profile="pair", csr_pem=pair_csr(key))
        await certificates(channel).RevokeCertificate(
            pb.RevokeCertificateRequest(
                certificate_id=issued.certificate.certificate_id, reason=pb.REVOCATION_REASON_KEY_COMPROMISE
            ),
            timeout=HANG,
        )
        assert await broker.deployment.pebble.is_revoked(int(issued.certificate.serial_number, 16))
        answer = await rejected(broker, host_of(case), lambda: issue(channel, profile="pair", csr_pem=pair_csr(key)))
    assert answer.reason is Reason.KEY_REUSED


# --- who asks ---------------------------------------------------------------------------------------------------------


async def foreign_identity(_: DeployedBroker) -> Credential:
    return FOREIGN.issue(host_of("row-39"), [host_of("row-39")])


async def x5c_identity(broker: DeployedBroker) -> Credential:
    return await broker.deployment.identity_ca.issue(host_of("row-39"), provisioner=X5C_PROVISIONER)


@pytest.mark.parametrize(
    "identity",
    [
        pytest.param(foreign_identity, id="row-39-another-trusted-ca"),
        pytest.param(x5c_identity, id="row-39-another-kind-of-provisioner"),
    ],
)
async def test_wrong_hand(broker: DeployedBroker, identity: Callable[[DeployedBroker], Awaitable[Credential]]) -> None:
    """A host's name that the broker's kind of provisioner didn't give is nobody's, though the CA is trusted."""
    credential = await identity(broker)
    async with broker.channel(credential) as channel:
        await broker.settle()
        before = broker.asked
        for call in (get_identity(channel), issue(channel, profile="pair", csr_pem=pair_csr())):
            assert (await refused(call)).reason is Reason.IDENTITY_UNKNOWN
    assert broker.asked == before
    events = await broker.events(identity=host_of("row-39"), event_type="rpc_denied")
    serial = format(credential.certificate.serial_number, "x")
    assert all(event["reason_code"] == "IDENTITY_UNKNOWN" for event in events)
    assert any(serial in event["reason"] for event in events) or len(events) == 1  # or counted with the other case


async def until_refused(channel: grpc.aio.Channel) -> Refused:
    """The refusal that follows soon on an open connection."""

    async def is_refused() -> bool:
        try:
            await get_identity(channel)
        except grpc.aio.AioRpcError:
            return True
        return False

    await until(is_refused, what="the refusal")
    return await refused(get_identity(channel))


async def test_row_40_denied_while_connected(broker: DeployedBroker) -> None:
    """An identity that an operator denies is out within a second or so, on the connection it has."""
    case = "row-40-denied"
    async with host(broker, case) as channel:
        await get_identity(channel)
        denied = await broker.deployment.run_broker("identity", "deny", "--name", host_of(case))
        assert denied.status == 0, denied.stderr
        assert (await until_refused(channel)).reason is Reason.IDENTITY_REVOKED
        await broker.settle()
        before = broker.asked
        answer = await refused(issue(channel, profile="pair", csr_pem=pair_csr()))
        assert answer.reason is Reason.IDENTITY_REVOKED
        assert broker.asked == before
        assert await broker.events(identity=host_of(case), event_type="rpc_denied", reason_code="IDENTITY_REVOKED")
        allowed = await broker.deployment.run_broker("identity", "allow", "--name", host_of(case))
        assert allowed.status == 0, allowed.stderr


async def test_row_40_renamed_while_connected(broker: DeployedBroker) -> None:
    """An identity whose name the policy gives up is unknown on the connection it has."""
    case = "row-40-renamed"
    changed = policy()
    changed["hosts"][case]["identity"] = "renamed.certplane.test"
    pid = broker.deployment.broker_process.pid
    async with host(broker, case) as channel:
        await get_identity(channel)
        try:
            broker.deployment.write_policy(changed)
            os.kill(pid, signal.SIGHUP)
            assert (await until_refused(channel)).reason is Reason.IDENTITY_UNKNOWN
        finally:
            broker.deployment.write_policy(policy())
            os.kill(pid, signal.SIGHUP)
        assert await broker.events(identity=host_of(case), event_type="rpc_denied", reason_code="IDENTITY_UNKNOWN")


async def test_row_41_what_belongs_to_another(broker: DeployedBroker) -> None:
    """Another's order and certificate don't exist for anybody else, in the very words of one that never was."""
    owner, mallory = "row-41-owner", "row-41-mallory"
    async with host(broker, owner) as theirs, host(broker, mallory) as channel:
        issued = await issue(theirs, profile="others", csr_pem=build_csr(new_key(), sans=["other.certplane.test"]))
        stub = certificates(channel)

        def calls(order_id: str, certificate_id: str) -> list[Callable[[], Awaitable[Any]]]:
            return [
                lambda: stub.GetOrder(pb.GetOrderRequest(order_id=order_id), timeout=HANG),
                lambda: stub.WatchOrder(pb.WatchOrderRequest(order_id=order_id), timeout=HANG).read(),
                lambda: stub.GetCertificate(pb.GetCertificateRequest(certificate_id=certificate_id), timeout=HANG),
                lambda: stub.RevokeCertificate(
                    pb.RevokeCertificateRequest(certificate_id=certificate_id), timeout=HANG
                ),
                lambda: issue(channel, profile="pair", csr_pem=pair_csr(), certificate_id=certificate_id),
            ]

        await broker.settle()
        before = broker.asked
        theirs_refused = [
            await refused(call()) for call in calls(issued.order.order_id, issued.certificate.certificate_id)
        ]
        unknown_refused = [await refused(call()) for call in calls("no-such-order", "no-such-certificate")]
        profile = await refused(
            issue(channel, profile="others", csr_pem=pair_csr(), certificate_id=issued.certificate.certificate_id)
        )
        assert broker.asked == before
        still = await certificates(theirs).GetCertificate(
            pb.GetCertificateRequest(certificate_id=issued.certificate.certificate_id), timeout=HANG
        )
    assert [answer.reason for answer in theirs_refused] == [Reason.ORDER_NOT_FOUND] * 2 + [
        Reason.CERTIFICATE_NOT_FOUND
    ] * 3
    assert [answer.refusal for answer in theirs_refused] == [answer.refusal for answer in unknown_refused]
    assert profile.reason is Reason.PROFILE_NOT_ALLOWED
    assert not still.certificate.HasField("revoke_time")
    reasons = {event["reason_code"] for event in await broker.events(identity=host_of(mallory))}
    assert reasons == {"ORDER_NOT_FOUND", "CERTIFICATE_NOT_FOUND", "PROFILE_NOT_ALLOWED"}


# --- the same again ---------------------------------------------------------------------------------------------------


async def test_row_42_many_at_once_are_one_order(broker: DeployedBroker) -> None:
    """Twenty calls for one CSR over several connections are one order at the CA, and get one certificate."""
    csr, before = pair_csr(), broker.asked
    async with host(broker, "row-42-many") as one, host(broker, "row-42-many") as two:
        responses = await asyncio.gather(
            *(issue(channel, profile="pair", csr_pem=csr) for channel in (one, two) for _ in range(10))
        )
    assert len({response.order.order_id for response in responses}) == 1
    assert len({response.certificate.serial_number for response in responses}) == 1
    assert broker.asked.orders == before.orders + 1
    assert broker.asked.finalizations == before.finalizations + 1


async def test_row_42_again_after_a_lost_connection_is_the_same_order(broker: DeployedBroker) -> None:
    """A caller that lost its connection while it waited joins its own order when it asks again."""
    csr, before = pair_csr(), broker.asked
    async with host(broker, "row-42-lost") as channel:
        lost = asyncio.ensure_future(issue(channel, profile="pair", csr_pem=csr))
        await until(lambda: broker.asked.orders > before.orders, what="the order", by=lost)
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await lost
    async with host(broker, "row-42-lost") as channel:
        response = await issue(channel, profile="pair", csr_pem=csr)
    assert response.order.state == pb.Order.STATE_ISSUED
    assert broker.asked.orders == before.orders + 1
    assert broker.asked.finalizations == before.finalizations + 1


async def test_repeated_rejections_are_counted_in_the_audit_log(broker: DeployedBroker) -> None:
    """The first of equal denials is one event, the others are a number: none is lost, also when the broker stops."""
    async with host(broker, "coalesced") as channel:
        for _ in range(5):
            await refused(issue(channel, profile="site", csr_pem=named("*")()))
    assert len(await broker.events(identity=host_of("coalesced"))) == 1
    await broker.deployment.start_broker()
    first, rest = await broker.events(identity=host_of("coalesced"))
    assert (first["event_type"], rest["event_type"]) == ("certificate_denied", "denials_coalesced")
    assert rest["count"] == 4
    assert rest["reason_code"] == first["reason_code"] == "NAMES_NOT_ALLOWED"


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_row_has_its_tests() -> None:
    """No row of the table is without a test that says its number."""
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    files = [path for folder in ("integration", "e2e") for path in sorted((tests / folder).glob("test_*.py"))]
    listed = subprocess.run(
        [*command, *(path for path in files if re.search(r"row[-_]\d\d[-_]", path.read_text(encoding="utf-8")))],
        capture_output=True,
        text=True,
        cwd=tests.parent,
        timeout=HANG,
        check=False,
    )
    assert listed.returncode == 0, listed.stdout + listed.stderr
    found = {int(number) for number in re.findall(r"[\[_]row[-_](\d\d)[-_]", listed.stdout)}
    assert set(ROWS) - found == set()
