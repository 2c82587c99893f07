"""How far a renewal has come, as messages, a page at a time."""

from __future__ import annotations

import bisect
from typing import Final

from certplane.broker.fleet.followed import Place, RequestProgress, place_of
from certplane.broker.fleet.progress import ItemProgress, ProgressWord
from certplane.broker.services.convert import cursor_from_token, invalid_request, token_from_cursor
from certplane.broker.services.fleet_convert import MESSAGE_ROOM
from certplane.rpc.times import put_time
from certplane.runtime.text import printable
from certplane.v1 import fleet_pb2 as pb

_MOST_REASON: Final = 500
_WORDS: Final = {word: pb.GetRenewalRequestResponse.Progress.Value(f"PROGRESS_{word.name}") for word in ProgressWord}


def place_from_token(token: str) -> Place:
    """Behind which item a page begins; before all of them for the first page.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, no token of this broker.
    """
    word, colon, number = cursor_from_token(token).partition(":")
    if not token:
        return (0, 0)
    if not (colon and word.isdecimal() and number.isdecimal()):
        raise invalid_request("page_token", "is not a token of this broker")
    return (int(word), int(number))


def progress_response(progress: RequestProgress, *, after: Place, most: int) -> pb.GetRenewalRequestResponse:
    """The request with the items behind a place, as many as are wanted and fit into a message."""
    request = progress.request
    response = pb.GetRenewalRequestResponse(
        requested_by=request.requester,
        reason=request.reason,
        counts=[
            pb.GetRenewalRequestResponse.Count(progress=_WORDS[word], certificate_count=progress.counts[word])
            for word in sorted(progress.counts, key=lambda word: word.value)
        ],
        done=progress.done,
    )
    put_time(request.create_time, response.request_time)
    if request.last_renew_time is not None:
        put_time(request.last_renew_time, response.last_renew_time)
    size = response.ByteSize()
    first = bisect.bisect_right(progress.items, after, key=place_of)
    for number, one in enumerate(progress.items[first : first + most + 1]):
        item = _item(one)
        size += item.ByteSize() + 8
        if number == most or size > MESSAGE_ROOM:
            word, place = place_of(progress.items[first + number - 1])
            response.next_page_token = token_from_cursor(f"{word}:{place}")
            break
        response.items.append(item)
    return response


def _item(one: ItemProgress) -> pb.GetRenewalRequestResponse.Item:
    wanted = one.followed.item
    message = pb.GetRenewalRequestResponse.Item(
        host=wanted.host,
        certificate_name=one.certificate_name,
        certificate_id=wanted.certificate_id,
        progress=_WORDS[one.word],
        reason=printable(one.reason, _MOST_REASON),
        new_certificate_id=one.followed.new_certificate_id,
    )
    put_time(wanted.renew_time, message.renew_time)
    if one.next_attempt_time is not None:
        put_time(one.next_attempt_time, message.next_attempt_time)
    return message
