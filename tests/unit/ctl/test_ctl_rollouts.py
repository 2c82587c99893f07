"""`rollout` and `incident` against a scripted broker: what they ask, what they show, how they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from certplane.ctl.session import Session
from certplane.ctl.show.rollout_words import ITEM_STATES, bar, halt_text
from certplane.ctl.show.rollouts import change_lines
from certplane.ctl.show.selections import selection_text
from certplane.errors import ConfigurationError, OperationError, Reason, Refusal, RefusalError
from certplane.runtime.terminal import Style
from certplane.v1 import fleet_pb2, incident_pb2, rollout_pb2
from tests.support.operators_broker import OperatorsBroker
from tests.support.watched_rollouts import Item, Ring, Rollout, a_failure, a_rollout, counts, halted
from tests.unit.ctl.conftest import Ctl
from tests.unit.ctl.test_ctl_commands import NoWait

NOW = datetime.now(UTC)
_START = ("rollout", "start", "--issuer", "letsencrypt", "--rekey", "--rings", "canary,10%,rest", "--reason", "drill")
_WIDTHS = [pytest.param(width, id=f"{width}-columns") for width in (80, 20)]


def a_plan(**fields: Any) -> rollout_pb2.PlanRolloutResponse:
    plan = rollout_pb2.PlanRolloutResponse(certificate_count=20, host_count=20, **fields)
    plan.rings.add(name="canary", host_count=2, certificate_count=2, hosts=["web1", "web2"])
    plan.rings[0].bake_duration.FromTimedelta(timedelta(hours=1))
    plan.rings.add(name="rest", host_count=18, certificate_count=18)
    plan.forecast.order_count = 20
    plan.forecast.bound_by = "new_orders_per_account of letsencrypt: 300 per 3h"
    plan.forecast.last_order_time.FromDatetime(NOW + timedelta(hours=2))
    return plan


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that a person was asked, who says no to all."""
    questions: list[str] = []

    async def no(_: Session, question: str, otherwise: str = "") -> bool:
        questions.append(question)
        return False

    monkeypatch.setattr(Session, "agreed", no)
    return questions


@pytest.mark.parametrize("width", _WIDTHS)
async def test_a_plan(broker: OperatorsBroker, ctl: Ctl, width: int) -> None:
    """Rings with their hosts, the forecast and what decides it, what is in the way; in any width."""
    warning = "web9 is in rollout r-1, which this one takes it from"
    broker.answers["PlanRollout"] = a_plan(
        warnings=[warning], approval="it revokes", disconnected_host_count=1, unable_to_hold_count=3
    )
    ran = await ctl("rollout", "plan", "--all", "--rekey", "--rings", "canary:1h,rest", width=width)
    assert ran.status == 0
    assert max(map(len, ran.lines)) <= max(width, len("  new_orders_per_account"))
    text = " ".join(ran.out.split())
    assert text.startswith("20 certificates of 20 hosts, in 2 rings: a new key and certificate")
    for said in (
        "forecast: the last certificate ordered by", "bound by new_orders_per_account of letsencrypt: 300 per 3h",
        "1 host not connected", "3 hosts with an agent that can't hold", warning, "it would wait: it revokes",
    ):  # fmt: skip
        assert said in text
    (request,) = broker.requests("PlanRollout")
    assert [ring.name for ring in request.spec.rings] == ["canary", "rest"]
    assert json.loads((await ctl("rollout", "plan", "--all", "--json")).out)["hostCount"] == 20


async def test_what_would_be_refused(broker: OperatorsBroker, ctl: Ctl, asked: list[str]) -> None:
    """Status 1 with cause and remedy; nobody is asked, and nothing is begun."""
    broker.answers["PlanRollout"] = a_plan(
        refusal="ring canary picks no host", remedy="give hosts the label ring=canary"
    )
    for line in (("rollout", "plan", "--all"), _START, (*_START, "--yes")):
        ran = await ctl(*line)
        assert ran.status == 1
        said = "certplanectl: it would be refused: ring canary picks no host; give hosts the label ring=canary\n"
        assert ran.said == said
    assert asked == []
    assert not broker.requests("CreateRollout")
    broker.answers["PlanRollout"] = rollout_pb2.PlanRolloutResponse(refusal="REQUEST_INVALID: nothing is picked")
    assert (await ctl("rollout", "plan", "--all"))[:2] == (1, "")


async def test_a_start_is_asked_for(broker: OperatorsBroker, ctl: Ctl, asked: list[str]) -> None:
    """The plan is on the screen before the question; a no begins nothing."""
    broker.answers["PlanRollout"] = a_plan()
    ran = await ctl(*_START)
    assert (ran.status, ran.said) == (1, "certplanectl: nothing was begun\n")
    assert asked == ["20 certificates of 20 hosts, in 2 rings: a new key and certificate"]
    assert ran.lines[1].split() == ["RING", "HOSTS", "CERTIFICATES", "BAKES", "SOME", "OF", "THEM"]
    assert not broker.requests("CreateRollout")
    programs = await ctl(*_START, "--json")
    assert programs.out == ""
    assert "RING" in programs.said  # the person at the terminal reads standard error


async def test_a_start_without_a_question(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Warnings are said all the same; the answer is the rollout, and how to go on."""
    broker.answers["PlanRollout"] = a_plan(warnings=["3 hosts are in no ring"])
    broker.answers["CreateRollout"] = rollout_pb2.CreateRolloutResponse(
        rollout=a_rollout(Rollout.STATE_AWAITING_APPROVAL, "it revokes")
    )
    ran = await ctl(*_START, "--yes", width=None)
    assert (ran.status, ran.said) == (0, "certplanectl: warning: 3 hosts are in no ring\n")
    assert ran.lines == [
        "rollout r-7f3a of 20 hosts: awaiting approval: it revokes",
        "another operator lets it begin: certplanectl rollout approve r-7f3a --reason TEXT",
        "how far it is: certplanectl rollout watch r-7f3a",
    ]
    (request,) = broker.requests("CreateRollout")
    assert len(request.request_id) == 32
    assert request.spec.action == rollout_pb2.RolloutSpec.ACTION_REKEY
    assert (await ctl(*_START, "--yes", "-o", "name")).out == "r-7f3a\n"


async def test_an_answer_that_is_lost(broker: OperatorsBroker, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody starts it twice without having looked; a refusal is a word, and needs no look."""
    broker.answers["PlanRollout"] = a_plan()
    broker.answers["CreateRollout"] = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(OperationError):
        await ctl(*_START, "--yes")
    assert "it may have begun: look at `certplanectl rollout list`" in capsys.readouterr().err
    broker.answers["CreateRollout"] = Refusal(Reason.ROLE_REQUIRED, "the role admin is needed")
    with pytest.raises(RefusalError):
        await ctl(*_START, "--yes")
    assert capsys.readouterr().err == ""


def watched(*rollouts: Rollout) -> list[rollout_pb2.WatchRolloutResponse]:
    return [rollout_pb2.WatchRolloutResponse(rollout=each) for each in rollouts]


@pytest.mark.parametrize(
    ("last", "status"),
    [
        pytest.param(a_rollout(Rollout.STATE_COMPLETED, done=20), 0, id="completed"),
        pytest.param(a_rollout(Rollout.STATE_COMPLETED, done=19, failed=1), 1, id="without-one"),
        pytest.param(a_rollout(Rollout.STATE_COMPLETED, done=19, silent=1), 1, id="one-went-silent"),
        pytest.param(a_rollout(Rollout.STATE_COMPLETED, done=19, skipped=1), 0, id="one-was-gone"),
        pytest.param(a_rollout(Rollout.STATE_ABORTED, done=19, held=1), 1, id="aborted"),
        pytest.param(halted(), 1, id="halted"),
        pytest.param(a_rollout(Rollout.STATE_FINISHING, done=19, failed=1), 1, id="all-but-one-that-failed"),
        pytest.param(a_rollout(Rollout.STATE_PAUSED, "alice paused it"), 1, id="paused"),
    ],
)
async def test_waiting_for_the_end(broker: OperatorsBroker, ctl: Ctl, last: Rollout, status: int) -> None:
    """Each change is a line; it ends with the rollout, or where an operator is needed, and its status says how."""
    broker.answers["PlanRollout"] = a_plan()
    broker.answers["CreateRollout"] = rollout_pb2.CreateRolloutResponse(rollout=a_rollout())
    broker.answers["WatchRollout"] = watched(a_rollout(), last)
    ran = await ctl(*_START, "--yes", "--wait", width=None)
    assert ran.status == status
    assert ran.lines[1].endswith("Z r-7f3a running")
    assert "ring canary: baking" in ran.out
    programs = await ctl(*_START, "--yes", "--wait", "--json")
    assert [json.loads(line)["state"] for line in programs.lines] == [Rollout.State.Name(last.state)]


async def test_hosts_that_are_away_are_waited_for(broker: OperatorsBroker, ctl: Ctl) -> None:
    """A rollout that waits for them isn't over."""
    away = a_rollout(Rollout.STATE_FINISHING, done=19, waiting=1)
    broker.answers["ResumeRollout"] = rollout_pb2.ResumeRolloutResponse(rollout=away)
    broker.answers["WatchRollout"] = watched(away, a_rollout(Rollout.STATE_COMPLETED, done=20))
    ran = await ctl("rollout", "resume", "r-7f3a", "--reason", "mended", "--wait", width=None)
    assert ran.status == 0
    assert "r-7f3a completed" in ran.out
    ran = await ctl("rollout", "resume", "r-7f3a", "--reason", "mended", width=None)
    assert (
        ran.lines[1] == "it waits for what is away; to end it without: certplanectl rollout finish r-7f3a --reason TEXT"
    )
    away.unrevoked_count = 1
    broker.answers["ResumeRollout"] = rollout_pb2.ResumeRolloutResponse(rollout=away)
    ran = await ctl("rollout", "resume", "r-7f3a", "--reason", "mended", width=None)
    finish = "certplanectl rollout finish r-7f3a --revoke-remaining --reason TEXT"
    assert ran.lines[2] == f"or end it and revoke 1 certificate that may still be served: {finish}"


async def test_what_an_operator_can_do_when_it_halts(broker: OperatorsBroker, ctl: Ctl) -> None:
    """The host's own words, and the commands to go on or to leave it."""
    broker.answers["GetRollout"] = rollout_pb2.GetRolloutResponse(rollout=a_rollout())
    broker.answers["WatchRollout"] = watched(a_rollout(), halted())
    ran = await ctl("rollout", "watch", "r-7f3a", "--plain")
    assert ran.status == 1
    assert [json.loads(line)["state"] for line in ran.lines] == ["STATE_RUNNING", "STATE_HALTED"]  # no terminal reads
    assert "certplanectl rollout resume r-7f3a --reason TEXT" in ran.said
    assert "certplanectl rollout abort r-7f3a --reason TEXT" in ran.said


async def test_a_broker_that_goes_away(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Another watch goes on with it; nothing that was told is told again."""
    answers = iter(
        [
            watched(a_rollout()),
            [*watched(a_rollout()), Refusal(Reason.DRAINING, "it goes")],
            [grpc.StatusCode.UNAVAILABLE],
            watched(a_rollout(Rollout.STATE_COMPLETED, done=20)),
        ]
    )
    broker.answers["ResumeRollout"] = rollout_pb2.ResumeRolloutResponse(rollout=a_rollout())
    broker.answers["WatchRollout"] = lambda _: next(answers)
    line = ("rollout", "resume", "r-7f3a", "--reason", "mended", "--wait")
    ran = await ctl(*line, width=None, clock=NoWait())
    assert ran.status == 0
    assert [line.partition(" ")[2] for line in ran.lines].count("r-7f3a running") == 1
    assert ran.said.count("and the rollout goes on") == 3
    assert "the broker has ended the watch; asking again" in ran.said


async def test_a_wait_that_is_given_up(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Status 1, and the rollout goes on."""
    broker.answers["ResumeRollout"] = rollout_pb2.ResumeRolloutResponse(rollout=a_rollout())
    broker.answers["WatchRollout"] = watched(a_rollout())
    line = ("rollout", "resume", "r-7f3a", "--reason", "mended", "--wait", "--timeout", "0s")
    ran = await ctl(*line)
    assert ran.status == 1
    assert "the time is up, and the rollout goes on; see `certplanectl rollout show r-7f3a`" in ran.said


async def test_one_that_isnt_there(broker: OperatorsBroker, ctl: Ctl) -> None:
    """The broker's word, and no empty screen."""
    broker.answers["GetRollout"] = Refusal(Reason.REQUEST_INVALID, "there is no rollout r-1")
    broker.answers["WatchRollout"] = Refusal(Reason.REQUEST_INVALID, "there is no rollout r-1")
    for line in ("rollout show r-1", "rollout watch r-1", "rollout abort r-1 --reason x"):
        with pytest.raises(RefusalError, match="there is no rollout r-1"):
            await ctl(*line.split())


async def test_a_broker_that_knows_no_rollouts(ctl: Ctl) -> None:
    """An older one: said so."""
    for line in ("rollout list", "incident list"):
        with pytest.raises(OperationError, match=r"older|UNIMPLEMENTED|doesn't know"):
            await ctl(*line.split())


@pytest.mark.parametrize("width", _WIDTHS)
async def test_a_rollout_in_full(broker: OperatorsBroker, ctl: Ctl, width: int) -> None:
    """What it does, how far it is, failed hosts with their own words, rings as bars, what to do."""
    broker.answers["GetRollout"] = rollout_pb2.GetRolloutResponse(rollout=halted(NOW))
    ran = await ctl("rollout", "show", "r-7f3a", width=width)
    assert ran.status == 1
    assert max(len(line) for line in ran.lines if "certplanectl" not in line) <= max(width, 33)
    text = " ".join(ran.out.split())
    assert "halted: 1 host of ring canary failed" in text
    assert "rollout resume r-7f3a" in text
    assert "web7" in text
    assert "canary" in text
    if width == 80:
        assert "20 certificates of 20 hosts: issuer letsencrypt" in text
        assert "a new key and certificate; the old one revoked once it isn't in use any more" in text
        assert "############!!!!!!!!!!!!" in text
        assert "1 done, 1 failed, 12 held, 6 requested" in text
    wide = await ctl("rollout", "show", "r-7f3a", "-o", "wide")
    assert "reload: nginx: configuration test failed" in wide.out
    assert yaml.safe_load((await ctl("rollout", "show", "r-7f3a", "-o", "yaml")).out)["state"] == "STATE_HALTED"


async def test_words_of_others(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Whatever a host, a CA or another operator said, nothing of it reaches the terminal but its letters."""
    evil = "\x1b]0;title\x07\u202e\n"
    rollout = halted(NOW)
    rollout.state_reason = rollout.spec.reason = rollout.created_by = rollout.rings[0].name = evil
    rollout.failed[0].reason = rollout.failed[0].host = rollout.forecast.bound_by = evil
    rollout.spec.selection.hosts.append(evil)
    broker.answers["GetRollout"] = rollout_pb2.GetRolloutResponse(rollout=rollout)
    broker.answers["ListRollouts"] = rollout_pb2.ListRolloutsResponse(rollouts=[rollout])
    broker.answers["PlanRollout"] = a_plan(warnings=[evil], refusal=evil, remedy=evil)
    broker.answers["WatchRollout"] = watched(rollout)
    broker.answers["ResumeRollout"] = rollout_pb2.ResumeRolloutResponse(rollout=rollout)
    for line in ("show r-1", "list", "plan --all", "resume r-1 --reason x --wait", "show r-1 -o json", "list -o wide"):
        ran = await ctl("rollout", *line.split())
        assert not set("\x1b\x07\u202e") & set(ran.out + ran.said), line


async def test_a_deadline_that_cant_be_kept(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Late by how much, and what it cost: bake times that were cut."""
    rollout = a_rollout(now=NOW)
    rollout.spec.deadline.FromDatetime(NOW + timedelta(hours=3))
    broker.answers["GetRollout"] = rollout_pb2.GetRolloutResponse(rollout=rollout)
    ran = await ctl("rollout", "show", "r-7f3a", width=None)
    assert ran.status == 0
    assert "LATE by 2h 0m" in ran.out
    assert "cut by 15m" in ran.out


async def test_an_end_that_has_passed_is_none(broker: OperatorsBroker, ctl: Ctl) -> None:
    """A rollout that waits for hosts that are away isn't said to have ended a while ago."""
    rollout = a_rollout(Rollout.STATE_FINISHING, now=NOW - timedelta(days=1), done=19, waiting=1)
    broker.answers["GetRollout"] = rollout_pb2.GetRolloutResponse(rollout=rollout)
    broker.answers["ListRollouts"] = rollout_pb2.ListRolloutsResponse(rollouts=[rollout])
    for line in ("show r-7f3a", "list"):
        out = (await ctl("rollout", *line.split(), width=None)).out
        assert "if all goes well" not in out
        assert "ENDS" not in out


async def test_certificates_of_a_rollout(broker: OperatorsBroker, ctl: Ctl) -> None:
    """Page by page; filters are the broker's."""
    done = Item(host="web1", certificate_id="c-1", ring="canary", state=Item.STATE_DONE)
    pages = {
        "": rollout_pb2.ListRolloutItemsResponse(items=[a_failure()], next_page_token="2"),
        "2": rollout_pb2.ListRolloutItemsResponse(items=[done]),
    }
    broker.answers["ListRolloutItems"] = lambda request: pages[request.page_token]
    ran = await ctl("rollout", "show", "r-7f3a", "--state", "failed", "--state", "done", "--ring", "canary")
    assert ran.status == 1
    assert [line.split()[0] for line in ran.lines] == ["HOST", "web7.example.test", "web1", "2"]
    request = broker.requests("ListRolloutItems")[0]
    assert (list(request.states), request.ring) == ([Item.STATE_FAILED, Item.STATE_DONE], "canary")
    assert (await ctl("rollout", "show", "r-7f3a", "--certificates", "-o", "name")).lines[1] == "c-1"
    with pytest.raises(ConfigurationError, match="there is no such state; use one of: waiting, requested"):
        await ctl("rollout", "show", "r-7f3a", "--state", "lost")


async def test_a_list(broker: OperatorsBroker, ctl: Ctl) -> None:
    """A row each; what was cut is said."""
    broker.answers["ListRollouts"] = rollout_pb2.ListRolloutsResponse(rollouts=[halted(NOW), a_rollout(now=NOW)])
    ran = await ctl("rollout", "list", "--state", "awaiting-approval", "--limit", "1")
    assert ran.lines[0].split()[:2] == ["ROLLOUT", "STATE"]
    assert ran.lines[1].split()[:2] == ["r-7f3a", "halted"]
    assert ran.said == "certplanectl: there are more rollouts, shown with a larger --limit\n"
    (request,) = broker.requests("ListRollouts")
    assert (list(request.states), request.page_size) == ([Rollout.STATE_AWAITING_APPROVAL], 1)
    assert (await ctl("rollout", "list", "-o", "name")).lines == ["r-7f3a", "r-7f3a"]
    broker.answers["ListRollouts"] = rollout_pb2.ListRolloutsResponse()
    assert (await ctl("rollout", "list")).out == "there is no rollout\n"


@pytest.mark.parametrize(
    ("words", "question"),
    [
        pytest.param(
            "abort", "each host stays with what works there, and nothing is revoked any more", id="abort"
        ),
        pytest.param(
            "approve",
            "by alice.example, canary (ring=canary, bakes 1h 0m), 10-percent (10 %), rest: a new key and certificate; "
            "the old one revoked once it isn't in use any more (ticket 4711)",
            id="approve",
        ),
        pytest.param("finish", "ended, 20 certificates left unrevoked", id="finish"),
        pytest.param(
            "finish --revoke-remaining", "ended, 20 certificates revoked though hosts may serve them", id="finish-revoking"
        ),
    ],
)  # fmt: skip
async def test_what_a_person_is_asked(
    broker: OperatorsBroker, ctl: Ctl, asked: list[str], words: str, question: str
) -> None:
    """What can't be undone says what it does; a no changes nothing, and --yes asks nobody."""
    command, *more = words.split()
    method = f"{command.title()}Rollout"
    broker.answers["GetRollout"] = rollout_pb2.GetRolloutResponse(rollout=a_rollout())
    response: Callable[..., Any] = getattr(rollout_pb2, f"{method}Response")
    broker.answers[method] = response(rollout=a_rollout(Rollout.STATE_ABORTED, "alice ended it"))
    line = ("rollout", command, "r-7f3a", "--reason", "enough", *more)
    ran = await ctl(*line)
    assert (ran.status, ran.said) == (1, "certplanectl: nothing was changed\n")
    assert len(asked) == 1
    assert asked[0].startswith("rollout r-7f3a of 20 hosts")
    assert asked[0].endswith(question)
    assert not broker.requests(method)
    ran = await ctl(*line, "--yes", width=None)
    assert ran.out == "rollout r-7f3a of 20 hosts: aborted: alice ended it\n"
    (request,) = broker.requests(method)
    assert (request.rollout_id, request.reason) == ("r-7f3a", "enough")
    assert getattr(request, "revoke_remaining", False) is bool(more)


async def test_a_pause_asks_nobody(broker: OperatorsBroker, ctl: Ctl, asked: list[str]) -> None:
    """It is for the moment when something goes wrong."""
    broker.answers["PauseRollout"] = rollout_pb2.PauseRolloutResponse(rollout=a_rollout(Rollout.STATE_PAUSED))
    ran = await ctl("rollout", "pause", "r-7f3a", "--reason", "look first")
    assert (ran.status, asked) == (0, [])
    assert ran.lines[0] == "rollout r-7f3a of 20 hosts: paused"
    assert json.loads((await ctl("rollout", "pause", "r-7f3a", "--reason", "x", "--json")).out)["rolloutId"] == "r-7f3a"


def an_incident() -> incident_pb2.Incident:
    made = incident_pb2.Incident(
        incident_id="i-7f3a", issuer="letsencrypt", state=incident_pb2.Incident.STATE_OPEN, certificate_count=333,
        holder_count=300, replaced_count=12, in_use_count=10, failing_count=1, hurt_count=2, late=True, rollout_id="r-7f3a",
        explanation_url="https://ca.example/why", remedy="raise the CA's limit", hosts=["web7"],
    )  # fmt: skip
    made.open_time.FromDatetime(NOW - timedelta(hours=1))
    made.deadline.FromDatetime(NOW + timedelta(hours=5))
    return made


async def test_incidents(broker: OperatorsBroker, ctl: Ctl) -> None:
    """How many, by when, how far, who is hurt, and what to do."""
    broker.answers["ListIncidents"] = incident_pb2.ListIncidentsResponse(incidents=[an_incident()])
    ran = await ctl("incident", "list", "--open", width=100)
    assert "2 HURT, 1 failing, 12 of 333" in ran.out
    assert "LATE" in ran.out
    assert broker.requests("ListIncidents")[0].open_only
    assert (await ctl("incident", "list", "-o", "name")).out == "i-7f3a\n"
    broker.answers["GetIncident"] = incident_pb2.GetIncidentResponse(incident=an_incident())
    ran = await ctl("incident", "show", "i-7f3a", width=None)
    for said in ("300 hosts and services, from letsencrypt", "LATE", "https://ca.example/why", "raise the CA's limit"):
        assert said in ran.out
    assert ran.lines[-1] == "how far that is: certplanectl rollout watch r-7f3a"
    assert json.loads((await ctl("incident", "show", "i-7f3a", "--json")).out)["hurtCount"] == 2
    broker.answers["ListIncidents"] = incident_pb2.ListIncidentsResponse()
    assert (await ctl("incident", "list", "--open")).out == "no incident is open\n"
    assert (await ctl("incident", "list")).out == "there was no incident\n"


@given(st.dictionaries(st.sampled_from(sorted(ITEM_STATES)), st.integers(0, 10_000)), st.integers(0, 120))
def test_a_bar(numbers: dict[int, int], width: int) -> None:
    """As wide as it should be; nothing is shown that there is none of, and one that there is, where there is room."""
    made = [Rollout.ItemCount(state=state, certificate_count=number) for state, number in numbers.items()]  # type: ignore[arg-type]  # by number
    spans = bar(made, width)
    assert sum(len(text) for text, _ in spans) == width
    there = [number for number in numbers.values() if number]
    if there:
        assert len([text for text, _ in spans if text]) <= len(there)
        if width >= len(there):
            assert len([text for text, _ in spans if text]) == len(there)


def test_a_bar_in_words() -> None:
    """Shares, in the order of a certificate's way."""
    assert bar(counts(done=5, released=1, held=4), 10) == [
        ("#####", Style.GOOD), (">", Style.PLAIN), ("====", Style.PLAIN),
    ]  # fmt: skip
    assert bar(counts(done=999, failed=1), 10) == [("#########", Style.GOOD), ("!", Style.BAD)]
    assert bar([], 5) == [("     ", Style.PLAIN)]


@pytest.mark.parametrize(
    ("hosts", "percent", "text"),
    [(0, 0, "when 1 host of a ring"), (0, 30, "when 30 % of a ring"), (3, 5, "when 3 hosts or 5 % of a ring")],
)
def test_when_it_halts_in_words(hosts: int, percent: int, text: str) -> None:
    """One host is the default only where no share is set: so the broker takes it."""
    halt = rollout_pb2.RolloutSpec.Halt(failed_hosts=hosts, failed_percent=percent)
    assert halt_text(halt) == f"{text} failed; silent for 10m is failed"


def test_what_has_changed() -> None:
    """State, rings, hosts that failed, counts; nothing twice."""
    assert list(change_lines(halted(), halted(), NOW)) == []
    first, second = a_rollout(now=NOW), halted(NOW)
    lines = [line for line, _ in change_lines(first, second, NOW)]
    assert lines == [
        "r-7f3a halted: 1 host of ring canary failed",
        "ring canary: failed, cut by 15m",
        "web7.example.test: web: failed: reload: nginx: configuration test failed",
        "1 done, 1 failed, 12 held, 6 requested; ends in 5h 0m",
    ]
    third = halted(NOW)
    third.failed.insert(0, a_failure("web8.example.test"))
    third.rings[2].state = Ring.STATE_RELEASED
    lines = [line for line, _ in change_lines(second, third, NOW)]
    assert lines == ["ring rest: released", "web8.example.test: web: failed: reload: nginx: configuration test failed"]


def test_selections_in_words() -> None:
    """By the names of the options."""
    assert selection_text(fleet_pb2.Selection(all=True)) == "all"
    chosen = fleet_pb2.Selection(issuers=["le"], labels=["ring=canary", "dc=fra1"], window_open=True, incident_id="i-1")
    chosen.hosts.extend(f"web{number}" for number in range(7))
    said = selection_text(chosen)
    assert said.startswith(
        "host web0 or web1 or web2 or web3 or web4 and 2 more, label ring=canary or dc=fra1, issuer le"
    )
    assert said.endswith("that the CA wants replaced, of incident i-1")
