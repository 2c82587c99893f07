"""The policy, its changes and plans as messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import chain
from typing import Final

from google.protobuf.duration_pb2 import Duration

from certplane.broker.policy.changes import Count, PolicyChange, PolicyChanges
from certplane.broker.policy.history import PolicyVersion
from certplane.broker.policy.planned import Mismatch, PolicyInForce, PolicyPlan
from certplane.broker.policy.same_names import REMEDY, SameNames
from certplane.broker.services.fleet_convert import MESSAGE_ROOM
from certplane.errors import ConfigurationProblem
from certplane.rpc.times import timestamp
from certplane.runtime.text import printable
from certplane.v1 import policy_pb2 as pb

_MOST_TEXT: Final = 2000
"""Of a text for people, so that each message has room for many."""

_MOST_LOADED_BY: Final = 200
"""A hundred versions are one message."""

_MOST_SAME_NAMES: Final = 20
"""As the proto file says."""
_MOST_NAMES: Final = 500
"""Octets of the names of each."""

_PIECE: Final = 12_000
"""Characters of the text in a message: four octets each at most."""


def in_force_message(policy: PolicyInForce) -> pb.LoadedPolicy:
    """What is known of a policy."""
    return pb.LoadedPolicy(
        policy_hash=policy.hash,
        load_time=timestamp(policy.load_time),
        loaded_by=printable(policy.loaded_by, _MOST_TEXT),
        file=printable(policy.file, _MOST_TEXT),
        refusal=printable(policy.refusal, _MOST_TEXT),
        broker_id=policy.broker_id,
        broker_name=policy.broker_name,
    )


def pieces(text: str) -> Iterator[str]:
    """A text in pieces that messages have room for."""
    return (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))


def count_messages(changes: PolicyChanges | None) -> list[pb.PolicyCount]:
    """What there was and is."""
    return _counts(() if changes is None else changes.counts)


def summary_message(plan: PolicyPlan, in_force: PolicyInForce) -> pb.PlanPolicyResponse:
    """What a plan comes to."""
    return pb.PlanPolicyResponse(
        summary=pb.PlanPolicyResponse.Summary(
            policy=in_force_message(in_force),
            policy_hash=plan.hash,
            counts=count_messages(plan.changes),
            change_count=len(plan.changes.changes),
            issued_again_count=plan.changes.issued_again,
            confirmation=printable(plan.confirmation, _MOST_TEXT),
            order_count=plan.effort.orders,
            order_duration=_duration(plan.effort.duration),
            connected_hosts_lost_count=plan.effort.hosts_lost,
            same_names=map(_same_names_message, plan.same_names[:_MOST_SAME_NAMES]),
        )
    )


def _same_names_message(same: SameNames) -> pb.PlanPolicyResponse.SameNames:
    names, room = [], _MOST_NAMES
    for name in same.dns_names:
        room -= len(name)
        if room < 0:
            break
        names.append(name)
    return pb.PlanPolicyResponse.SameNames(
        profile=same.profile,
        dns_names=names,
        identity_count=same.identities,
        amount=same.limit.amount,
        per=_duration(same.limit.per),
        order_duration=_duration(same.duration),
        remedy=REMEDY,
    )


def _duration(span: timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(span)
    return duration


def version_message(version: PolicyVersion) -> pb.PolicyVersion:
    """A policy that was in force."""
    return pb.PolicyVersion(
        policy_hash=version.hash,
        load_time=timestamp(version.load_time),
        loaded_by=printable(version.loaded_by, _MOST_LOADED_BY),
        broker_name=printable(version.broker_name, _MOST_LOADED_BY),
        counts=_counts(version.counts),
        text_size_bytes=version.text_size,
    )


def _counts(counts: Iterable[Count]) -> list[pb.PolicyCount]:
    return [
        pb.PolicyCount(
            subject=count.subject, before=count.before, after=count.after, gained=count.gained, lost=count.lost
        )
        for count in counts
    ]


def plan_messages(plan: PolicyPlan) -> Iterator[pb.PlanPolicyResponse]:
    """What follows a plan's summary, as much in each message as it has room for."""
    changes = (pb.PlanPolicyResponse(changes=[_change_message(change)]) for change in plan.changes.changes)
    return _filled(
        chain(changes, (pb.PlanPolicyResponse(mismatches=[_mismatch_message(each)]) for each in plan.mismatches))
    )


def problem_messages(problems: Iterable[ConfigurationProblem]) -> Iterator[pb.PlanPolicyResponse]:
    """All that is wrong with a text."""
    return _filled(pb.PlanPolicyResponse(problems=[_problem_message(problem)]) for problem in problems)


def _filled(parts: Iterable[pb.PlanPolicyResponse]) -> Iterator[pb.PlanPolicyResponse]:
    message, size = pb.PlanPolicyResponse(), 0
    for part in parts:
        size += part.ByteSize()
        if size > MESSAGE_ROOM:
            yield message
            message, size = pb.PlanPolicyResponse(), part.ByteSize()
        message.MergeFrom(part)
    if size:
        yield message


def _problem_message(problem: ConfigurationProblem) -> pb.PolicyProblem:
    return pb.PolicyProblem(
        line=problem.line or 0,
        key_path=printable(problem.key, _MOST_TEXT),
        message=printable(problem.message, _MOST_TEXT),
        remedy=printable(problem.remedy, _MOST_TEXT),
    )


def _change_message(change: PolicyChange) -> pb.PolicyChange:
    return pb.PolicyChange(
        change=change.change,
        subject=change.subject,
        identity=change.identity,
        profile=change.profile,
        name=change.name,
        detail=printable(change.detail, _MOST_TEXT),
    )


def _mismatch_message(mismatch: Mismatch) -> pb.PolicyMismatch:
    return pb.PolicyMismatch(
        host=mismatch.host,
        certificate=mismatch.certificate,
        profile=mismatch.profile,
        reason=mismatch.reason,
        message=printable(mismatch.message, _MOST_TEXT),
        refused_now=mismatch.refused_now,
    )
