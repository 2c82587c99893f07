"""Lists of the fleet as messages: a page picked from the index, and what is shown of it read in the store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, MutableSequence, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

from google.protobuf.message import Message

from certplane.broker.fleet.filter import FleetFilter
from certplane.broker.fleet.index import FleetIndex, IndexedCertificate, IndexedHost
from certplane.broker.fleet.pages import FleetOrder, Place, certificates_page, hosts_page
from certplane.broker.fleet.view import FleetView, HostView
from certplane.broker.model import IdentityKind
from certplane.broker.services.convert import cursor_from_token, invalid_request, page_size, token_from_cursor
from certplane.broker.services.filter_convert import filter_of
from certplane.broker.services.fleet_convert import (
    MESSAGE_ROOM,
    add_first,
    add_worst,
    fleet_certificate,
    healths_of,
    host_message,
    states_of,
)
from certplane.fleet_report.messages import HEALTH_NUMBERS
from certplane.runtime.clock import Clock
from certplane.v1 import fleet_pb2 as pb
from certplane.v1 import renewal_pb2

_M = TypeVar("_M", bound=Message)

_TOGETHER: Final = 32
"""Hosts that are read at once: about as many full ones as a message holds."""
_ORDERS: Final = {
    pb.FLEET_ORDER_UNSPECIFIED: FleetOrder.NAME,
    pb.FLEET_ORDER_NAME: FleetOrder.NAME,
    pb.FLEET_ORDER_HEALTH: FleetOrder.HEALTH,
    pb.FLEET_ORDER_EXPIRE_TIME: FleetOrder.EXPIRE_TIME,
    pb.FLEET_ORDER_RENEW_TIME: FleetOrder.RENEW_TIME,
    pb.FLEET_ORDER_LAST_SEEN_TIME: FleetOrder.LAST_SEEN_TIME,
}
_HOSTS_ALONE: Final = frozenset({IdentityKind.HOST})


class FleetLists:
    """Answers `ListHosts` and `ListFleetCertificates`."""

    def __init__(self, view: FleetView, index: FleetIndex, clock: Clock) -> None:
        self._view = view
        self._index = index
        self._clock = clock

    async def hosts(self, request: pb.ListHostsRequest) -> pb.ListHostsResponse:
        """A page of hosts; it ends where another one would be too much for a message.

        Raises:
            RefusalError: REQUEST_INVALID, STORE_UNAVAILABLE.
        """
        order = _order_of(request.order_by)
        after, most = _place_of(request.page_token, order), page_size(request.page_size)
        picked = _wanted(request).at(self._clock.now())
        await self._index.settled()
        page = await hosts_page(self._index, picked, order, after=after, most=most + 1)
        response = pb.ListHostsResponse(host_count=page.host_count, connected_host_count=page.connected_count)
        for word in sorted(page.counts, key=lambda word: word.rank):
            response.health_counts.add(health=HEALTH_NUMBERS[word], certificate_count=page.counts[word])
        found = self._hosts_at(page.places, add_first if request.brief else add_worst)
        more = len(page.places) > most
        last = await _fill(response.hosts, found, size=response.ByteSize(), most=most, after=after, more=more)
        response.next_page_token = _token_of(last, order)
        return response

    async def _hosts_at(
        self, places: Sequence[Place], add: Callable[[renewal_pb2.Host, HostView], None]
    ) -> AsyncGenerator[tuple[Place, renewal_pb2.Host | None], None]:
        """Those that stand there; None for one that has gone since it was picked."""
        for some in _in_parts(places):
            views = await self._view.read([place.host for place in some])
            for place in some:
                message = None
                if (view := views.get(place.host)) is not None:
                    add(message := host_message(view), view)
                yield place, message

    async def certificates(self, request: pb.ListFleetCertificatesRequest) -> pb.ListFleetCertificatesResponse:
        """A page of certificates; it ends where another one would be too much for a message.

        Raises:
            RefusalError: REQUEST_INVALID, STORE_UNAVAILABLE.
        """
        order = _order_of(request.order_by)
        after, most = _place_of(request.page_token, order), page_size(request.page_size)
        picked = filter_of(request.filter).at(self._clock.now(), identities=request.include_identities)
        await self._index.settled()
        page = await certificates_page(
            self._index, picked, order, after=after, most=most + 1, identities=request.include_identities
        )
        response = pb.ListFleetCertificatesResponse(certificate_count=page.count)
        found, more = self._certificates_at(page.places), len(page.places) > most
        last = await _fill(response.certificates, found, size=response.ByteSize(), most=most, after=after, more=more)
        response.next_page_token = _token_of(last, order)
        return response

    async def _certificates_at(
        self, places: Sequence[Place]
    ) -> AsyncGenerator[tuple[Place, pb.FleetCertificate | None], None]:
        for some in _in_parts(places):
            indexed = [one for place in some if (one := self._indexed(place)) is not None]
            views = await self._view.certificates(indexed)
            messages = {(view.host.name, view.certificate.name): fleet_certificate(view) for view in views}
            for place in some:
                yield place, messages.get((place.host, place.name))

    def _indexed(self, place: Place) -> tuple[IndexedHost, IndexedCertificate] | None:
        """What stands there; None if it has gone since it was picked."""
        host = self._index.hosts.get(place.host)
        one = None if host is None else next((each for each in host.certificates if each.name == place.name), None)
        return None if host is None or one is None else (host, one)


async def _fill(
    into: MutableSequence[_M],
    found: AsyncGenerator[tuple[Place, _M | None], None],
    *,
    size: int,
    most: int,
    after: Place | None,
    more: bool,
) -> Place | None:
    """Append what is found as long as it fits into a message.

    Args:
        into: The list.
        found: What stands where; None for what has gone since it was picked, which is passed over.
        size: Octets of the message without the list.
        most: How many the list may have.
        after: Behind which place it begins.
        more: Whether there is something behind all that is found.

    Returns:
        Behind which place the next page begins; None if there is none.
    """
    last = after
    async with aclosing(found) as places:
        async for place, message in places:
            if message is not None:
                size += message.ByteSize() + 8
                if into and (len(into) == most or size > MESSAGE_ROOM):
                    return last
                into.append(message)
            last = place
    return last if more else None


def _in_parts(places: Sequence[Place]) -> Iterable[Sequence[Place]]:
    return (places[start : start + _TOGETHER] for start in range(0, len(places), _TOGETHER))


def _wanted(request: pb.ListHostsRequest) -> FleetFilter:
    """The request's filter; its own fields, of before there were filters, are of one too."""
    if not request.HasField("filter"):
        return FleetFilter(
            kinds=_HOSTS_ALONE,
            disconnected_only=request.disconnected_only,
            states=states_of(request.states),
            healths=healths_of(request.healths),
        )
    for field in ("states", "healths", "disconnected_only"):
        if getattr(request, field):
            raise invalid_request(field, f"can't be set beside filter: set filter.{field}")
    return filter_of(request.filter)


def _order_of(number: int) -> FleetOrder:
    order = _ORDERS.get(pb.FleetOrder.ValueType(number))
    if order is None:
        raise invalid_request("order_by", "is an order that this broker doesn't know")
    return order


_BY_PLACE: Final = "~"
"""Begins the token of a list that isn't by the names of hosts, and stands between its parts: no name begins with it."""


def _token_of(place: Place | None, order: FleetOrder) -> str:
    if place is None:
        return ""
    if order is FleetOrder.NAME and not place.name:
        return token_from_cursor(place.host)
    parts = (order.value, str(place.first), str(place.second), place.name, place.host)
    return token_from_cursor(_BY_PLACE + _BY_PLACE.join(parts))


def _place_of(token: str, order: FleetOrder) -> Place | None:
    """Behind which place a page begins; None for the first page.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, no token of this broker, or one of another order.
    """
    cursor = cursor_from_token(token)
    if not cursor:
        return None
    if not cursor.startswith(_BY_PLACE):
        word, first, second, name, host = FleetOrder.NAME.value, "0", "0", "", cursor
    else:
        parts = cursor[1:].split(_BY_PLACE, 4)
        if len(parts) != 5:
            raise invalid_request("page_token", "is not a token of this broker")
        word, first, second, name, host = parts
    if word != order.value:
        raise invalid_request("page_token", "is of a list in another order: begin at its first page")
    try:
        return Place(int(first), int(second), host, name)
    except ValueError as error:
        raise invalid_request("page_token", "is not a token of this broker") from error
