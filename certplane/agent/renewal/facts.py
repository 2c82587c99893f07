"""What is known of one certificate on this host: what the rules of renewal decide from."""

from dataclasses import dataclass

from certplane.agent.model import LineageStatus, PendingRequest, Version


@dataclass(frozen=True, slots=True)
class LineageFacts:
    """What is on disk: `versions` oldest first, `current` the one that is shown."""

    versions: tuple[Version, ...]
    current: Version | None
    pending: PendingRequest | None
    status: LineageStatus
