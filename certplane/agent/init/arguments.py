"""From the arguments of `certplane-agent init`, and the answers of a person, to what is wanted."""

from __future__ import annotations

import os
import socket
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from certplane.agent.init.parser import CLIENTS
from certplane.agent.init.presets import Service
from certplane.agent.init.wanted import ProfileChoice, Take, Wanted
from certplane.config.broker_urls import BrokerUrl
from certplane.config.files import is_input, read_argument, read_private_file
from certplane.config.values import Fingerprint, HttpsUrl, IdentityName
from certplane.errors import CertplaneError, ConfigurationError, ConfigurationProblem, OperationError
from certplane.setup.asking import Asker

PROGRAM = "certplane-agent init"
_MOST_TOKEN = 16 * 1024

_FLAGS = (
    ("identity.step_ca.fingerprint and root_ca_bundle", "--ca-fingerprint or --ca-bundle"),
    ("identity.step_ca.fingerprint", "--ca-fingerprint"),
    ("identity.step_ca.root_ca_bundle", "--ca-bundle"),
    ("identity.step_ca.url", "--ca-url"),
    ("identity.name", "--name"),
    ("`certplane-agent enroll`", "the same command"),
)
"""What messages of the agent call a setting, and the argument that says it while there is no agent.yml."""


@dataclass(frozen=True, slots=True)
class Pin:
    """How the internal CA is known: by a fingerprint, or by a file."""

    fingerprint: str = ""
    bundle: Path | None = None


def as_flags(error: CertplaneError) -> CertplaneError:
    """The same error of somebody who has typed arguments and no agent.yml yet."""
    if isinstance(error, ConfigurationError):
        return error
    text = str(error)
    for setting, flag in _FLAGS:
        text = text.replace(setting, flag)
    return OperationError(text)


def wanted_by(options: Namespace, config: Path, asker: Asker) -> tuple[Wanted, Pin]:
    """What was asked for; what is missing is asked for now.

    Raises:
        ConfigurationError: an argument is wrong, or missing where nobody can be asked.
    """
    own = socket.getfqdn()
    name = asker.value(
        options.name, "--name", "This host's name in policy.yml", IdentityName.parse, default=own if "." in own else ""
    )
    url = asker.value(options.ca_url, "--ca-url", "The internal CA's URL, https://", HttpsUrl.parse)
    pin = Pin(bundle=options.ca_bundle)
    if options.ca_bundle is None:
        question = "The fingerprint of its root (`step certificate fingerprint root_ca.crt`)"
        fingerprint = asker.value(options.ca_fingerprint, "--ca-fingerprint", question, Fingerprint.parse)
        pin = Pin(fingerprint=fingerprint or "")
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


def token_by(path: Path | None, name: str, asker: Asker) -> str:
    """The one-time token; asked for where no file is named.

    Raises:
        ConfigurationError: it isn't there, or holds something else than one token.
    """
    if path is None:
        text = asker.secret(f"A one-time token for {name} (`step ca token {name}`; not shown)")
        if not text:
            remedy = f"give --token FILE, or --token - and the token of `step ca token {name}` on standard input"
            asker.missing("--token", "is required: this host has no identity yet", remedy)
            asker.finish()
    elif is_input(path):
        text = read_argument(path, max_bytes=_MOST_TOKEN).decode("ascii", errors="replace").strip()
    else:
        at = ConfigurationProblem(PROGRAM, None, "--token", "", "")
        text = read_private_file(path, at=at, max_bytes=_MOST_TOKEN).decode("ascii", errors="replace").strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        what = "holds something else than one token" if text else "is empty"
        remedy = f"give it what `step ca token {name}` prints, and nothing else"
        raise ConfigurationError([ConfigurationProblem(PROGRAM, None, "--token", what, remedy)])
    return text


def _take(words: list[str] | None) -> Take | None:
    if not words:
        return None
    if words[0] not in CLIENTS or len(words) > 2:
        remedy = f"give one of {', '.join(CLIENTS)}, and a folder if it isn't the client's usual one"
        raise ConfigurationError([ConfigurationProblem(PROGRAM, None, "--from", "names no client", remedy)])
    return Take(words[0], _absolute(Path(words[1])) if len(words) == 2 else None)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links, which are refused later
