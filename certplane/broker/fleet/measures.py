"""What the fleet measures. Labels are bounded: never a host's name."""

from __future__ import annotations

from typing import Final

from certplane.broker.issuance.measures import Measure

STREAMS: Final = "host_streams"
STREAMS_ENDED: Final = "host_streams_ended"
REPORTS: Final = "renewal_reports"
DIRECTIVES: Final = "directives"
DIRECTIVE_SECONDS: Final = "directive_answer"
STREAM_MISUSES: Final = "stream_misuses"
WATCHERS: Final = "renewal_watchers"
CERTIFICATES: Final = "host_certificates"
HEALTH: Final = "fleet_certificates"
SOONEST_END: Final = "fleet_soonest_not_after_timestamp_seconds"

FLEET_MEASURES: Final = (
    Measure(STREAMS, "level", (), "Hosts with a status stream."),
    Measure(STREAMS_ENDED, "counter", ("reason",), "Status streams that the broker has ended, by reason."),
    Measure(REPORTS, "counter", ("result",), "Reports of hosts: durable, repeated, or failed and tried again."),
    Measure(DIRECTIVES, "counter", ("result",), "Directives: sent, taken, refused."),
    Measure(DIRECTIVE_SECONDS, "duration", (), "Time until a host has answered a directive."),
    Measure(STREAM_MISUSES, "counter", (), "Answers to directives that were never sent, or had been answered."),
    Measure(CERTIFICATES, "level", ("state",), "Certificates of all hosts, by the state that was reported last."),
    Measure(HEALTH, "level", ("health",), "Certificates of all hosts, by how bad it is with them."),
    Measure(SOONEST_END, "level", ("profile",), "The soonest end of what hosts use, Unix time; +Inf for none."),
    Measure(WATCHERS, "level", (), "Streams of WatchRenewals."),
)
