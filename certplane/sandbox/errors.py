"""Errors of the sandbox.

SandboxError
  PartMissingError    a program isn't on this machine; carries the part's name and the reason
  ServerStartError    a server didn't come up; carries the end of its log
    PortTakenError    because somebody took its port first: worth another try on another port
  ServerRefusedError  a server answered a request of the sandbox itself with an error; carries the HTTP status
"""

from __future__ import annotations

from certplane.errors import CertplaneError


class SandboxError(CertplaneError):
    """Base of everything that this package raises on purpose."""


class PartMissingError(SandboxError):
    """A real part isn't available here."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part} is left out: {reason}")
        self.part = part
        self.why = reason


class ServerStartError(SandboxError):
    """A server ended or stayed silent instead of becoming ready."""

    def __init__(self, server: str, why: str, log_tail: str = "") -> None:
        super().__init__(f"{server} {why}" + (f"; the end of its log:\n{log_tail}" if log_tail else ""))
        self.server = server
        self.log_tail = log_tail


class PortTakenError(ServerStartError):
    """The port was free when we looked and taken when the server bound it."""


class ServerRefusedError(SandboxError):
    """A sandbox server refused what the sandbox asked of it."""

    def __init__(self, server: str, status: int, message: str) -> None:
        super().__init__(f"{server} answered {status}: {message}")
        self.server = server
        self.status = status
        self.message = message
