"""Attacks on a broker, run by `scripts/attack`: what does a neighbour feel while a hostile host does its worst?

Everything is on loopback and bounded in count and time: a whole sandbox is started, attacked and removed. The neighbour
is a host with one cached certificate that it asks for again and again; its p50 and p99 under attack are compared with
those of the quiet moments just before. Machines are shared and noisy, so a factor means something and a millisecond
doesn't. Attackers have a lower priority (`nice`), as on a network they would have processors of their own.

    table.py      every attack: its name, the module that runs it, the factor that is allowed. ADD YOURS HERE
    target.py     what an attack gets: the port, an identity, connections and streams
    world.py      the sandbox with its broker, and the identities of a CA that the broker trusts
    neighbour.py  the neighbour, and what it felt
    hostile.py    the process that one hostile host is
    paths.py labels.py streams.py handshakes.py calls.py budget.py growth.py    the attacks

To add one: write `async def run(target: Target, seconds: float) -> Counter[str]` in a module of its own, which ends by
itself after `seconds` and returns what it counted, and give it a row in `table.py`.
"""
