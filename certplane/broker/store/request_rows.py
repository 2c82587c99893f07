"""Rows of what operators have asked for: by caller and the id that it chose, so that asking again changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, select

from certplane.broker.renewal.model import HeldUp, RequestedRenewal
from certplane.broker.store.cells import Cells, decode_json, encode_json
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import renewal_requests
from certplane.broker.store.session import Session
from certplane.broker.store.statements import Compiler, Row

_HELD_UP: Final = Cells(HeldUp)
_READ: Final = ("request_id", "certificate_count", "changed_count", "last_renew_time", "held_up", "held_up_count")


class RequestRows:
    """Their statements; `find` has the parameters `requester` and `request_id`, and rows for `request_from_row`."""

    def __init__(self, compiler: Compiler) -> None:
        requests = renewal_requests.c
        self.find = compiler(
            select(*(requests[name] for name in _READ)).where(
                requests.requester == bindparam("requester"), requests.request_id == bindparam("request_id")
            )
        )
        self._insert = compiler(compiler.insert(renewal_requests).on_conflict_do_nothing(), requests.keys())

    def add(self, session: Session, requester: str, requested: RequestedRenewal, time: datetime) -> bool:
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
        )
        return session.execute(self._insert, row) == 1


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


def encode_held_up(held: Sequence[HeldUp]) -> str | None:
    """What holds up certificates of a request, as a column; None for nothing."""
    return encode_json([_HELD_UP.of(one) for one in held]) if held else None


def decode_held_up(text: str | None) -> tuple[HeldUp, ...]:
    """What `encode_held_up` made a column of."""
    return tuple(map(_HELD_UP.value, decode_json(text or "[]")))
