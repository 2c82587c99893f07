"""Requests for renewals that operators follow: reads what a request was for, and says how far each of it is.

A request may be for a whole fleet, and whoever waits for it asks every few seconds: what was found is answered again
for nine times as long as finding it took, so that the asking takes a tenth of the loop at most. All pages of a list are
of one such moment, mostly; the next page begins behind the last item that was shown, whatever has moved since.

For the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final

from certplane.broker.fleet.model import HostRecord
from certplane.broker.fleet.ports import FleetStore
from certplane.broker.fleet.progress import HolderNow, ItemProgress, ProgressWord, item_progress
from certplane.broker.renewal.model import FollowedItem, RecordedRequest
from certplane.broker.renewal.ports import RequestItems
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock

_PAGE: Final = 512
"""Items that are read at a time: a few milliseconds."""
_TOGETHER: Final = 64
"""Hosts that are read at a time, with all that they hold; a few milliseconds of the loop."""
_KEPT: Final = 4
"""Requests whose last answer is kept: a fleet's takes some ten megabytes."""
_REST: Final = 9.0
_AT_LEAST: Final = 0.2
"""Seconds that an answer stands, however fast it was found."""

Place = tuple[int, int]
"""Where an item is in the list: its progress, then its number."""


class RequestNotFoundError(RefusalError):
    """There is no such request, or none that says what it was for."""

    def __init__(self, message: str = "") -> None:
        message = message or (
            "there is no such renewal request; RequestRenewal, `certplanectl renew`, says its id, and those of before "
            "store.keep are removed"
        )
        super().__init__(Reason.ORDER_NOT_FOUND, message)


@dataclass(frozen=True, slots=True)
class RequestProgress:
    """How far a request is: `items` in the order of `place_of`."""

    request: RecordedRequest
    counts: Mapping[ProgressWord, int]
    items: Sequence[ItemProgress]

    @property
    def done(self) -> bool:
        """Whether all have ended."""
        return all(word.has_ended for word in self.counts)


def place_of(one: ItemProgress) -> Place:
    """What failed first, what is done last."""
    return (one.word.value, one.followed.number)


class FollowedRequests:
    """Answers how far requests are."""

    def __init__(
        self,
        items: RequestItems,
        fleet: FleetStore,
        clock: Clock,
        holder_of: Callable[[str, HostRecord | None], HolderNow],
    ) -> None:
        """`holder_of` puts together what is known of the identity of a name, whose record was read."""
        self._items = items
        self._fleet = fleet
        self._clock = clock
        self._holder_of = holder_of
        self._found: OrderedDict[tuple[str, str], tuple[float, RequestProgress]] = OrderedDict()
        self._reading: dict[tuple[str, str], asyncio.Task[RequestProgress]] = {}

    async def follow(self, request_id: str, requester: str) -> RequestProgress:
        """How far the request of this id is, of this requester or of any.

        Raises:
            RequestNotFoundError: there is none.
            RefusalError: STORE_UNAVAILABLE.
        """
        request = await self._items.get_request(request_id, requester)
        if request is None:
            raise RequestNotFoundError
        key = (request.requester, request.request_id)
        kept = self._found.get(key)
        if kept is not None and self._clock.monotonic() < kept[0]:
            return kept[1]
        task = self._reading.get(key)
        if task is None:
            task = self._reading[key] = asyncio.create_task(self._read(request), name="renewal-progress")
            task.add_done_callback(lambda task: self._end(key, task))
        return await asyncio.shield(task)  # others may wait for it too

    def _end(self, key: tuple[str, str], task: asyncio.Task[RequestProgress]) -> None:
        del self._reading[key]
        if not task.cancelled():
            task.exception()  # whoever waits sees it, if somebody still does

    async def _read(self, request: RecordedRequest) -> RequestProgress:
        began, now = self._clock.monotonic(), self._clock.now()
        found: list[ItemProgress] = []
        after = 0
        while page := await self._items.follow_items(request, after, _PAGE):
            found += await self._progress_of(page, request.request_id, now)
            after = page[-1].number
        if not found and request.certificate_count:
            message = "a broker of an older release took this request, and kept nothing of what it was for: ask again"
            raise RequestNotFoundError(message)
        await asyncio.sleep(0)
        found.sort(key=place_of)
        progress = RequestProgress(request, Counter(one.word for one in found), found)
        took = self._clock.monotonic() - began
        key = (request.requester, request.request_id)
        self._found[key] = (self._clock.monotonic() + max(_AT_LEAST, took * _REST), progress)
        self._found.move_to_end(key)
        while len(self._found) > _KEPT:
            self._found.popitem(last=False)
        return progress

    async def _progress_of(
        self, page: Sequence[FollowedItem], request_id: str, now: datetime
    ) -> Sequence[ItemProgress]:
        found: list[ItemProgress] = []
        hosts = iter(dict.fromkeys(each.item.host for each in page))
        by_host: dict[str, list[FollowedItem]] = {}
        for each in page:
            by_host.setdefault(each.item.host, []).append(each)
        while some := [*islice(hosts, _TOGETHER)]:
            records = {record.host: record for record in await self._fleet.list_hosts(hosts=some)}
            for host in some:
                holder = self._holder_of(host, records.get(host))
                found += [item_progress(each, request_id, holder, now) for each in by_host[host]]
        return found
