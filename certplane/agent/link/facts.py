"""What a host says of itself when its stream begins: how its agent runs, and by which roots it knows the broker."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes

from certplane import __version__
from certplane.agent.link.state import LinkState
from certplane.config.bundles import read_ca_bundle
from certplane.errors import ConfigurationError
from certplane.fleet_report.model import IDENTITY_FEATURE, MOST_ROOTS, ROLLOUT_FEATURE, AgentMode, HostFacts

_KEPT: Final = 4
"""Runs: one that a person has started among those of the timer, or a night without power, decides nothing."""
_LONGEST: Final = timedelta(days=400)


def note_run(state: LinkState, mode: AgentMode | None, now: datetime) -> LinkState:
    """The state, with how the agent runs now.

    Args:
        state: As it was saved last.
        mode: None for a command beside them, which says nothing of how the agent runs.
        now: When it has been started.
    """
    if mode is None:
        return state
    if mode is not AgentMode.TIMER:
        return replace(state, agent_mode=mode, run_times=())
    times = [time for time in state.run_times if time < now]  # a clock that was set back
    return replace(state, agent_mode=mode, run_times=(*times[1 - _KEPT :], now))


def run_interval(times: Sequence[datetime]) -> timedelta | None:
    """How often a timer starts the agent: the middle one of the last spans; None before there is one."""
    spans = sorted(later - earlier for earlier, later in pairwise(times))
    return min(statistics.median_high(spans), _LONGEST) if spans else None


def host_facts(state: LinkState, server_ca_bundle: Path) -> HostFacts:
    """What is said in hello. Blocks."""
    return HostFacts(
        agent_version=__version__,
        agent_mode=state.agent_mode,
        run_interval=run_interval(state.run_times),
        broker_roots_sha256=_fingerprints(server_ca_bundle),
        features=(IDENTITY_FEATURE, ROLLOUT_FEATURE),
    )


def _fingerprints(path: Path) -> tuple[str, ...]:
    try:
        bundle = read_ca_bundle(path, only_cas=False)
    except ConfigurationError:
        return ()  # as in the middle of a replacement; whatever else reads it says so
    found = dict.fromkeys(certificate.fingerprint(hashes.SHA256()).hex() for certificate in bundle.certificates)
    return tuple(found)[:MOST_ROOTS]
