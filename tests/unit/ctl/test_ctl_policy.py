"""`certplanectl policy` for people: what a plan comes to, and problems as a broker says them."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from certplane.ctl.show.policy import change_columns, count_columns, mismatch_columns, problem_line, summary_lines
from certplane.runtime.columns import column_lines
from certplane.runtime.terminal import Terminal
from certplane.v1 import policy_pb2 as pb


def test_plan() -> None:
    """Changes and mismatches as tables; the counts and whether it would have to be confirmed come last."""
    plan = pb.PlanPolicyResponse(
        summary=pb.PlanPolicyResponse.Summary(
            policy=pb.LoadedPolicy(broker_name="broker1"),
            counts=[pb.PolicyCount(subject="host", before=5, after=1, lost=4)],
            issued_again_count=1,
            confirmation="would remove 4 of 5 hosts",
            order_count=7,
            order_duration=Duration(seconds=7200),
            connected_hosts_lost_count=3,
            same_names=[
                pb.PlanPolicyResponse.SameNames(
                    profile="web",
                    dns_names=["a.example", "b.example"],
                    identity_count=15,
                    amount=5,
                    per=Duration(seconds=7 * 86400),
                    order_duration=Duration(seconds=14 * 86400),
                    remedy="give each a name",
                )
            ],
        ),
        changes=[pb.PolicyChange(change="lost", subject="host", identity="web2.example")],
        mismatches=[
            pb.PolicyMismatch(
                host="web1.example", certificate="web", profile="web", reason="NAMES_NOT_ALLOWED", message="lacks a\x1b"
            )
        ],
    )
    own = "each broker has its own policy; `certplanectl brokers` shows whether they differ"
    terminal = Terminal()
    assert column_lines(change_columns(), plan.changes, terminal) == [
        "CHANGE  SUBJECT  IDENTITY",
        "lost    host     web2.example",
    ]
    assert column_lines(mismatch_columns(), plan.mismatches, terminal) == [
        "HOST          CERTIFICATE  PROFILE  REASON             MESSAGE",
        "web1.example  web          web      NAMES_NOT_ALLOWED  lacks a",
    ]
    assert column_lines(count_columns(), plan.summary.counts, terminal) == [
        "SUBJECT  BEFORE  AFTER  GAINED  LOST",
        "host     5       1      0       4",
    ]
    assert summary_lines(plan) == [
        "certificates issued again: 1",
        "hosts' certificates that would be refused: 1",
        "orders at public CAs: 7, which take 2h 0m at least",
        "hosts connected now that would lose all certificates: 3",
        (
            "the same names for 15 identities of profile web (a.example and 1 more): their CA issues 5 per 7d 0h, so that "
            "the first certificate of each takes 14d 0h, and a new key for all as long; give each a name"
        ),
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
