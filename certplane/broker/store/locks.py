"""Locks of decisions that look at several rows and that brokers of one database must make one after another.

"Count, then add" is safe in one broker, since it has one writer. Two brokers that decide in the same moment would both
count before either has added. Such a change names what it decides about; its transaction, all of a group's changes
together, has these locks before it reads anything, in ascending order and until its end. Nobody waits in a circle then:
who waits for a lock of these has none of a greater number, and nothing else yet.

On SQLite a transaction that writes is alone anyway.
"""

from __future__ import annotations

import hashlib


def lock_key(kind: str, *about: str) -> int:
    """The number of the lock of decisions of a kind about something, from 0 to 2^31 - 1.

    Two things may have one number: then they wait for each other, which is all that it does.
    """
    digest = hashlib.sha256("\0".join((kind, *about)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
