"""The brokers as messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from certplane.broker.members.comparison import Difference, Subject
from certplane.broker.members.model import Member
from certplane.broker.members.view import Brokers
from certplane.broker.services.fleet_convert import MESSAGE_ROOM
from certplane.rpc.times import put_time, timestamp
from certplane.runtime.text import printable
from certplane.v1 import fleet_pb2 as pb

_MOST_TEXT: Final = 1000
"""Of a difference, so that all of them fit beside a broker."""

_SUBJECTS: Final = {subject: getattr(pb.BrokerDifference, f"SUBJECT_{subject.name}") for subject in Subject}


def cursor_of(member: Member) -> str:
    """Where a page ends: brokers come by their start, and texts of one length sort as what they say."""
    return f"{member.start_time:%Y%m%dT%H%M%S.%f}/{member.broker_id}"


def difference_message(difference: Difference) -> pb.BrokerDifference:
    """A difference."""
    return pb.BrokerDifference(
        subject=_SUBJECTS[difference.subject],
        text=printable(difference.text, _MOST_TEXT),
        remedy=difference.remedy,
        broker_ids=difference.broker_ids,
    )


def broker_message(member: Member, brokers: Brokers) -> pb.Broker:
    """One of the brokers."""
    message = pb.Broker(
        broker_id=member.broker_id,
        name=member.name,
        address=member.address,
        reuse_port=member.reuse_port,
        version=member.version,
        start_time=timestamp(member.start_time),
        stream_count=member.stream_count,
        policy_hash=member.policy_hash,
        trust_hash=member.trust_hash,
        configuration_hash=member.configuration_hash,
        audit_mode=member.audit_mode,
        account_keys=[
            pb.Broker.AccountKey(issuer=key.issuer, public_key_sha256=key.public_key_sha256)
            for key in member.account_keys
        ],
        draining=member.draining,
        roles=brokers.roles.get(member.broker_id, ()),
        differs_in=_subjects_of(member, brokers.differences),
    )
    message.clock_skew.FromTimedelta(member.clock_skew)
    if member.lease_until is not None:
        put_time(member.lease_until, message.lease_expire_time)
    return message


def _subjects_of(member: Member, differences: Sequence[Difference]) -> list[pb.BrokerDifference.Subject.ValueType]:
    found = {difference.subject for difference in differences if member.broker_id in difference.broker_ids}
    return [_SUBJECTS[subject] for subject in Subject if subject in found]


def brokers_page(brokers: Brokers, *, after: str, most: int) -> tuple[pb.ListBrokersResponse, str]:
    """The brokers after a cursor, as many as are wanted and fit into a message; and the cursor of the next page."""
    response = pb.ListBrokersResponse(
        broker_id=brokers.answering, differences=map(difference_message, brokers.differences)
    )
    size = response.ByteSize()
    last = ""
    for member in brokers.members:
        if (cursor := cursor_of(member)) <= after:
            continue
        message = broker_message(member, brokers)
        size += message.ByteSize() + 8
        if response.brokers and (len(response.brokers) == most or size > MESSAGE_ROOM):
            return response, last
        response.brokers.append(message)
        last = cursor
    return response, ""
