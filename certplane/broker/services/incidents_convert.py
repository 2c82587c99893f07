"""Between `IncidentService`'s messages and the broker's values."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from certplane.broker.budget.forecast import Forecast
from certplane.broker.incidents.model import Incident
from certplane.broker.incidents.ports import Place
from certplane.broker.incidents.words import remedy
from certplane.broker.services.budget_convert import forecast_message
from certplane.broker.services.convert import cursor_from_token, invalid_request, token_from_cursor
from certplane.rpc.times import put_time
from certplane.runtime.text import printable
from certplane.v1 import incident_pb2 as pb

_PLACE: Final = re.compile(r"(open|closed);([0-9T:.+-]{19,40});([A-Za-z0-9._-]{1,64})")
_MOST_TEXT: Final = 1000


def incident_message(incident: Incident, forecast: Forecast | None = None) -> pb.Incident:
    """As it was last seen; `forecast` is of what isn't replaced yet."""
    figures = incident.figures
    message = pb.Incident(
        incident_id=incident.incident_id,
        issuer=incident.issuer,
        state=pb.Incident.STATE_OPEN if incident.close_time is None else pb.Incident.STATE_CLOSED,
        explanation_url=incident.explanation_url,
        certificate_count=figures.certificate_count,
        holder_count=figures.holder_count,
        replaced_count=figures.replaced_count,
        in_use_count=figures.in_use_count,
        hurt_count=figures.hurt_count,
        failing_count=figures.failing_count,
        rollout_id=incident.rollout_id,
        remedy=printable(remedy(incident), _MOST_TEXT),
        hosts=figures.hosts,
    )
    put_time(incident.open_time, message.open_time)
    if incident.close_time is not None:
        put_time(incident.close_time, message.close_time)
    if incident.deadline is not None:
        put_time(incident.deadline, message.deadline)
    if forecast is not None:
        message.forecast.CopyFrom(forecast_message(forecast))
        last, deadline = forecast.last_order_time, incident.deadline
        message.late = deadline is not None and (forecast.never_count > 0 or (last is not None and last > deadline))
    return message


def place_from(token: str) -> Place | None:
    """The place that a page token names; None for the first page.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, no token of this broker.
    """
    if not token:
        return None
    match = _PLACE.fullmatch(cursor_from_token(token))
    if match is None:
        raise invalid_request("page_token", "is none that a broker gave")
    part, text, incident_id = match.groups()
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise invalid_request("page_token", "is none that a broker gave") from None
    return Place(part == "closed", time.astimezone(UTC), incident_id)


def token_from(place: Place) -> str:
    """The token of a place."""
    return token_from_cursor(
        f"{'closed' if place.closed else 'open'};{place.open_time.isoformat()};{place.incident_id}"
    )
