"""Loopback addresses and free ports.

A port that was free can be taken a moment later: there is no way to hand a bound socket to step-ca, Pebble or BIND.
Starting a server is therefore tried again on another port (`process.start_on_free_port`).
"""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"


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
