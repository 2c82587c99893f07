"""The one command that sets a new host up, as `certplanectl host add` prints it. Pure.

The token goes through standard input, by the shell's own `echo`: it is in no list of processes. Every other word is
quoted as a shell needs it, since some of them are a broker's.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NewHost:
    """What a new machine must be told.

    Attributes:
        name: Its identity's name.
        ca_url: Where the identity CA is.
        ca_fingerprint: SHA-256 of its root, hexadecimal.
        brokers: URLs of the fleet's brokers.
        profiles: Certificates of these profiles; none stands for all that policy gives it.
        services: What serves them, by profile.
        token: The one-time token; empty where it comes from elsewhere.
    """

    name: str
    ca_url: str
    ca_fingerprint: str
    brokers: Sequence[str]
    profiles: Sequence[str] = ()
    services: Mapping[str, str] = field(default_factory=dict)
    token: str = ""

    @property
    def command(self) -> str:
        """What is typed on the machine, as root."""
        words = ["certplane-agent", "init", "--name", self.name]
        words += ["--ca-url", self.ca_url, "--ca-fingerprint", self.ca_fingerprint]
        words += [word for url in self.brokers for word in ("--broker", url)]
        words += profile_words(self.profiles, self.services)
        line = shlex.join([*words, "--token", "-"])
        return f"echo {shlex.quote(self.token)} | {line}" if self.token else line


def profile_words(profiles: Sequence[str], services: Mapping[str, str]) -> list[str]:
    """The options that say which certificates a machine has, and what serves them."""
    words = []
    for profile in profiles:
        words += ["--profile", profile]
        if profile in services:
            words += ["--service", services[profile]]
    return words
