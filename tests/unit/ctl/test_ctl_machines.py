"""`certplanectl token` and `host add | retire | replace` against a scripted broker: what they ask, show, and end with."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from certplane.ctl import cli
from certplane.ctl.commands.machines import POLICY_FIRST
from certplane.errors import ConfigurationError, OperationError, Reason, Refusal, RefusalError
from certplane.rpc.times import timestamp
from certplane.v1 import enrollment_pb2 as pb
from certplane.v1 import fleet_pb2, policy_pb2, renewal_pb2
from tests.support.operators_broker import OperatorsBroker
from tests.unit.ctl.conftest import Ctl
from tests.unit.ctl.test_ctl_view import a_host, serving

NOW = datetime.now(UTC)
WEB1 = "web1.example.net"
POLICY = """\
version: 1
hosts:
  web1: {identity: web1.example.net, profiles: [web, mail]}
  web2: {identity: web2.example.net, profiles: [web]}
services:
  builder: {identity: builder.example.net, profiles: [web]}
"""
TOKEN = pb.CreateBootstrapTokenResponse(
    token="aaa.bbb.ccc",
    expire_time=timestamp(NOW + timedelta(minutes=5)),
    ca_url="https://ca.example.net",
    ca_root_fingerprint="ab" * 32,
    provisioner="certplane-broker",
    identity=WEB1,
)
UNKNOWN = Refusal(Reason.HOST_NOT_FOUND, "there is no such host")
REASON = ("--reason", "a new machine")


def entry(*, name: str = "", serial: str = "", already: bool = False) -> pb.DeniedIdentity:
    return pb.DeniedIdentity(name=name, issuer="CN=CA" if serial else "", serial_number=serial, already_denied=already)


def a_denial(**fields: Any) -> pb.DenyIdentityResponse:
    return pb.DenyIdentityResponse(**fields)


@pytest.fixture(autouse=True)
def _answers(broker: OperatorsBroker) -> None:
    broker.answers["GetPolicy"] = [
        policy_pb2.GetPolicyResponse(
            policy=policy_pb2.LoadedPolicy(file="/etc/certplane/policy.yml", broker_name="broker1"), policy_text=POLICY
        )
    ]
    broker.answers["GetHost"] = UNKNOWN
    broker.answers["CreateBootstrapToken"] = token_of
    broker.answers["PlanPolicy"] = [policy_pb2.PlanPolicyResponse()]


def token_of(request: pb.CreateBootstrapTokenRequest) -> pb.CreateBootstrapTokenResponse:
    made = pb.CreateBootstrapTokenResponse()
    made.CopyFrom(TOKEN)
    if request.dry_run:
        made.token = ""
    return made


def once_of(text: str) -> str:
    """The one command for the machine, as it is shown."""
    (line,) = (each.strip() for each in text.splitlines() if "certplane-agent init" in each)
    return line


async def test_a_token(broker: OperatorsBroker, ctl: Ctl) -> None:
    """It stands alone on standard output, as text or for the next command; all else is said beside it."""
    ran = await ctl("token", "web1", "--lifetime", "2m")
    assert (ran.status, ran.out) == (0, "aaa.bbb.ccc\n")
    for words in (f"for {WEB1} alone, once, until", "certplane-broker of https://ca.example.net", "ab" * 32):
        assert words in ran.said
    (request,) = broker.requests("CreateBootstrapToken")
    assert (request.identity, request.lifetime.ToTimedelta()) == ("web1", timedelta(minutes=2))
    assert (await ctl("token", "web1", "-o", "name")).out == "aaa.bbb.ccc\n"
    members = json.loads((await ctl("token", "web1", "--json")).out)
    assert members["caRootFingerprint"] == "ab" * 32
    assert not broker.requests("CreateBootstrapToken")[-1].HasField("lifetime")


async def test_a_dry_run_of_a_token(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Nothing is made, and standard output is empty."""
    ran = await ctl("token", "web1", "--dry-run")
    assert (ran.status, ran.out) == (0, "")
    assert f"dry run: a token for {WEB1} would be made" in ran.said
    assert broker.requests("CreateBootstrapToken")[0].dry_run


async def test_no_token(broker: OperatorsBroker, ctl: Ctl) -> None:
    """The broker's refusal has its reason."""
    broker.answers["CreateBootstrapToken"] = Refusal(Reason.REQUEST_INVALID, "identity is denied")
    with pytest.raises(RefusalError, match="identity is denied"):
        await ctl("token", "web1")


async def test_add(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Who is in the policy gets a command that has all that the machine must be told, each word quoted, in one line."""
    ran = await ctl("host", "add", "web1", "--profile", "web", "--service", "nginx")
    assert ran.status == 0
    first, _, line = once_of(ran.out).partition(" | ")
    assert first == "echo aaa.bbb.ccc"
    assert shlex.split(line) == [
        "certplane-agent", "init", "--name", WEB1, "--ca-url", "https://ca.example.net", "--ca-fingerprint", "ab" * 32,
        "--broker", broker.url, "--profile", "web", "--service", "nginx", "--token", "-",
    ]  # fmt: skip
    assert "systemctl enable --now certplane-agent.service" in ran.out
    assert "once, until" in ran.out


async def test_add_for_programs(broker: OperatorsBroker, ctl: Ctl) -> None:
    """One object with the same facts, in the dialect of the broker's messages."""
    line = ("host", "add", WEB1, "--broker", "https://b1.example.net:8443", "--broker", "https://b2.example.net:8443")
    members = json.loads((await ctl(*line, "--json")).out)
    assert members["state"] == "READY"
    assert (members["host"], members["identity"], members["profiles"]) == ("web1", WEB1, ["web", "mail"])
    assert members["token"]["caUrl"] == "https://ca.example.net"
    words = shlex.split(members["command"])
    assert words[words.index("--broker") :] == [
        "--broker", "https://b1.example.net:8443", "--broker", "https://b2.example.net:8443", "--token", "-",
    ]  # fmt: skip
    assert yaml.safe_load((await ctl(*line, "-o", "yaml")).out)["state"] == "READY"


async def test_a_dry_run_of_add(broker: OperatorsBroker, ctl: Ctl) -> None:
    """The line is shown with a word in the token's place, and no token is made."""
    ran = await ctl("host", "add", "web1", "--dry-run")
    assert once_of(ran.out).startswith("echo TOKEN | certplane-agent init ")
    assert ran.lines[0] == "dry run: nothing is changed"
    assert [request.dry_run for request in broker.requests("CreateBootstrapToken")] == [True]


async def test_words_of_a_broker_are_quoted(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Nothing that a broker says runs in the shell of whoever types the line."""
    bad = pb.CreateBootstrapTokenResponse()
    bad.CopyFrom(TOKEN)
    bad.token, bad.ca_url = "a; reboot", "https://ca/$(reboot)\x1b[2J"
    broker.answers["CreateBootstrapToken"] = bad
    line = once_of((await ctl("host", "add", "web1")).out)
    assert line.startswith("echo 'a; reboot' | certplane-agent init ")
    assert "'https://ca/$(reboot) [2J'" in line


async def test_add_where_the_broker_makes_no_tokens(broker: OperatorsBroker, ctl: Ctl) -> None:
    """The command at the CA comes first; what the broker can't say is named, or given."""
    broker.answers["CreateBootstrapToken"] = Refusal(Reason.BOOTSTRAP_NOT_CONFIGURED, "no section")
    ran = await ctl("host", "add", "web1", "--profile", "web")
    assert ran.status == 0
    assert f"  step ca token {WEB1}\n" in ran.out
    assert "step certificate fingerprint" in ran.out
    assert "--ca-url CA-URL --ca-fingerprint FINGERPRINT" in ran.out
    known = ("--ca-url", "https://ca.example.net", "--ca-fingerprint", "cd" * 32)
    ran = await ctl("host", "add", "web1", *known)
    assert f"echo TOKEN | certplane-agent init --name {WEB1} --ca-url https://ca.example.net" in ran.out
    assert "step certificate fingerprint" not in ran.out
    members = json.loads((await ctl("host", "add", "web1", *known, "--json")).out)
    assert members["tokenCommand"] == f"step ca token {WEB1}"
    assert "token" not in members


@pytest.mark.parametrize("command", [("host", "add", "web1"), ("host", "replace", "web1", "--reason", "x", "--yes")])
async def test_a_fingerprint_that_is_none_is_told_before_anybody_is_asked(
    broker: OperatorsBroker, ctl: Ctl, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """The new machine would refuse the line, after the old one is shut out."""
    with pytest.raises(SystemExit) as ended:
        await ctl(*command, "--ca-fingerprint", "ab")
    assert ended.value.code == 2
    assert "argument --ca-fingerprint: must be a SHA-256 in hexadecimal" in capsys.readouterr().err
    assert broker.requests("DenyIdentity") == []


async def test_add_what_the_policy_lacks(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Its lines are shown as a diff, once the broker has said that they load; no token is made yet."""
    ran = await ctl("host", "add", "web3.example.net", "--profile", "web")
    assert ran.status == POLICY_FIRST == 3
    assert "+  web3: {identity: web3.example.net, profiles: [web]}" in ran.lines
    assert "--- /etc/certplane/policy.yml" in ran.lines
    assert ran.lines[-1] == (
        "`certplanectl policy reload` loads it; then `certplanectl host add web3.example.net --profile web` again"
    )
    assert broker.requests("CreateBootstrapToken") == []
    (messages,) = broker.requests("PlanPolicy")
    assert "web3.example.net" in "".join(message.policy_text for message in messages)
    members = json.loads((await ctl("host", "add", "web3.example.net", "--profile", "web", "--json")).out)
    assert members["state"] == "POLICY_FIRST"
    assert "+  web3: {identity: web3.example.net, profiles: [web]}\n" in members["policyDiff"]


@pytest.mark.parametrize(
    ("line", "added"),
    [
        ("edge --identity edge1.example.net --profile web", "edge: {identity: edge1.example.net, profiles: [web]}"),
        ("web2 --profile mail", "web2: {identity: web2.example.net, profiles: [web, mail]}"),
        ("web2 --profile web --profile mail", "web2: {identity: web2.example.net, profiles: [web, mail]}"),
    ],
)
async def test_add_under_a_label_and_a_profile_more(ctl: Ctl, line: str, added: str) -> None:
    """A label of its own, and what a host that is there lacks."""
    ran = await ctl("host", "add", *line.split())
    assert ran.status == POLICY_FIRST
    assert f"+  {added}" in ran.lines


async def test_add_what_the_policy_would_not_take(broker: OperatorsBroker, ctl: Ctl) -> None:
    """The broker's problems with the new text are told, and the status is that of a refusal."""
    broker.answers["PlanPolicy"] = [
        policy_pb2.PlanPolicyResponse(
            problems=[policy_pb2.PolicyProblem(line=5, key_path="hosts.web3.profiles", message="no profile shop")]
        )
    ]
    ran = await ctl("host", "add", "web3.example.net", "--profile", "shop")
    assert (ran.status, ran.out) == (1, "")
    assert "hosts.web3.profiles: no profile shop" in ran.said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("web9.example.net", "add --profile PROFILE"),
        ("web9 --profile web", "--identity web9.example.net"),
        ("web1 --identity other.example.net --profile web", "with the identity web1.example.net"),
        ("web1.example.org --profile web", "the label web1 is web1.example.net's"),
        ("spiffe://example.net/web9 --profile web", "give another one"),
    ],
)
async def test_add_what_cannot_be(broker: OperatorsBroker, ctl: Ctl, line: str, said: str) -> None:
    """An argument that is missing or contradicts the policy is told with its remedy, and nothing is asked for."""
    with pytest.raises(ConfigurationError, match=said):
        await ctl("host", "add", *line.split())
    assert broker.requests("CreateBootstrapToken") == broker.requests("PlanPolicy") == []


@pytest.mark.parametrize("command", ["add", "replace"])
async def test_a_service_is_no_host(broker: OperatorsBroker, ctl: Ctl, command: str) -> None:
    """It has no agent to set up: its token is all that there is to it."""
    reason = REASON if command == "replace" else ()
    with pytest.raises(OperationError, match=r"builder is a service.*`certplanectl token builder\.example\.net`"):
        await ctl("host", command, "builder", *reason)
    assert broker.requests("DenyIdentity") == broker.requests("CreateBootstrapToken") == []


async def test_a_name_as_people_write_it(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Capitals and a final dot name the same host."""
    ran = await ctl("host", "add", "Web1.Example.NET.")
    assert once_of(ran.out).startswith("echo aaa.bbb.ccc | certplane-agent init --name web1.example.net ")
    ran = await ctl("host", "add", "Web3.Example.NET.", "--profile", "web")
    assert "+  web3: {identity: web3.example.net, profiles: [web]}" in ran.lines


async def test_add_who_is_set_up(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Run again when the host is connected it makes no token, and says what is for a new machine."""
    broker.answers["GetHost"] = fleet_pb2.GetHostResponse(host=renewal_pb2.Host(name=WEB1, connected=True))
    ran = await ctl("host", "add", "web1")
    assert ran.status == 0
    assert "is set up and connected" in ran.out
    assert f"certplanectl host replace {WEB1} --reason TEXT" in ran.out
    assert broker.requests("CreateBootstrapToken") == []


async def test_add_who_was_there_before(broker: OperatorsBroker, ctl: Ctl) -> None:
    """A host that has been heard of gets its token, and a warning of the contest that an old machine makes."""
    seen = renewal_pb2.Host(name=WEB1, last_seen_time=timestamp(NOW))
    broker.answers["GetHost"] = fleet_pb2.GetHostResponse(host=seen)
    ran = await ctl("host", "add", "web1")
    assert "had a machine before" in ran.out
    assert once_of(ran.out).startswith("echo aaa.bbb.ccc | ")


@pytest.mark.parametrize("line", ["--service nginx", "--profile web --service nginx --service haproxy", "--service x"])
def test_a_service_stands_after_its_profile(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Once, and one that the agent knows."""
    with pytest.raises(SystemExit):
        cli._parser().parse_args(["host", "add", "web1", *line.split()])
    assert "argument --service: " in capsys.readouterr().err


async def test_replace(broker: OperatorsBroker, ctl: Ctl) -> None:
    """The old machine's certificate is denied by the serial number that was seen, then a token is made."""
    broker.answers["DenyIdentity"] = a_denial(denied=[entry(serial="1f")], active_serial_number="1f")
    ran = await ctl("host", "replace", "web1", *REASON, "--yes")
    assert ran.status == 0
    planned, done = broker.requests("DenyIdentity")
    assert (planned.dry_run, planned.active_serial_number) == (True, "")
    assert (done.dry_run, done.active_serial_number, done.identity, done.reason) == (False, "1f", WEB1, "a new machine")
    assert done.scope == pb.DenyIdentityRequest.SCOPE_CERTIFICATES
    assert "identity certificate 1f of CN=CA is denied" in ran.lines
    assert "  step ca revoke 31" in ran.lines
    assert "  systemctl disable --now certplane-agent.service" in ran.lines
    assert once_of(ran.out).startswith("echo aaa.bbb.ccc | certplane-agent init ")
    names = [name for name, _ in broker.calls]
    assert names.index("CreateBootstrapToken") > max(i for i, name in enumerate(names) if name == "DenyIdentity")


async def test_replace_again(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Before the new machine has come there is another token; nothing is denied twice, and nobody is asked."""
    broker.answers["DenyIdentity"] = a_denial(denied=[entry(serial="1f", already=True)], active_serial_number="1f")
    ran = await ctl("host", "replace", "web1", *REASON)
    assert ran.status == 0
    assert "identity certificate 1f of CN=CA was denied before" in ran.lines
    assert [request.dry_run for request in broker.requests("DenyIdentity")] == [True]
    assert once_of(ran.out).startswith("echo aaa.bbb.ccc | ")


async def test_replace_after_the_new_machine_has_come(broker: OperatorsBroker, ctl: Ctl) -> None:
    """It isn't shut out, and gets no second token; its serial number would shut it out."""
    broker.answers["DenyIdentity"] = a_denial(
        denied=[entry(serial="1f", already=True)], active_serial_number="2e", active_replaces_denied=True
    )
    ran = await ctl("host", "replace", "web1", *REASON, "--yes", width=None)
    assert ran.status == 0
    assert "was replaced before" in ran.out
    assert ran.out.endswith("add --serial 2e\n")
    assert [request.dry_run for request in broker.requests("DenyIdentity")] == [True]
    assert broker.requests("CreateBootstrapToken") == []
    assert json.loads((await ctl("host", "replace", "web1", *REASON, "--json")).out)["state"] == "REPLACED"
    await ctl("host", "replace", "web1", *REASON, "--serial", "00:2E")
    assert broker.requests("DenyIdentity")[-1].active_serial_number == "2e"


async def test_replace_who_never_came(broker: OperatorsBroker, ctl: Ctl) -> None:
    """There is nothing to shut out, and a token."""
    broker.answers["DenyIdentity"] = a_denial()
    ran = await ctl("host", "replace", "web1", *REASON)
    assert "there is nothing to shut out" in ran.out
    assert once_of(ran.out).startswith("echo aaa.bbb.ccc | ")


async def test_replace_who_is_in_no_policy(broker: OperatorsBroker, ctl: Ctl) -> None:
    """It says how a host is added, and nobody is shut out."""
    with pytest.raises(OperationError, match=r"host add web9 --profile PROFILE"):
        await ctl("host", "replace", "web9", *REASON, "--yes")
    assert broker.requests("DenyIdentity") == []


async def test_a_dry_run_of_replace(broker: OperatorsBroker, ctl: Ctl) -> None:
    """What would be denied, and the line with a word for the token; neither is done."""
    broker.answers["DenyIdentity"] = a_denial(denied=[entry(serial="1f")], active_serial_number="1f")
    ran = await ctl("host", "replace", "web1", *REASON, "--dry-run")
    assert ran.status == 0
    assert "identity certificate 1f of CN=CA would be denied" in ran.lines
    assert all(request.dry_run for request in broker.requests("DenyIdentity"))
    assert all(request.dry_run for request in broker.requests("CreateBootstrapToken"))


def gone(broker: OperatorsBroker) -> None:
    """The policy has lost web1."""
    broker.answers["GetPolicy"] = [policy_pb2.GetPolicyResponse(policy_text=POLICY.replace("web1", "web7"))]


async def test_retire_who_is_in_the_policy(broker: OperatorsBroker, ctl: Ctl) -> None:
    """It is shut out at once; what is to be removed is shown, and nothing is forgotten yet."""
    host = a_host(WEB1, serving("web"))
    host.certificates[0].installed.certificate_id = "c-1"
    broker.answers["GetHost"] = fleet_pb2.GetHostResponse(host=host)
    broker.answers["DenyIdentity"] = a_denial(
        denied=[entry(name=WEB1)], active_serial_number="1f", valid_certificate_count=1
    )
    ran = await ctl("host", "retire", "web1", "--reason", "it was sold", "--yes")
    assert ran.status == POLICY_FIRST
    assert f"{WEB1} is denied" in ran.lines
    assert "-  web1: {identity: web1.example.net, profiles: [web, mail]}" in ran.lines
    assert "  step ca revoke 31" in ran.lines
    assert "  certplanectl revoke c-1 --as cessationOfOperation --reason 'it was sold'" in ran.lines
    assert ran.lines[-1].endswith(f"then `certplanectl host retire {WEB1} --reason 'it was sold'` again")
    assert [request.dry_run for request in broker.requests("DenyIdentity")] == [True, False]
    assert broker.requests("DenyIdentity")[-1].scope == pb.DenyIdentityRequest.SCOPE_NAME
    assert broker.requests("ForgetHost") == []


async def test_retire_who_is_in_the_policy_no_more(broker: OperatorsBroker, ctl: Ctl) -> None:
    """The second run forgets it, once its stream has ended."""
    gone(broker)
    broker.answers["GetHost"] = fleet_pb2.GetHostResponse(host=renewal_pb2.Host(name=WEB1, connected=True))
    broker.answers["DenyIdentity"] = a_denial(denied=[entry(name=WEB1, already=True)])
    answers = [Refusal(Reason.REQUEST_INVALID, "host can't be forgotten: it is connected")]
    broker.answers["ForgetHost"] = lambda _: answers.pop() if answers else fleet_pb2.ForgetHostResponse()
    ran = await ctl("host", "retire", WEB1, *REASON, "--yes")
    assert ran.status == 0
    assert f"{WEB1} was denied before" in ran.lines
    assert ran.lines[-1] == f"{WEB1} is forgotten"
    assert len(broker.requests("ForgetHost")) == 2


async def test_retire_what_the_broker_will_not_forget(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Its refusal of a host that isn't connected is told at once."""
    gone(broker)
    broker.answers["GetHost"] = fleet_pb2.GetHostResponse(host=renewal_pb2.Host(name=WEB1))
    broker.answers["DenyIdentity"] = a_denial(denied=[entry(name=WEB1)])
    broker.answers["ForgetHost"] = Refusal(Reason.REQUEST_INVALID, "the policy still has it")
    with pytest.raises(RefusalError, match="the policy still has it"):
        await ctl("host", "retire", WEB1, *REASON, "--yes")


async def test_retire_again(broker: OperatorsBroker, ctl: Ctl) -> None:
    """What is denied and forgotten stays so, and the command says that it is."""
    gone(broker)
    broker.answers["DenyIdentity"] = a_denial(denied=[entry(name=WEB1, already=True)])
    ran = await ctl("host", "retire", WEB1, *REASON)
    assert (ran.status, ran.out) == (0, f"{WEB1} was retired before; nothing is left to do\n")
    assert [request.dry_run for request in broker.requests("DenyIdentity")] == [True]
    assert json.loads((await ctl("host", "retire", WEB1, *REASON, "--json")).out)["state"] == "RETIRED"


async def test_retire_a_name_that_nobody_knows(broker: OperatorsBroker, ctl: Ctl) -> None:
    """A slip of the finger denies nobody."""
    broker.answers["DenyIdentity"] = a_denial(denied=[entry(name="wbe1.example.net")])
    with pytest.raises(OperationError, match=r"nobody knows wbe1\.example\.net"):
        await ctl("host", "retire", "wbe1.example.net", *REASON, "--yes")
    assert [request.dry_run for request in broker.requests("DenyIdentity")] == [True]


async def test_a_dry_run_of_retire(broker: OperatorsBroker, ctl: Ctl) -> None:
    """What would be denied and forgotten; neither is done."""
    gone(broker)
    broker.answers["GetHost"] = fleet_pb2.GetHostResponse(host=renewal_pb2.Host(name=WEB1))
    broker.answers["DenyIdentity"] = a_denial(denied=[entry(name=WEB1)])
    ran = await ctl("host", "retire", WEB1, *REASON, "--dry-run")
    assert ran.status == 0
    assert f"{WEB1} would be denied" in ran.lines
    assert ran.lines[-1] == f"{WEB1} would be forgotten"
    assert broker.requests("ForgetHost") == []
    assert [request.dry_run for request in broker.requests("DenyIdentity")] == [True]


def asks(broker: OperatorsBroker, line: str) -> list[str]:
    broker.answers["DenyIdentity"] = a_denial(denied=[entry(name=WEB1, serial="")], active_serial_number="1f")
    if line == "replace":
        broker.answers["DenyIdentity"] = a_denial(denied=[entry(serial="1f")], active_serial_number="1f")
    return ["host", line, "web1", *REASON]


@pytest.mark.parametrize("line", ["retire", "replace"])
async def test_nobody_is_shut_out_without_a_yes(
    broker: OperatorsBroker, ctl: Ctl, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """Without a terminal --yes is wanted; a no changes nothing, and ends with 1."""
    arguments = asks(broker, line)
    with pytest.raises(ConfigurationError, match="add --yes"):
        await ctl(*arguments)

    async def no(*_: object) -> bool:
        return False

    monkeypatch.setattr("certplane.ctl.session.agreed", no)
    ran = await ctl(*arguments)
    assert (ran.status, ran.out) == (1, "")
    assert "nothing was changed" in ran.said
    assert all(request.dry_run for request in broker.requests("DenyIdentity"))


@pytest.mark.parametrize(
    ("line", "name", "command"),
    [
        ("host web1", "web1", "host show"),
        ("host --json web1", "web1", "host show"),
        ("host web1 --json", "web1", "host show"),
        ("host show web1", "web1", "host show"),
        ("host show add", "add", "host show"),
        ("host -o yaml show retire", "retire", "host show"),
        ("host add web1", "web1", "host add"),
        ("host retire web1 --reason x", "web1", "host retire"),
        ("host replace web1 --reason x", "web1", "host replace"),
    ],
)
def test_a_name_or_a_command(line: str, name: str, command: str) -> None:
    """`host NAME` goes on working; a host that is called like a command is shown by `host show`."""
    options = cli._parser().parse_args(line.split())
    assert (options.name, options.run.name) == (name, command)


@pytest.mark.parametrize("line", ["host", "host add", "host retire web1", "host replace web1"])
def test_words_that_are_missing(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A name is needed, and a reason where somebody is shut out."""
    with pytest.raises(SystemExit) as caught:
        cli._parser().parse_args(line.split())
    assert caught.value.code == 2
    assert "certplanectl host" in capsys.readouterr().err
