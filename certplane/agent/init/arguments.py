"""From the arguments of `certplane-agent init`, and the answers of a person, to what is wanted."""

from __future__ import annotations

import os
import socket
from argparse import Namespace
from pathlib import Path

from certplane.agent.init.parser import CLIENTS
from certplane.agent.init.presets import Service
from certplane.agent.init.wanted import ProfileChoice, Take, Wanted
from certplane.config.broker_urls import BrokerUrl
from certplane.config.values import IdentityName
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.setup.asking import Asker
from certplane.setup.internal_ca import Pin, asked_ca

PROGRAM = "certplane-agent init"


def wanted_by(options: Namespace, config: Path, asker: Asker) -> tuple[Wanted, Pin]:
    """What was asked for; what is missing is asked for now.

    Raises:
        ConfigurationError: an argument is wrong, or missing where nobody can be asked.
    """
    own = socket.getfqdn()
    name = asker.value(
        options.name, "--name", "This host's name in policy.yml", IdentityName.parse, default=own if "." in own else ""
    )
    url, pin = asked_ca(asker, options.ca_url, options.ca_fingerprint, options.ca_bundle)
    question = "The broker's URL, https://name:port"
    given: list[str | None] = options.broker or [None]
    brokers = [asker.value(each, "--broker", question, BrokerUrl.parse) for each in given]
    asker.finish()
    return Wanted(
        name=str(name),
        ca_url=str(url),
        broker=[str(each) for each in brokers],
        config=_absolute(config),
        state_dir=_absolute(options.state_dir),
        profiles=tuple(
            ProfileChoice(profile, Service(service) if service else None) for profile, service in options.profiles
        ),
        take=_take(options.take),
        own_broker_ca=options.broker_ca is not None,
    ), pin


def _take(words: list[str] | None) -> Take | None:
    if not words:
        return None
    if words[0] not in CLIENTS or len(words) > 2:
        remedy = f"give one of {', '.join(CLIENTS)}, and a folder if it isn't the client's usual one"
        raise ConfigurationError([ConfigurationProblem(PROGRAM, None, "--from", "names no client", remedy)])
    return Take(words[0], _absolute(Path(words[1])) if len(words) == 2 else None)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links, which are refused later
