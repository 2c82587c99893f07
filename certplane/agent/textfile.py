"""This host's certificates as metrics, in a file that node_exporter's textfile collector reads (`metrics.textfile`).

The file is whole at every moment: it is replaced. It is written each minute while the agent runs, since time alone
makes a certificate expire, and at the end of `run --once`. Where it can't be written nothing else suffers; the log says
why, once until that changes, and the monitoring sees that `certplane_agent_written_timestamp_seconds` stands still.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from certplane import __version__
from certplane.agent.host import Host
from certplane.agent.overview import lineage_reports
from certplane.agent.status import LineageReport
from certplane.errors import CertplaneError
from certplane.runtime.files import open_directory
from certplane.runtime.health import HealthWord

logger = logging.getLogger(__name__)

_INTERVAL: Final = timedelta(minutes=1)
_MODE: Final = 0o644
"""It says no more than the handshakes of this host's services, and another user reads it."""

METRICS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "certplane_agent_build_info": (("version",), "1; its label says which release this is."),
    "certplane_agent_written_timestamp_seconds": ((), "When this was written, Unix time."),
    "certplane_agent_certificate_health": (
        ("certificate", "health"),
        "1 for the word that says how bad it is with a certificate, 0 for the others.",
    ),
    "certplane_agent_certificate_not_after_timestamp_seconds": (
        ("certificate",),
        "End of the certificate that is in place, Unix time.",
    ),
    "certplane_agent_certificate_renew_timestamp_seconds": (("certificate",), "When it is due, Unix time."),
    "certplane_agent_certificate_activate_timestamp_seconds": (
        ("certificate",),
        "When a newer certificate that a rollout or a window holds back is used at the latest, Unix time.",
    ),
    "certplane_agent_certificate_failures": (
        ("certificate",),
        "Requests and activations that have failed since the last that succeeded.",
    ),
}
"""Labels and help text of each gauge in the file; docs/agent.md has a row for each."""


class Textfile:
    """Writes the file."""

    def __init__(self, host: Host, path: Path) -> None:
        """Nothing is written yet."""
        self._host, self._path = host, path
        self._said = ""

    async def keep(self) -> None:
        """Write it each minute, until cancelled."""
        while True:
            try:
                await self.write()
            except Exception:  # a bug must not end the certificates' renewals
                logger.exception("metrics.textfile can't be written")
            await self._host.clock.sleep(_INTERVAL)

    async def write(self) -> None:
        """Write it once; what stands in the way is logged."""
        now = self._host.clock.now()
        identity, certificates = await lineage_reports(self._host, now)
        try:
            await self._host.disk.run(_replace, self._path, exposition([identity, *certificates], now).encode())
        except (OSError, CertplaneError) as error:
            said = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            if said != self._said:
                user = "the agent's user must be able to write in its directory"
                logger.warning("%s of metrics.textfile can't be written: %s; %s", self._path, said, user)
            self._said = said
        else:
            self._said = ""


def exposition(reports: Iterable[LineageReport], now: datetime) -> str:
    """The text, in Prometheus's format (version 0.0.4)."""
    rows: dict[str, list[str]] = {name: [] for name in METRICS}
    for name, values, value in _samples(reports, now):
        labels = ",".join(f'{label}="{_escaped(text)}"' for label, text in zip(METRICS[name][0], values, strict=True))
        rows[name].append(f"{name}{{{labels}}} {value:.0f}\n" if labels else f"{name} {value:.0f}\n")
    return "".join(
        f"# HELP {name} {METRICS[name][1]}\n# TYPE {name} gauge\n{''.join(lines)}" for name, lines in rows.items()
    )


def _samples(reports: Iterable[LineageReport], now: datetime) -> Iterator[tuple[str, tuple[str, ...], float]]:
    yield "certplane_agent_build_info", (__version__,), 1
    yield "certplane_agent_written_timestamp_seconds", (), now.timestamp()
    for each in reports:
        for word in HealthWord:
            yield "certplane_agent_certificate_health", (each.name, word.value), each.health == word.value
        for metric, moment in (
            ("not_after", each.not_after),
            ("renew", each.renew_time),
            ("activate", each.activate_after),
        ):
            if moment is not None:
                yield f"certplane_agent_certificate_{metric}_timestamp_seconds", (each.name,), moment.timestamp()
        yield "certplane_agent_certificate_failures", (each.name,), each.failures + each.activation_failures


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _replace(path: Path, data: bytes) -> None:
    with open_directory(path.absolute().parent) as folder:
        folder.replace(path.name, data, mode=_MODE)
