"""Elements are cut out of DER exactly, and nothing but DER is accepted."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.pki.der import INTEGER, OCTET_STRING, SEQUENCE, DerError, read_element, read_sequence
from tests.support.csr import integer, octets, sequence


def test_reads_a_sequence() -> None:
    """Each inner element with its tag, its value and its own bytes."""
    data = b"junk" + sequence(integer(5), octets(b"x" * 300)) + b"more"
    outer = read_element(data, 4)
    assert outer.tag == SEQUENCE
    assert data[outer.end :] == b"more"
    number, text = read_sequence(outer)
    assert (number.tag, number.value) == (INTEGER, b"\5")
    assert (text.tag, text.value) == (OCTET_STRING, b"x" * 300)
    assert text.encoded == octets(b"x" * 300)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x30", id="tag-alone"),
        pytest.param(b"\x04\x05abc", id="cut-off"),
        pytest.param(b"\x30\x80\x00\x00", id="indefinite"),
        pytest.param(b"\x04\x81\x03abc", id="long-form-for-a-short-length"),
        pytest.param(b"\x04\x82\x00\x81" + b"a" * 129, id="padded-length"),
        pytest.param(b"\x04\x85\x01\x00\x00\x00\x00", id="length-of-five-octets"),
        pytest.param(b"\x04\x82\x01", id="length-cut-off"),
        pytest.param(b"\x1f\x81\x01\x00", id="tag-of-two-octets"),
    ],
)
def test_refuses(data: bytes) -> None:
    """BER's other ways to write the same, and what is cut off, are errors."""
    with pytest.raises(DerError):
        read_element(data)


def test_inner_elements_stay_inside() -> None:
    """An element that reaches past the one around it is an error, though bytes follow."""
    with pytest.raises(DerError):
        read_sequence(read_element(b"\x30\x03\x04\x05abcdef"))


def test_a_primitive_has_no_elements() -> None:
    """A value is not looked into."""
    with pytest.raises(DerError):
        read_sequence(read_element(octets(octets(b""))))


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_round_trip(values: list[bytes]) -> None:
    """What was put in comes out."""
    assert [element.value for element in read_sequence(read_element(sequence(*map(octets, values))))] == values


@given(st.binary())
def test_never_raises_anything_else(data: bytes) -> None:
    """Any bytes end in elements or a DerError."""
    with contextlib.suppress(DerError):
        read_sequence(read_element(data))
