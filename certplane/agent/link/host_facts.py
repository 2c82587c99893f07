"""What the broker is told of this host's system."""

import os
import sys
from pathlib import Path

from certplane.runtime.text import printable

_MOST_FACT_BYTES = 256
"""The broker's limit for a host fact."""


def host_facts() -> dict[str, str]:
    """What the broker may know of this host; nothing that names its users or its addresses."""
    system = os.uname()
    facts = {
        "os": _os_release() or system.sysname,
        "kernel": system.release,
        "machine": system.machine,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
    }
    return {name: value.encode()[:_MOST_FACT_BYTES].decode(errors="ignore") for name, value in facts.items() if value}


def _os_release() -> str:
    """PRETTY_NAME of os-release(5); empty where there is none."""
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    names = [line.partition("=")[2].strip("\"'") for line in lines if line.startswith("PRETTY_NAME=")]
    return printable(names[0], _MOST_FACT_BYTES) if names else ""
