"""Rows of what operators have asked for: by caller and the id that it chose, so that asking again changes nothing.

Each request has its items, the certificates and identities that it was for. They are written with it and never changed:
what has become of each is in the rows of plans, orders and certificates, and is put together when somebody asks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import and_, bindparam, case, delete, literal_column, select, text

from certplane.broker.renewal.model import (
    FollowedItem,
    HeldUp,
    RecordedRequest,
    RenewalPlan,
    RequestedRenewal,
    RequestItem,
)
from certplane.broker.store.cells import Cells, decode_json, decode_names, encode_json
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import certificates, renewal_plans, renewal_request_items, renewal_requests
from certplane.broker.store.session import Session
from certplane.broker.store.statements import HOSTS, Compiler, Row, Statement, chunks, limited_to, numbered
from certplane.broker.store.successors import newest_successor
from certplane.fleet_report.model import RenewalCause

_HELD_UP: Final = Cells(HeldUp)
_READ: Final = ("request_id", "certificate_count", "changed_count", "last_renew_time", "held_up", "held_up_count")
_RECORDED: Final = ("requester", "request_id", "create_time", "reason", "last_renew_time", "certificate_count")
_ITEM: Final = ("number", "host", "certificate_id", "renew_time", "planned", "serial_number")


class RequestRows:
    """Their statements.

    `find` has the parameters `requester` and `request_id`, and rows for `request_from_row`; `recorded` has
    `request_id`, and rows for `recorded_from_row`; `follow` has those of `find` and `after`, and rows for
    `followed_from_row`; `identities` has hosts, and rows for `identity_plan`, of each host the newest last.
    """

    def __init__(self, compiler: Compiler) -> None:
        requests, items = renewal_requests.c, renewal_request_items.c
        own = (requests.requester == bindparam("requester"), requests.request_id == bindparam("request_id"))
        self.find = compiler(select(*(requests[name] for name in _READ)).where(*own))
        self.recorded = compiler(
            select(*(requests[name] for name in _RECORDED))
            .where(requests.request_id == bindparam("request_id"))
            .order_by(requests.create_time)
        )
        self.follow = _following(compiler)
        self.identities = compiler(
            select(
                items.host,
                items.serial_number,
                items.renew_time,
                requests.reason,
                requests.request_id,
            )
            .join(
                renewal_requests,
                and_(requests.requester == items.requester, requests.request_id == items.request_id),
            )
            .where(items.host.in_(HOSTS), text("certificate_id = ''"))  # word for word the index's condition
            .order_by(requests.create_time)
        )
        self._insert = compiler(compiler.insert(renewal_requests).on_conflict_do_nothing(), requests.keys())
        self._forget_items = compiler(
            delete(renewal_request_items).where(
                items.requester == bindparam("requester"), items.request_id == bindparam("request_id")
            )
        )
        self._insert_items = functools.cache(
            lambda count: compiler(compiler.insert(renewal_request_items).values(numbered(items.keys(), count)))
        )

    def add(
        self,
        session: Session,
        requester: str,
        requested: RequestedRenewal,
        time: datetime,
        *,
        reason: str = "",
        items: Sequence[RequestItem] = (),
    ) -> bool:
        """Whether it is the first of its id, and was added; waits for one that another broker is just adding."""
        last = requested.last_renew_time
        row = (
            requester,
            requested.request_id,
            to_micros(time),
            requested.certificate_count,
            requested.changed_count,
            None if last is None else to_micros(last),
            encode_held_up(requested.held_up),
            requested.held_up_count,
            reason,
        )
        if session.execute(self._insert, row) != 1:
            return False
        # An older broker that prunes leaves the items of what it removes.
        session.execute(self._forget_items, (requester, requested.request_id))
        numbered_items = [*enumerate(items, 1)]
        for some in chunks(numbered_items):
            values = [_item_row(requester, requested.request_id, number, item) for number, item in some]
            session.execute(self._insert_items(len(some)), tuple(cell for row in values for cell in row))
        return True


def _item_row(requester: str, request_id: str, number: int, item: RequestItem) -> tuple[object, ...]:
    """The columns of `renewal_request_items`, in their order."""
    return (
        requester,
        request_id,
        number,
        item.host,
        item.certificate_id,
        item.serial_number,
        to_micros(item.renew_time),
        int(item.planned),
    )


def _following(compiler: Compiler) -> Statement:
    items, plans, held = renewal_request_items.c, renewal_plans.c, certificates.c
    newer = newest_successor(items.certificate_id, renewal_request_items)
    query = (
        select(
            *(items[name] for name in _ITEM),
            plans.renewal_request_id,
            # An identity replaces none of the certificates that replace none.
            case((items.certificate_id != literal_column("''"), newer)).label("new_certificate_id"),
            held.not_after,
            held.revoke_time,
            held.profile,
            held.dns_names,
        )
        .outerjoin_from(renewal_request_items, renewal_plans, plans.certificate_id == items.certificate_id)
        .outerjoin(certificates, held.certificate_id == items.certificate_id)
        .where(
            items.requester == bindparam("requester"),
            items.request_id == bindparam("request_id"),
            items.number > bindparam("after"),
        )
        .order_by(items.number)
    )
    return compiler(query.suffix_with(limited_to()))


def request_from_row(row: Row) -> RequestedRenewal:
    """What came of the request of a row that was found."""
    request_id, certificate_count, changed_count, last, held_up, held_up_count = row
    return RequestedRenewal(
        request_id,
        certificate_count,
        changed_count,
        None if last is None else from_micros(last),
        decode_held_up(held_up),
        held_up_count,
    )


def recorded_from_row(row: Row) -> RecordedRequest:
    """The request of a row."""
    requester, request_id, created, reason, last, count = row
    return RecordedRequest(
        requester, request_id, from_micros(created), reason, None if last is None else from_micros(last), count
    )


def followed_from_row(row: Row) -> FollowedItem:
    """The item of a row, with what became of it."""
    number, host, certificate_id, renewed, planned, serial, plan_request_id, new_id, ends, revoked, profile, names = row
    return FollowedItem(
        number,
        RequestItem(host, certificate_id, from_micros(renewed), bool(planned), serial),
        plan_request_id=plan_request_id or "",
        in_force=plan_request_id is not None,
        new_certificate_id=new_id or "",
        not_after=None if ends is None else from_micros(ends),
        revoke_time=None if revoked is None else from_micros(revoked),
        profile=profile or "",
        dns_names=() if names is None else decode_names(names),
    )


def identity_plan(row: Row) -> tuple[str, RenewalPlan]:
    """The identity's certificate that is to be replaced, by its serial number, and the plan."""
    host, serial_number, renewed, reason, request_id = row
    plan = RenewalPlan(
        "", host, from_micros(renewed), RenewalCause.OPERATOR, reason=reason, renewal_request_id=request_id
    )
    return serial_number, plan


def encode_held_up(held: Sequence[HeldUp]) -> str | None:
    """What holds up certificates of a request, as a column; None for nothing."""
    return encode_json([_HELD_UP.of(one) for one in held]) if held else None


def decode_held_up(text: str | None) -> tuple[HeldUp, ...]:
    """What `encode_held_up` made a column of."""
    return tuple(map(_HELD_UP.value, decode_json(text or "[]")))
