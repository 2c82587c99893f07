"""Dataclasses to rows and back: whatever text stands in them, and as 452d001 wrote them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Table

from certplane.broker.model import CertificateRecord, DenyEntry, Order, OrderDraft, OrderProgress, OrderState, TxtRecord
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.store import cells, schema
from certplane.config.values import IdentityName
from certplane.errors import ProblemDocument, Reason, Refusal, Violation

TIMES = st.datetimes(min_value=datetime(1950, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone
TEXTS = st.text(st.characters(), max_size=20)
"""Lone surrogates, NUL and line separators among them."""
REFUSALS = st.builds(
    Refusal,
    st.sampled_from(Reason),
    TEXTS,
    st.none() | st.timedeltas(min_value=timedelta(), max_value=timedelta(days=1000)),
    st.lists(st.builds(Violation, TEXTS, TEXTS), max_size=2).map(tuple),
    st.lists(st.builds(ProblemDocument, TEXTS, TEXTS, st.none() | st.integers(100, 599), TEXTS), max_size=2).map(tuple),
)
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXTS,
    int: st.integers(0, 10**9),
    bool: st.booleans(),
    bytes: st.binary(max_size=8),
    datetime: TIMES,
    Refusal: REFUSALS,
    tuple[str, ...]: st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
    OrderProgress: st.builds(
        OrderProgress, TEXTS, st.none() | TIMES, st.integers(0, 10**9), TEXTS, st.none() | TIMES, TEXTS
    ),
    tuple[TxtRecord, ...]: st.lists(st.builds(TxtRecord, TEXTS, TEXTS, TEXTS), max_size=2).map(tuple),
}


def strategy(hint: Any) -> st.SearchStrategy[Any]:
    if get_origin(hint) is UnionType:
        return st.one_of(*(st.none() if each is NoneType else strategy(each) for each in get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return st.sampled_from(hint)
    return BY_TYPE[hint]


def values_of(columns: cells.Columns[Any], kind: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{name: strategy(hints[name]) for name in columns.names})


TABLES = [
    pytest.param(cells.ORDER, Order, schema.orders, id="orders"),
    pytest.param(cells.CERTIFICATE, CertificateRecord, schema.certificates, id="certificates"),
    pytest.param(cells.PLAN, RenewalPlan, schema.renewal_plans, id="renewal plans"),
    pytest.param(cells.DENY_ENTRY, DenyEntry, schema.deny_entries, id="deny-list"),
]


@pytest.mark.parametrize(("columns", "kind", "table"), TABLES)
@given(st.data())
def test_a_row_comes_back_whole(columns: cells.Columns[Any], kind: Any, table: Table, data: st.DataObject) -> None:
    """Of what a driver takes: numbers, octets, text; what is JSON in it is ASCII."""
    value = data.draw(values_of(columns, kind))
    row = columns.values(value)
    assert columns.value(tuple(row.values())) == value
    assert {type(cell) for cell in row.values()} <= {str, int, bytes, NoneType}
    hints = get_type_hints(kind)
    assert all(row[name].isascii() for name in row if get_origin(hints[name]) is tuple and row[name])


@pytest.mark.parametrize(("columns", "kind", "table"), TABLES)
def test_every_field_of_a_value_has_a_column(columns: cells.Columns[Any], kind: Any, table: Table) -> None:
    """A field added to the model and forgotten in the schema is found."""
    assert set(columns.names) <= set(table.c.keys())


def test_a_running_order_s_fields_can_change() -> None:
    """Each field of an order that isn't of its draft is written by a change; the draft's never are, but the issuer."""
    from certplane.broker.store.order_rows import _CHANGING

    own = set(cells.ORDER.names) - set(OrderDraft.__dataclass_fields__) - {"order_id", "create_time"}
    assert set(_CHANGING) == own | {"issuer", "end_time"}


@given(REFUSALS)
def test_a_refusal_comes_back_whole(refusal: Refusal) -> None:
    """An order's error reads the same after a restart."""
    text = cells.encode_refusal(refusal)
    assert text.isascii()
    assert cells.decode_refusal(text) == refusal


OLD_ORDER = {
    "identity": "web1.example",
    "profile": "web",
    "profile_hash": "h",
    "dns_names": '["*.example.org","example.org"]',
    "public_key_sha256": "k",
    "csr_der": b"0",
    "issuer": "ca",
    "request_id": "r",
    "identity_serial": "1f",
    "replaces_certificate_id": "",
    "identity_issuer": "CN=ca",
    "identity_anchor": "a",
    "cause": "due",
    "ask_time": 1,
    "retry_epoch": "",
    "renewal_request_id": "",
    "order_id": "o1",
    "state": "FAILED",
    "create_time": 1,
    "update_time": 1_700_000_000_000_001,
    "acme_order_url": "https://ca.example/1",
    "holder": "",
    "epoch": 0,
    "lane": None,
    "turn_time": None,
    "places": None,
    "rollout_id": "",
    "to_issuer": "",
    "txt_records": '[["example.org","_acme-challenge.example.org","v","7","c"]]',
    "certificate_id": "",
    "error": (
        '{"reason":"ISSUER_REJECTED","message":"no \\ud83d\\ude00 and \\ud800","retry_after":3600000000,'
        '"violations":[["dns","example.org"]],"problems":[["urn:x","said \\u0000 no",403,"example.org"],["u","",null,""]]}'
    ),
    "retry_time": None,
    "finalize_time": None,
    "progress": None,
}
"""As 452d001 wrote it, a letter beyond the first plane and half of one in the CA's words included."""


def test_an_old_order_is_read() -> None:
    """TXT records and what a CA said as arrays, odd text in it."""
    order = cells.ORDER.value([OLD_ORDER[name] for name in cells.ORDER.names])
    assert (order.state, order.dns_names) == (OrderState.FAILED, ("*.example.org", "example.org"))
    assert order.txt_records == (TxtRecord("example.org", "_acme-challenge.example.org", "v", "7", "c"),)
    assert order.update_time == datetime(2023, 11, 14, 22, 13, 20, 1, tzinfo=UTC)
    assert order.error == Refusal(
        Reason.ISSUER_REJECTED,
        "no \U0001f600 and \ud800",
        timedelta(hours=1),
        (Violation("dns", "example.org"),),
        (ProblemDocument("urn:x", "said \0 no", 403, "example.org"), ProblemDocument("u", "")),
    )


def test_it_is_written_as_it_was() -> None:
    """The same columns, but for the spelling of the JSON: an older release reads what a newer one has written."""
    order = cells.ORDER.value([OLD_ORDER[name] for name in cells.ORDER.names])
    assert cells.ORDER.values(order) == OLD_ORDER


def test_what_is_empty_is_null() -> None:
    """As the index over unfinished orders asks for: an order without TXT records has none, not an empty list."""
    order = cells.ORDER.value([OLD_ORDER[name] for name in cells.ORDER.names])
    none = cells.ORDER.values(
        type(order)(**{**{name: getattr(order, name) for name in cells.ORDER.names}, "txt_records": ()})
    )
    assert none["txt_records"] is None


def test_names_of_the_configuration_are_text() -> None:
    """Settings have kinds of text of their own, which are written as the text that they are."""
    name = IdentityName.parse("web1.example.org")
    assert type(name) is not str
    assert cells.encode_json([name]) == '["web1.example.org"]'
    assert (
        cells.decode_refusal(cells.encode_refusal(Refusal(Reason.NAMES_NOT_ALLOWED, name))).message
        == "web1.example.org"
    )


@pytest.mark.parametrize("text", ["", "[", '{"reason":"NO_SUCH_REASON","message":""}', "[]", "7"])
def test_what_is_no_refusal_is_an_error(text: str) -> None:
    """It is not taken for another one."""
    with pytest.raises((ValueError, KeyError, TypeError)):
        cells.decode_refusal(text)
