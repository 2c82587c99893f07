"""Runs the sections and prints their figures (see the package's docstring).

    scripts/bench issue orders          measure these sections
    scripts/bench goals                 print the goals with what was measured last; measures nothing
    scripts/bench --python /usr/bin/python3 issue    the same with another Python, in an environment of its own

What is measured is kept in build/bench.json, section by section, with the Python it was measured with.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks import (
    agent,
    audit,
    audit_chain,
    broker_open,
    brokers,
    ctl,
    fleet_index,
    growth,
    issue,
    keeper,
    load,
    night,
    orders,
    result,
    rollout,
    start,
    streams,
)
from benchmarks.interpreter import describe
from benchmarks.result import Figure

_ROOT = Path(__file__).resolve().parents[2]
GOALS: Final = "goals"

WANTED: Final = (
    ("issue", "cached issue, CSR verified, req/s to echo", ">= 0.45"),
    ("issue", "cached issue, CSR seen before, req/s to echo", ">= 0.72"),
    ("issue", "cached issue alone, mean latency to echo's", "<= 2.9"),
    ("orders", "event loop, ms late at p99 during 200 orders", "<= 10"),
    ("orders", "cached issue beside 200 orders, req/s to nothing beside", ">= 0.80"),
    ("orders", "processor time an order, all the broker's processes, ms", "<= 18"),
    ("streams", "streams opened/s to OpenSSL's handshakes/s", ">= 0.52"),
    ("streams", "memory of an idle stream above a bare one, KB", "<= 8"),
    ("streams", "a directive to all, last receipt to bare", "<= 1.3"),
    ("reports", "a renewal's reports/s to audit events/s", ">= 0.88"),
    ("reports", "reports with an event each/s to audit events/s", ">= 0.48"),
    ("fleet", "health of 40000 certificates after a policy reload, s", "<= 1"),
    ("fleet", "summary of 10000 hosts, s", "<= 0.2"),
    ("fleet", "page of 10000 hosts by health, its 30 or so hosts read, s", "<= 0.1"),
    ("fleet", "index, longest hold of the loop, ms", "<= 20"),
    ("growth", "start with 100000 hosts, cold, s", "<= 5"),
    ("growth", "longest hold of the loop by a call, ms", "<= 30"),
    ("start", "broker, start with an existing database to first accept, s", "<= 0.8"),
    ("start", "broker idle, resident memory, MB", "<= 85"),
    ("ctl", "certplanectl fleet, first byte, s", "<= 0.5"),
    ("ctl", "certplanectl summary, first byte, s", "<= 0.5"),
    ("agent", "agent, run --once with nothing due, processor time, ms", "<= 200"),
    ("agent", "agent idle, resident memory, MB", "<= 50"),
    ("night", "rollout of all without limits, to plain orders at once", "<= 1.3"),
    ("night", "new keys for all in rings, to the limits' lower bound", "<= 1.15"),
    ("night", "the same with a broker killed", "<= 1.15"),
    ("night", "windows of a third moved by the CA, to the limits' lower bound", "<= 1.15"),
    ("night", "hosts activated outside the failing ring", "<= 0"),
    ("night", "certificates revoked while served", "<= 0"),
    ("keeper", "requests lost over 100 certificate changes at 200 req/s", "<= 0"),
    ("keeper", "lines of a Python service that keeps its own certificate", "<= 10"),
    ("rollout", "rollout of 10000 certificates, create, s", "<= 5"),
    ("rollout", "rollout of 10000 certificates, memory, MB", "<= 30"),
)
"""Section, figure and goal."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for; `share` is of the streams' numbers."""

    rounds: int
    seconds: float
    share: float


def _issue(folder: Path, wish: Wish) -> list[Figure]:
    ghz = load.find_ghz()
    if ghz is None:
        print("left out: issue (there is no ghz; scripts/bench builds it where there is Go)", file=sys.stderr)
        return []
    measured = issue.measure(folder, ghz, _protoset(folder), rounds=wish.rounds, seconds=wish.seconds)
    return issue.figures(asyncio.run(measured))


def _orders(folder: Path, wish: Wish) -> list[Figure]:
    ghz = load.find_ghz()
    if ghz is None:
        print("left out: cached issues beside orders (there is no ghz)", file=sys.stderr)
    return orders.figures(asyncio.run(orders.measure(folder, ghz, _protoset(folder), rounds=wish.rounds)))


def _bad_day(folder: Path, wish: Wish) -> list[Figure]:
    return orders.bad_day_figures(asyncio.run(orders.measure_bad_day(folder, rounds=wish.rounds)))


def _certbot(folder: Path, _: Wish) -> list[Figure]:
    certbot = shutil.which("certbot")
    if certbot is None:
        print("left out: certbot (scripts/bench installs it where it can)", file=sys.stderr)
        return []
    return orders.peer_figures(asyncio.run(orders.measure_peer(folder, Path(certbot))))


def _protoset(folder: Path) -> Path:
    protoset = folder / "certplane.binpb"
    subprocess.run(["buf", "build", "proto", "-o", str(protoset)], check=True, cwd=_ROOT)
    return protoset


def _agent(folder: Path, wish: Wish) -> list[Figure]:
    return agent.figures(asyncio.run(agent.measure(folder, rounds=wish.rounds)))


def _ctl(folder: Path, wish: Wish) -> list[Figure]:
    return ctl.figures(asyncio.run(ctl.measure(folder, rounds=wish.rounds)))


def _start(folder: Path, wish: Wish) -> list[Figure]:
    return start.figures(asyncio.run(start.measure(folder, rounds=wish.rounds)))


def _audit(folder: Path, wish: Wish) -> list[Figure]:
    proof = audit_chain.measure(folder, rounds=wish.rounds, seconds=wish.seconds)
    return [*audit.figures(audit.measure(folder, rounds=wish.rounds, seconds=wish.seconds)), *proof]


def _streams(folder: Path, wish: Wish) -> list[Figure]:
    ghz = load.find_ghz()
    if ghz is None:
        print("left out: unary calls beside idle streams (there is no ghz)", file=sys.stderr)
    rounds = streams.measure(folder, ghz, _protoset(folder), rounds=wish.rounds, seconds=wish.seconds, share=wish.share)
    return streams.figures(rounds)


def _held(folder: Path, wish: Wish) -> list[Figure]:
    return streams.held_figures(folder, share=wish.share)


def _returns(folder: Path, wish: Wish) -> list[Figure]:
    return streams.return_figures(folder, rounds=wish.rounds, share=wish.share)


def _reports(folder: Path, wish: Wish) -> list[Figure]:
    return streams.report_figures(folder, rounds=wish.rounds, share=wish.share)


def _brokers(folder: Path, wish: Wish) -> list[Figure]:
    return brokers.measure(folder, rounds=wish.rounds, share=wish.share)


def _store_open(folder: Path, wish: Wish) -> list[Figure]:
    return broker_open.measure(folder, share=wish.share)


def _night(folder: Path, wish: Wish) -> list[Figure]:
    return night.figures(night.measure(folder, share=wish.share))


def _rollout(folder: Path, wish: Wish) -> list[Figure]:
    return rollout.measure(folder, share=wish.share)


def _keeper(folder: Path, wish: Wish) -> list[Figure]:
    return keeper.measure(folder, share=wish.share)


def _fleet(folder: Path, wish: Wish) -> list[Figure]:
    return fleet_index.measure(folder, rounds=wish.rounds, share=wish.share)


def _growth(folder: Path, wish: Wish) -> list[Figure]:
    return growth.measure(folder, share=wish.share)


SECTIONS: Final[Mapping[str, Callable[[Path, Wish], list[Figure]]]] = {
    "issue": _issue,
    "audit": _audit,
    "agent": _agent,
    "start": _start,
    "ctl": _ctl,
    "orders": _orders,
    "bad-day": _bad_day,
    "certbot": _certbot,
    "streams": _streams,
    "held": _held,
    "returns": _returns,
    "reports": _reports,
    "brokers": _brokers,
    "store-open": _store_open,
    "fleet": _fleet,
    "growth": _growth,
    "night": _night,
    "rollout": _rollout,
    "keeper": _keeper,
}
"""Each by itself takes a few minutes with three rounds; certbot ten, and growth as long the first time, when it fills
5 GB in the user's cache folder (`--share 0.01` is a small one)."""
_ASKED_FOR: Final = ("certbot", "growth", "brokers", "store-open", "night", "rollout")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sections",
        nargs="*",
        help=f"of {', '.join(SECTIONS)} (all but {', '.join(_ASKED_FOR)} when none is named), or {GOALS}: see above",
    )
    parser.add_argument("--rounds", type=int, default=3, help="A and B in turn, this often; median of 5 for a goal")
    parser.add_argument("--seconds", type=float, default=5, help="length of one run (default 5)")
    parser.add_argument(
        "--share", type=float, default=1, help="of the hosts of streams, growth, night, rollout: 0.1 is ten times fewer"
    )
    parser.add_argument("--json", type=Path, default=_ROOT / "build" / "bench.json", help="where the figures go too")
    # Taken by scripts/bench, which makes the environment; here for --help.
    parser.add_argument("--python", metavar="PROGRAM", help="what runs everything, such as /usr/bin/python3")
    arguments = parser.parse_args()
    unknown = set(arguments.sections) - {*SECTIONS, GOALS}
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)} and {GOALS}")
    sections = [name for name in arguments.sections if name != GOALS]
    if not arguments.sections:
        sections = [name for name in SECTIONS if name not in _ASKED_FOR]
    if sections:
        _measure(sections, Wish(arguments.rounds, arguments.seconds, arguments.share), arguments.json)
    if GOALS in arguments.sections:
        print("\n".join(result.goals(result.kept(arguments.json), WANTED)))


def _measure(sections: list[str], wish: Wish, kept: Path) -> None:
    python = describe()
    print(python)
    figures: list[Figure] = []
    for section in sections:
        print(f"measuring {section} ...", file=sys.stderr)
        # Not in /tmp, which may be memory: durable writes are part of what is measured.
        with tempfile.TemporaryDirectory(dir=_ROOT / "build", prefix="bench-") as folder:
            found = SECTIONS[section](Path(folder), wish)
        result.keep(kept, section, python, datetime.now(UTC).isoformat(timespec="seconds"), found)
        figures += found
    print("\n".join(result.table(figures)))


if __name__ == "__main__":
    main()
