"""ctl.yml as frozen values: where the brokers are, and as whom certplanectl calls them.

A file is for one fleet (`broker`, `identity`), or for several: `contexts`, each with both. Paths that aren't absolute
are relative to the file, so that it works from any directory. Which context is meant is `contexts.chosen`'s to say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from certplane.caller.settings import BrokerLinkSettings, IdentitySettings
from certplane.config.decoding import KeyProblem, decode
from certplane.config.document import Document, Source
from certplane.config.files import is_there
from certplane.config.values import PositiveSpan
from certplane.errors import ConfigurationError, ConfigurationProblem

_VARIABLE = "CERTPLANECTL_CONFIG"
_SYSTEM_FILE = Path("/etc/certplane/ctl.yml")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """A fleet, and who calls it."""

    broker: BrokerLinkSettings
    identity: IdentitySettings
    timeout: PositiveSpan = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Context:
    """The fleet that a command is for. `name` is empty where the file has no contexts; `at` begins its keys."""

    name: str
    settings: ContextSettings
    source: Source

    @property
    def at(self) -> str:
        """What stands before its keys in the file."""
        return f"contexts.{self.name}." if self.name else ""

    def path(self, path: Path) -> Path:
        """A path of the file, from the file's own directory."""
        return Path(self.source.file).parent / path

    def problem(self, key: str, message: str, remedy: str = "") -> ConfigurationProblem:
        """A problem with one of its keys."""
        return self.source.problem(self.at + key, message, remedy)


@dataclass(frozen=True, slots=True)
class CtlSettings:
    """A ctl.yml that is right. `source` says where each key stands."""

    broker: BrokerLinkSettings | None = None
    identity: IdentitySettings | None = None
    timeout: PositiveSpan = timedelta(seconds=30)
    contexts: Mapping[str, ContextSettings] = field(default_factory=dict)
    context: str = ""
    source: Source = field(kw_only=True)

    def problems(self) -> Iterator[KeyProblem]:
        """There is one fleet, or there are several by name; the one to begin with is one of them."""
        if not self.contexts:
            for key, value in (("broker", self.broker), ("identity", self.identity)):
                if value is None:
                    yield KeyProblem(key, "is required", f"add `{key}:`, or `contexts:` for several fleets")
            if self.context:
                yield KeyProblem("context", "there are no contexts", "add `contexts:`, or drop it")
            return
        for key, value in (("broker", self.broker), ("identity", self.identity)):
            if value is not None:
                yield KeyProblem(key, "goes without `contexts`", "move it into a context of its own")
        for name in self.contexts:
            if not _NAME.fullmatch(name):
                yield KeyProblem(f"contexts.{name}", "isn't a name", "use up to 64 of A-Z a-z 0-9 . _ -")
        if self.context and self.context not in self.contexts:
            yield KeyProblem("context", f"there is no context {self.context}", f"use one of: {self.names}")

    @property
    def names(self) -> str:
        """The contexts, for a message."""
        return ", ".join(self.contexts)

    def named(self, name: str) -> Context:
        """The context of this name; the file's only fleet, without contexts, has none."""
        if self.broker is not None and self.identity is not None:
            return Context("", ContextSettings(self.broker, self.identity, self.timeout), self.source)
        return Context(name, self.contexts[name], self.source)


def find_settings() -> Path:
    """The file to use when none is named: $CERTPLANECTL_CONFIG, the user's own, then the system's.

    Raises:
        ConfigurationError: there is none.
    """
    named = os.environ.get(_VARIABLE)
    if named:
        return Path(named)
    candidates = [*_own_files(), _SYSTEM_FILE]
    for candidate in candidates:
        if is_there(candidate):
            return candidate
    message = "there is no ctl.yml"
    files = " or ".join(map(str, candidates))
    remedy = f"write {files}, or name one with --config or ${_VARIABLE} (ctl.yml in docs/configuration.md shows one)"
    raise ConfigurationError([ConfigurationProblem("certplanectl", None, "", message, remedy)])


def _own_files() -> list[Path]:
    """The user's own file; none for a number without an entry in passwd(5), as containers run programs."""
    configuration = os.environ.get("XDG_CONFIG_HOME")
    try:
        return [(Path(configuration) if configuration else Path.home() / ".config") / "certplane" / "ctl.yml"]
    except RuntimeError:
        return []


def load_settings(path: Path) -> CtlSettings:
    """Read ctl.yml.

    Raises:
        ConfigurationError: everything that is wrong with it.
    """
    return decode(Document.read(path), CtlSettings)
