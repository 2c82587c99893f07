"""What notifications are about. Texts of hosts in it are one line each, cleaned where they come in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from certplane.runtime.health import HealthActor, HealthWord, Severity


class MessageKind(StrEnum):
    """What a message says of its troubles."""

    OPENED = "opened"
    """They have begun."""
    WORSE = "worse"
    """One that was told of has a worse health, or many more certificates."""
    STILL = "still"
    """One that was told of goes on: a reminder."""
    OVER = "over"
    """No certificate has them any more."""
    DIGEST = "digest"
    """How the fleet is, once a week."""
    TEST = "test"
    """An operator tries whether messages arrive."""


OF_BROKER: Final = "BROKER "
"""What the cause of a broker's own trouble begins with; no certificate's does."""
OF_FLEET: Final = "FLEET "
"""Likewise of what is told of the fleet as a whole: an incident, say."""


@dataclass(frozen=True, slots=True)
class OwnTrouble:
    """What is wrong with the broker itself, before it is known by what happens to certificates.

    Attributes:
        cause: In short, the same as long as it lasts; `SPACE_LOW`, say.
        severity: How bad it is.
        text: What is wrong, for people.
        remedy: What can be done about it.
        of_fleet: Whether it is of the fleet as a whole instead, and the same at whichever broker.
    """

    cause: str
    severity: Severity
    text: str
    remedy: str
    of_fleet: bool = False


@dataclass(frozen=True, slots=True)
class Trouble:
    """All certificates that one cause affects, as a notifier hears of them; or a trouble of broker or fleet as such.

    One of broker or fleet has no certificates and no hosts; its `word` only says how bad it is.

    Attributes:
        cause: Which.
        word: The worst health among them.
        certificate_count: How many; 0 when it is over.
        host_count: Of how many hosts and services.
        service_count: How many of those are services.
        hosts: Some of those, those that are worst off first, by their labels in the policy.
        example_host: The one of the worst certificate, by its name.
        example_certificate: That certificate, by its name in the host's configuration.
        text: What is wrong with that one; empty until it is looked up, since the index of the fleet has no texts.
        remedy: What can be done about it; likewise.
        actor: Who can; None where that isn't known.
        since: Since when the first of them has it.
        next_attempt: The next try of any of them.
        soonest_end: The soonest end of what is in use.
    """

    cause: str
    word: HealthWord
    certificate_count: int
    host_count: int
    hosts: tuple[str, ...] = ()
    example_host: str = ""
    example_certificate: str = ""
    text: str = ""
    remedy: str = ""
    actor: HealthActor | None = None
    since: datetime | None = None
    next_attempt: datetime | None = None
    soonest_end: datetime | None = None
    service_count: int = 0

    @property
    def is_of_broker(self) -> bool:
        """Whether it is a broker's own, or of the fleet as a whole: it has no certificates of its own."""
        return self.cause.startswith((OF_BROKER, OF_FLEET))


@dataclass(frozen=True, slots=True)
class HealthCount:
    """How many certificates have a health."""

    word: HealthWord
    count: int


@dataclass(frozen=True, slots=True)
class FleetState:
    """The whole fleet at the time of a message.

    Attributes:
        host_count: Hosts, services left out.
        connected_count: How many of them have a stream.
        counts: Certificates by health, the worst first; healths that none has are left out.
        ending_count: Certificates that end within the next seven days.
    """

    host_count: int = 0
    connected_count: int = 0
    counts: tuple[HealthCount, ...] = ()
    ending_count: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """What a notifier is to deliver.

    Attributes:
        message_id: Its own for good: a receiver that gets it twice can tell.
        notifier: Whose; a key of `notifications`.
        kind: What it says.
        create_time: When it was true.
        troubles: What it is about, the worst first; those of a message about very many are the first of them.
        trouble_count: How many it is about.
        fleet: The whole fleet then.
    """

    message_id: str
    notifier: str
    kind: MessageKind
    create_time: datetime
    troubles: tuple[Trouble, ...] = ()
    trouble_count: int = 0
    fleet: FleetState = FleetState()


@dataclass(frozen=True, slots=True)
class Told:
    """A trouble that a notifier was told of, and that isn't over.

    Attributes:
        notifier: Which notifier.
        cause: The trouble's.
        word: The worst health that it was told to have since the last reminder.
        certificate_count: How many certificates it was last told to have.
        open_time: Since when it was told to be.
        tell_time: When it was last told of.
    """

    notifier: str
    cause: str
    word: HealthWord
    certificate_count: int
    open_time: datetime
    tell_time: datetime
