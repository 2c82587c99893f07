"""Loopback addresses and free ports.

A port that was free can be taken a moment later: there is no way to hand a bound socket to step-ca, Pebble or BIND.
Starting a server is therefore tried again on another port (`process.start_on_free_port`).
"""

from __future__ import annotations

import random
import socket

LOOPBACK = "127.0.0.1"
_STEADY = range(10_240, 32_768)
"""Below those that the kernel gives to outgoing connections (32768 and up): nobody takes the port of a server that is
down, and no connection to it can meet itself."""


def free_port(addresses: tuple[str, ...] = (LOOPBACK,), *, udp: bool = False) -> int:
    """A port that is free at this moment on all of `addresses`, for TCP and, if asked, for UDP too.

    Raises:
        OSError: an address can't be bound at all, or no common port was found in 20 tries.
    """
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM) if udp else (socket.SOCK_STREAM,)
    last: OSError | None = None
    for _ in range(20):
        port = 0
        opened: list[socket.socket] = []
        try:
            for address in addresses:
                for kind in kinds:
                    opened.append(sock := socket.socket(socket.AF_INET, kind))
                    sock.bind((address, port))
                    port = sock.getsockname()[1]
        except OSError as error:
            if port == 0:
                raise
            last = error
        else:
            return port
        finally:
            for sock in opened:
                sock.close()
    raise OSError("no port is free on all addresses") from last


def steady_port() -> int:
    """A port that is free, and stays so while the server that has it is down for a while.

    Raises:
        OSError: none of a hundred is free.
    """
    for port in random.sample(_STEADY, 100):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise OSError("none of a hundred ports is free")
