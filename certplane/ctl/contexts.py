"""Which of the contexts of a ctl.yml a command is for.

`--context` comes first, then $CERTPLANECTL_CONTEXT, then what `certplanectl context use` chose, then the file's
`context`; a file with one context needs none of them. The choice is the user's, and kept for each ctl.yml by itself in
$XDG_STATE_HOME/certplane/contexts.json (~/.local/state): the file that people write, which may be everybody's, stays as
it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from certplane.ctl.settings import Context, CtlSettings
from certplane.errors import ConfigurationError, OperationError
from certplane.runtime.files import Directory, open_directory
from certplane.runtime.json_state import MOST_BYTES, StateError, decode, encode

VARIABLE: Final = "CERTPLANECTL_CONTEXT"
_FILE: Final = "contexts.json"


@dataclass(frozen=True, slots=True)
class Choices:
    """What a user chose: a context's name by the path of its ctl.yml."""

    contexts: Mapping[str, str] = field(default_factory=dict)


def chosen(settings: CtlSettings, named: str | None) -> Context:
    """The context that a command is for.

    Args:
        settings: The ctl.yml.
        named: What --context says; None without it.

    Raises:
        ConfigurationError: there is no such context, or none was chosen of several.
    """
    variable = os.environ.get(VARIABLE) or None
    if not settings.contexts:
        for name, where in ((named, "--context"), (variable, f"${VARIABLE}")):
            if name is not None:
                problem = settings.source.problem("contexts", f"has no context {name}", f"add it, or drop {where}")
                raise ConfigurationError([problem])
        return settings.named("")
    name, where = next(((name, where) for name, where in _sayings(settings, named, variable) if name), ("", ""))
    if name in settings.contexts:
        return settings.named(name)
    if name:
        remedy = f"use one of: {settings.names}"
        raise ConfigurationError(
            [settings.source.problem("contexts", f"has no context {name}, as {where} says", remedy)]
        )
    if len(settings.contexts) == 1:
        return settings.named(settings.names)
    remedy = f"add --context NAME, or choose one with `certplanectl context use NAME`: {settings.names}"
    raise ConfigurationError([settings.source.problem("contexts", "has several contexts", remedy)])


def _sayings(settings: CtlSettings, named: str | None, variable: str | None) -> list[tuple[str | None, str]]:
    return [
        (named, "--context"),
        (variable, f"${VARIABLE}"),
        (_choices().contexts.get(_key(settings)), "`certplanectl context use`"),
        (settings.context, "its key context"),
    ]


def choose(settings: CtlSettings, name: str) -> None:
    """Keep a choice for this ctl.yml, durably.

    Raises:
        ConfigurationError: there is no such context.
        OperationError: there is nowhere to keep it.
    """
    if name not in settings.contexts:
        remedy = f"use one of: {settings.names}" if settings.contexts else "add `contexts:` to it"
        raise ConfigurationError([settings.source.problem("contexts", f"has no context {name}", remedy)])
    folder = _folder()
    if folder is None:
        raise OperationError("this user has no home to keep the choice in", remedy=f"set ${VARIABLE}, or use --context")
    kept = Choices({**_choices().contexts, _key(settings): name})
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open_directory(folder, create_mode=0o700) as directory:
            directory.replace(_FILE, encode(kept), mode=0o600)
    except OSError as error:
        remedy = f"make it writable, set ${VARIABLE}, or use --context"
        raise OperationError(f"{folder / _FILE} can't be written: {error.strerror}", remedy=remedy) from error


def _choices() -> Choices:
    """What was chosen before; nothing where that can't be read, since nothing depends on it but a default."""
    folder = _folder()
    try:
        if folder is not None:
            with Directory(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), folder) as directory:
                return decode(Choices, directory.read(_FILE, most=MOST_BYTES))
    except (OSError, StateError):
        pass
    return Choices()


def _key(settings: CtlSettings) -> str:
    return os.path.realpath(settings.source.file)


def _folder() -> Path | None:
    state = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(state) if state else Path.home() / ".local" / "state") / "certplane"
    except RuntimeError:  # a number without an entry in passwd(5), as containers run programs
        return None
