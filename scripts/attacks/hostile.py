"""The process that one hostile host is: `python -m attacks.hostile NAME --folder F --port P --number N --seconds S`.

It prints `ready`, attacks when it reads a line, ends by itself, and prints what it counted as a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from attacks.table import ATTACKS
from attacks.target import Target

_GRACE = 10.0
"""What an attack may take longer than it was told, to hang up."""


async def _attack(name: str, target: Target, seconds: float) -> dict[str, int]:
    (attack,) = (attack for attack in ATTACKS if attack.name == name)
    async with asyncio.timeout(seconds + _GRACE):
        return dict(await attack.run(target, seconds))


def main() -> None:
    """Attack once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    os.nice(10)
    print("ready", flush=True)
    sys.stdin.readline()
    target = Target(arguments.folder, arguments.port, arguments.number)
    print(json.dumps(asyncio.run(_attack(arguments.name, target, arguments.seconds))), flush=True)
    sys.stdout.flush()
    os._exit(0)  # whatever still hangs up: the broker is to see a host that goes


if __name__ == "__main__":
    main()
