"""What a full-screen watch knows: the fleet, the summary, answers about what is open, and how the connection is."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from google.protobuf.message import Message

from certplane.ctl.watch.fleet import Fleet
from certplane.ctl.watch.page import Question
from certplane.v1 import fleet_pb2

PERIOD: Final = timedelta(hours=24)
"""What ends within it is next."""
_ANSWERS: Final = 100
"""That are kept: of the pages that were opened last."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question: a message of the service, or why there is none."""

    messages: tuple[Message, ...] = ()
    error: str = ""


@dataclass(slots=True)
class Known:
    """All of it. `trouble` is why the watch is interrupted, and `again` when it is tried again; empty while it runs.

    Attributes:
        where: The broker, as the configuration names it.
        summary: The broker's; None before it has said one, and of a broker that knows none.
        summary_trouble: Why there is none, or only an old one.
        heard: When the broker was last heard.
        changes: Messages since the watch began, for those who paused.
    """

    where: str
    fleet: Fleet = field(default_factory=Fleet)
    summary: fleet_pb2.SummarizeFleetResponse | None = None
    summary_trouble: str = ""
    answers: dict[Question, Answer] = field(default_factory=dict)
    trouble: str = ""
    again: datetime | None = None
    heard: datetime | None = None
    changes: int = 0

    def keep(self, question: Question, answer: Answer) -> None:
        """Keep an answer, and of all those that are the newest."""
        self.answers.pop(question, None)
        self.answers[question] = answer
        while len(self.answers) > _ANSWERS:
            del self.answers[next(iter(self.answers))]

    def standing_still(self) -> "Known":
        """What is known now, whatever comes."""
        return replace(self, fleet=self.fleet.standing_still(), answers=dict(self.answers))
