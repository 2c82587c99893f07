"""Command line of the sandbox: `demo` shows Certplane at work, `parts` which real parts this machine has."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from certplane.sandbox import parts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    `parts` exits with 1 when a part is left out although `CERTPLANE_REQUIRE_PARTS` demands all.
    """
    parser = argparse.ArgumentParser(prog="python -m certplane.sandbox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    parts_command = commands.add_parser("parts", help="show the real parts: found or left out, and why")
    parts_command.add_argument("--json", action="store_true", help="one JSON array instead of a table")
    parts_command.add_argument("--left-out", action="store_true", help="only what is missing, a line each")
    parts_command.add_argument("--names", action="store_true", help="with --left-out: the names alone")
    demo_command = commands.add_parser("demo", help="enroll a host, get and renew certificates, stop everything again")
    demo_command.add_argument("--keep", action="store_true", help="leave everything running, with the commands to try")
    demo_command.add_argument(
        "--folder", type=Path, metavar="DIR", help="keep all files in this empty folder (default: a temporary one)"
    )
    demo_command.add_argument(
        "--brokers",
        type=int,
        choices=range(1, 6),
        default=1,
        metavar="N",
        help="2 to 5: several brokers on one PostgreSQL, of which one is killed while it works, and one stops",
    )
    options = parser.parse_args(arguments)
    if options.command == "demo":
        # Imported here since it brings what `parts`, which scripts/setup asks, does without.
        from certplane.sandbox.demo import DemoOptions, run_demo  # noqa: PLC0415

        return run_demo(DemoOptions(keep=options.keep, folder=options.folder, brokers=options.brokers))
    return _show_parts(options)


def _show_parts(options: argparse.Namespace) -> int:
    found = parts.find_all()
    if options.json:
        print(json.dumps([_as_json(part) for part in found], indent=2))
    elif options.left_out:
        for part in found:
            if isinstance(part, parts.LeftOut):
                print(part.name if options.names else f"{part.name} ({part.kind.used_for}): {part.reason}")
    else:
        sys.stdout.write(_table(found))
    missing = any(isinstance(part, parts.LeftOut) for part in found)
    return 1 if missing and parts.all_required() else 0


def _as_json(part: parts.Part | parts.LeftOut) -> dict[str, object]:
    common = {"name": part.name, "used_for": part.kind.used_for}
    if isinstance(part, parts.LeftOut):
        return {**common, "found": False, "reason": part.reason}
    return {
        **common,
        "found": True,
        "path": str(part.path),
        "version": part.version,
        "capabilities": sorted(part.capabilities),
    }


def _table(found: Sequence[parts.Part | parts.LeftOut]) -> str:
    rows = [("part", "version", "used for", "where")]
    for part in found:
        if isinstance(part, parts.LeftOut):
            rows.append((part.name, "left out", part.kind.used_for, part.reason))
        else:
            notes = f" ({', '.join(sorted(part.capabilities))})" if part.capabilities else ""
            rows.append((part.name, part.version or "unknown", part.kind.used_for, f"{part.path}{notes}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]) + "\n"
        for row in rows
    )
