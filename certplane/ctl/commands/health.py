"""`certplanectl health`: each broker of ctl.yml by itself, which no other command asks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from certplane.ctl.session import Session
from certplane.errors import CertplaneError
from certplane.runtime.columns import Column
from certplane.runtime.command import FAILED, OK
from certplane.runtime.terminal import Style
from certplane.runtime.text import printable_values

_MOST_TEXT = 2000


@dataclass(frozen=True, slots=True)
class Answer:
    """What one broker said. `seconds` is how long that took, `identity` and `roles` whom it takes this caller for."""

    broker: str
    serving: bool
    version: str = ""
    identity: str = ""
    roles: tuple[str, ...] = ()
    policy_hash: str = ""
    seconds: float = 0.0
    error: str = ""


COLUMNS: Final[Sequence[Column[Answer]]] = (
    Column("BROKER", lambda each: each.broker, 0, least=16),
    Column(
        "STATE",
        lambda each: "SERVING" if each.serving else "NOT SERVING",
        0,
        style=lambda each: Style.GOOD if each.serving else Style.BAD,
    ),
    Column("VERSION", lambda each: each.version, 1),
    Column("IDENTITY", lambda each: each.identity, 2, least=12),
    Column("ROLES", lambda each: " ".join(each.roles), 3),
    Column("POLICY", lambda each: each.policy_hash[:8], 4, wide_text=lambda each: each.policy_hash),
    Column("TOOK", lambda each: f"{each.seconds:.2f} s", 5),
)


async def health(_: argparse.Namespace, session: Session) -> int:
    """Ask each broker whether it serves, and whom it takes this identity for."""
    urls = [str(url) for url in session.context.settings.broker.all_urls]
    answers = [await _ask(session, url) for url in urls]
    out = session.out
    if out.for_people:
        out.table(COLUMNS, answers)
    else:
        for each in answers:
            out.object(printable_values(_members(each), _MOST_TEXT))
    for each in answers:
        if each.error:
            session.say(each.error)
    return OK if all(each.serving and not each.error for each in answers) else FAILED


async def _ask(session: Session, url: str) -> Answer:
    begin = session.clock.monotonic()
    try:
        async with session.client([url]) as client:
            serving = await client.is_serving()
            seen = await client.identity()
    except CertplaneError as failure:
        return Answer(url, serving=False, seconds=session.clock.monotonic() - begin, error=str(failure))
    seconds = session.clock.monotonic() - begin
    error = (
        ""
        if serving
        else f"the broker at {url} says that it isn't serving; see its log, and `{session.command('brokers')}`"
    )
    name, roles = seen.identity.name, tuple(seen.identity.roles)
    return Answer(url, serving, seen.broker_version, name, roles, seen.policy_hash, seconds, error)


def _members(each: Answer) -> dict[str, object]:
    """In the dialect of the messages: no member that says nothing."""
    members = {"policyHash" if key == "policy_hash" else key: value for key, value in asdict(each).items() if value}
    return {**members, "seconds": round(each.seconds, 3), "serving": each.serving}
