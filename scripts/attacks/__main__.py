"""Runs attacks and prints what the neighbour felt (see the package's docstring)."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from attacks.budget import CERTIFICATES
from attacks.table import ATTACKS, Attack
from attacks.world import World

_BUILD = Path(__file__).resolve().parents[2] / "build"


async def _attack(world: World, attack: Attack, hosts: int, seconds: float) -> bool:
    quiet = await world.neighbour.feel(seconds)
    hostile = [world.hostile(attack.name, number, seconds + 2) for number in range(1, hosts + 1)]
    if attack.denied:
        await world.shut_out(denied=True)
    processor, written = world.broker_seconds, world.written_megabytes
    for host in hostile:
        host.begin()
    await asyncio.sleep(1)
    felt = await world.neighbour.feel(seconds)
    counted = [await asyncio.to_thread(host.end) for host in hostile]
    used, wrote = world.broker_seconds - processor, world.written_megabytes - written
    if attack.denied:
        await world.shut_out(denied=False)
    factor, goal = felt.quantile(0.99) / quiet.quantile(0.99), attack.goal(hosts)
    burnt = sum(json.loads(counts).get(CERTIFICATES, 0) for counts in counted)
    megabytes = attack.megabytes * hosts
    well = factor < goal and wrote < megabytes and (attack.most is None or burnt <= attack.most)
    print(f"{attack.name} by {hosts}: quiet {quiet}; under attack {felt}")
    print(f"    p50 x{felt.quantile(0.5) / quiet.quantile(0.5):.1f}, p99 x{factor:.1f} (goal: under {goal:g}) ", end="")
    print("met" if well else "NOT MET", end="; ")
    print(f"broker: {used:.1f} s of processor, {world.broker_megabytes:.0f} MB, ", end="")
    print(f"{wrote:.1f} MB written (goal: under {megabytes:g})")
    if attack.most is not None:
        print(f"    {burnt} certificates of the CA's (at most {attack.most})")
    print(f"    hostile: {'; '.join(counted)}", flush=True)
    await asyncio.sleep(3)  # what was left of the attack is not the next one's
    return well


async def _run(names: list[str], seconds: float, hosts: int | None, *, firewall: bool) -> bool:
    _BUILD.mkdir(exist_ok=True)
    well = True
    # Not in /tmp, which may be memory: the broker's durable writes are part of what a neighbour waits for.
    with tempfile.TemporaryDirectory(dir=_BUILD, prefix="attack-") as folder:
        async with World.open(Path(folder)) as world:
            if firewall:
                world.raise_firewall()
            for attack in ATTACKS:
                if attack.name in names:
                    for count in [hosts] if hosts is not None else attack.hosts:
                        well = await _attack(world, attack, count, seconds) and well
    return well


def main() -> None:
    """Run what was asked for; status 1 when a goal was not met."""
    names = [attack.name for attack in ATTACKS]
    rows = "\n".join(f"  {attack.name:20} {attack.what}" for attack in ATTACKS)
    parser = argparse.ArgumentParser(
        prog="scripts/attack", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"attacks:\n{rows}",
        description="Attack a broker of our own on loopback, and print what a neighbour felt.",
    )  # fmt: skip
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help="all when none is named")
    parser.add_argument("--seconds", type=float, default=8, help="length of each (default 8)")
    parser.add_argument("--hosts", type=int, choices=range(1, 5), help="hostile hosts (default: as the table says)")
    parser.add_argument(
        "--firewall", action="store_true",
        help="behind the nftables rules of docs/limits.md, in a network namespace of its own",
    )  # fmt: skip
    arguments = parser.parse_args()
    unknown = set(arguments.attacks) - set(names)
    if unknown:
        parser.error(f"no attack {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    well = asyncio.run(
        _run(arguments.attacks or names, arguments.seconds, arguments.hosts, firewall=arguments.firewall)
    )
    raise SystemExit(0 if well else 1)


if __name__ == "__main__":
    main()
