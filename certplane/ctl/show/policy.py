"""Policies for people: what a plan comes to, problems as a broker says them, what was in force when."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from certplane.ctl.arguments.broker import OWN_POLICY
from certplane.ctl.show.words import clock_text
from certplane.rpc.times import span_of, time_of
from certplane.runtime.columns import Column
from certplane.runtime.tables import span_text
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted
from certplane.v1 import policy_pb2

_HASH: Final = 12
"""Characters that are shown of one, and enough to name it."""
_STYLES: Final = {"lost": Style.WARNING, "gained": Style.GOOD}


def problem_line(problem: policy_pb2.PolicyProblem, file: str) -> str:
    """As a broker says it of its own file."""
    place = ":".join(filter(None, (file, str(problem.line or ""))))
    text = ": ".join(filter(None, (place, problem.key_path, problem.message)))
    return f"{text}; {problem.remedy}" if problem.remedy else text


def change_columns() -> list[Column[policy_pb2.PolicyChange]]:
    """The columns of what would change."""
    return [
        Column("CHANGE", lambda each: each.change, 0, style=lambda each: _STYLES.get(each.change, Style.PLAIN)),
        Column("SUBJECT", lambda each: each.subject, 0),
        Column("IDENTITY", lambda each: each.identity, 1, least=12),
        Column("PROFILE", lambda each: each.profile, 2, least=8),
        Column("NAME", lambda each: each.name, 3, least=12),
        Column("DETAIL", lambda each: each.detail, 4, least=12),
    ]


def mismatch_columns() -> list[Column[policy_pb2.PolicyMismatch]]:
    """The columns of who would be refused."""
    return [
        Column("HOST", lambda each: each.host, 0, least=20),
        Column("CERTIFICATE", lambda each: each.certificate, 1, least=8),
        Column("PROFILE", lambda each: each.profile, 3),
        Column("REASON", lambda each: each.reason, 0),
        Column("NOW", lambda each: "refused now too" if each.refused_now else "", 4),
        Column("MESSAGE", lambda each: each.message, 2, least=16),
    ]


def count_columns() -> list[Column[policy_pb2.PolicyCount]]:
    """The columns of what there is before and after."""
    return [
        Column("SUBJECT", lambda each: each.subject, 0),
        Column("BEFORE", lambda each: str(each.before), 1),
        Column("AFTER", lambda each: str(each.after), 1),
        Column("GAINED", lambda each: str(each.gained), 0),
        Column("LOST", lambda each: str(each.lost), 0, style=lambda each: Style.WARNING if each.lost else Style.PLAIN),
    ]


def summary_lines(plan: policy_pb2.PlanPolicyResponse) -> list[str]:
    """What it comes to, last: a long list ends with it."""
    summary = plan.summary
    lines = [
        f"certificates issued again: {summary.issued_again_count}",
        f"hosts' certificates that would be refused: {len(plan.mismatches)}",
    ]
    if summary.order_count:
        span = span_of(summary.order_duration) if summary.HasField("order_duration") else None
        least = "" if span is None else f", which take {span_text(span)} at least"
        lines.append(f"orders at public CAs: {summary.order_count}{least}")
    if summary.connected_hosts_lost_count:
        lines.append(f"hosts connected now that would lose all certificates: {summary.connected_hosts_lost_count}")
    lines += map(_same_names_line, summary.same_names)
    if summary.confirmation:
        lines.append(f"a reload would have to be confirmed: it {summary.confirmation}")
    return [*lines, f"compared with the policy of {summary.policy.broker_name}; {OWN_POLICY}"]


def _same_names_line(same: policy_pb2.PlanPolicyResponse.SameNames) -> str:
    names = " ".join(same.dns_names[:1]) + (f" and {len(same.dns_names) - 1} more" if len(same.dns_names) > 1 else "")
    took, per = span_of(same.order_duration) or timedelta(), span_of(same.per) or timedelta()
    many = counted(same.identity_count, "identity", "identities")
    return (
        f"the same names for {many} of profile {same.profile} ({names}): "
        f"their CA issues {same.amount} per {span_text(per)}, so that the first certificate of each takes "
        f"{span_text(took)}, and a new key for all as long; {same.remedy}"
    )


def loaded_facts(policy: policy_pb2.LoadedPolicy) -> list[tuple[str, str]]:
    """What is known of a policy that is, or was, in force."""
    return [
        ("policy hash", policy.policy_hash),
        (
            "in force since",
            clock_text(policy.load_time) if time_of(policy.load_time) and policy.HasField("load_time") else "",
        ),
        ("loaded by", policy.loaded_by),
        ("file", policy.file),
        ("refused since", policy.refusal),
        ("broker", f"{policy.broker_name}; {OWN_POLICY}"),
    ]


def _changes(version: policy_pb2.PolicyVersion) -> str:
    parts = []
    for count in version.counts:
        signs = "/".join(
            filter(None, (f"+{count.gained}" if count.gained else "", f"-{count.lost}" if count.lost else ""))
        )
        if signs:
            parts.append(f"{count.subject} {signs}")
    return ", ".join(parts)


VERSIONS: Final[Sequence[Column[policy_pb2.PolicyVersion]]] = (
    Column("SINCE", lambda each: clock_text(each.load_time), 0),
    Column("HASH", lambda each: each.policy_hash[:_HASH], 0, wide_text=lambda each: each.policy_hash),
    Column("CHANGED", _changes, 1, least=16),
    Column("BY", lambda each: each.loaded_by, 2, least=12),
    Column("BROKER", lambda each: each.broker_name, 3),
    Column("KEPT", lambda each: "yes" if each.text_size_bytes else "no", 4),
)
