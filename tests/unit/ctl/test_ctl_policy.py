"""`certplanectl policy` for people: what a plan comes to, and problems as a broker says them."""

from __future__ import annotations

import pytest

from certplane.ctl.policy import plan_lines, problem_line
from certplane.v1 import policy_pb2 as pb


def test_plan() -> None:
    """Changes and mismatches as tables; the counts and whether it would have to be confirmed come last."""
    plan = pb.PlanPolicyResponse(
        summary=pb.PlanPolicyResponse.Summary(
            policy=pb.LoadedPolicy(broker_name="broker1"),
            counts=[pb.PolicyCount(subject="host", before=5, after=1, lost=4)],
            issued_again_count=1,
            confirmation="would remove 4 of 5 hosts",
        ),
        changes=[pb.PolicyChange(change="lost", subject="host", identity="web2.example")],
        mismatches=[
            pb.PolicyMismatch(
                host="web1.example", certificate="web", profile="web", reason="NAMES_NOT_ALLOWED", message="lacks a\x1b"
            )
        ],
    )
    own = "each broker has its own policy; `certplanectl brokers` shows whether they differ"
    assert plan_lines(plan) == [
        "CHANGE  SUBJECT  IDENTITY      PROFILE  NAME  DETAIL",
        "lost    host     web2.example  -        -     -",
        "",
        "hosts that ask for what would be refused, as they last reported it:",
        "HOST          CERTIFICATE  PROFILE  REASON             NOW  MESSAGE",
        "web1.example  web          web      NAMES_NOT_ALLOWED  -    lacks a",
        "",
        "SUBJECT  BEFORE  AFTER  GAINED  LOST",
        "host     5       1      0       4",
        "",
        "certificates issued again: 1",
        "hosts' certificates that would be refused: 1",
        "a reload would have to be confirmed: it would remove 4 of 5 hosts",
        f"compared with the policy of broker1; {own}",
    ]


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        pytest.param(
            pb.PolicyProblem(line=3, key_path="hosts.a", message="is wrong", remedy="mend it"),
            "p.yml:3: hosts.a: is wrong; mend it",
            id="all",
        ),
        pytest.param(pb.PolicyProblem(message="is wrong"), "p.yml: is wrong", id="least"),
    ],
)
def test_problem(problem: pb.PolicyProblem, line: str) -> None:
    """The file's name is the operator's, the line and key are the broker's."""
    assert problem_line(problem, "p.yml") == line
