"""Runs the sections and prints their figures as a table and as JSON (see the package's docstring)."""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import agent, audit, issue, load, orders, streams
from benchmarks.result import Figure

_ROOT = Path(__file__).resolve().parents[2]
_SECTIONS = ("issue", "audit", "agent", "orders", "streams")


def _issue(folder: Path, rounds: int, seconds: float) -> list[Figure]:
    ghz = load.find_ghz()
    if ghz is None:
        print("left out: issue (there is no ghz; scripts/bench builds it where there is Go)", file=sys.stderr)
        return []
    return issue.figures(asyncio.run(issue.measure(folder, ghz, _protoset(folder), rounds=rounds, seconds=seconds)))


def _orders(folder: Path, rounds: int, _seconds: float) -> list[Figure]:
    ghz, certbot = load.find_ghz(), shutil.which("certbot")
    if ghz is None:
        print("left out: cached issues beside orders (there is no ghz)", file=sys.stderr)
    if certbot is None:
        print("left out: certbot (scripts/bench orders installs it where it can)", file=sys.stderr)
    peer = Path(certbot) if certbot else None
    return orders.figures(asyncio.run(orders.measure(folder, ghz, _protoset(folder), peer, rounds=rounds)))


def _protoset(folder: Path) -> Path:
    protoset = folder / "certplane.binpb"
    subprocess.run(["buf", "build", "proto", "-o", str(protoset)], check=True, cwd=_ROOT)
    return protoset


def _agent(folder: Path, rounds: int, _seconds: float) -> list[Figure]:
    return agent.figures(asyncio.run(agent.measure(folder, rounds=rounds)))


def _audit(folder: Path, rounds: int, seconds: float) -> list[Figure]:
    return audit.figures(audit.measure(folder, rounds=rounds, seconds=seconds))


def _streams(folder: Path, rounds: int, seconds: float, *, share: float) -> list[Figure]:
    ghz = load.find_ghz()
    if ghz is None:
        print("left out: unary calls beside idle streams (there is no ghz)", file=sys.stderr)
    return streams.figures(streams.measure(folder, ghz, _protoset(folder), rounds=rounds, seconds=seconds, share=share))


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(_SECTIONS)}; all when none is named")
    parser.add_argument("--rounds", type=int, default=3, help="A and B in turn, this often (default 3)")
    parser.add_argument("--seconds", type=float, default=5, help="length of one run (default 5)")
    parser.add_argument("--share", type=float, default=1, help="of the streams' numbers: 0.1 is ten times fewer")
    parser.add_argument("--json", type=Path, default=_ROOT / "build" / "bench.json", help="where the figures go too")
    arguments = parser.parse_args()
    unknown = set(arguments.sections) - set(_SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(_SECTIONS)}")
    measures = {"issue": _issue, "agent": _agent, "audit": _audit, "orders": _orders}
    measures["streams"] = functools.partial(_streams, share=arguments.share)
    figures: list[Figure] = []
    for section in arguments.sections or _SECTIONS:
        print(f"measuring {section} ...", file=sys.stderr)
        # Not in /tmp, which may be memory: durable writes are part of what is measured.
        with tempfile.TemporaryDirectory(dir=_ROOT / "build", prefix="bench-") as folder:
            figures += measures[section](Path(folder), arguments.rounds, arguments.seconds)
    width = max((len(str(row["figure"])) for row in figures), default=6)
    print(f"{'figure':{width}}  {'median':>7}  {'least':>7}  {'most':>7}  goal")
    for row in figures:
        print(f"{row['figure']:{width}}  {row['median']:7.2f}  {row['least']:7.2f}  {row['most']:7.2f}  {row['goal']}")
    arguments.json.parent.mkdir(exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
