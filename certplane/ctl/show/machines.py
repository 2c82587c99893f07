"""New, retired and replaced hosts for people and for programs: what was done, and what a person types next.

For programs it is one object, in the dialect of the broker's messages; `state` is one of `State`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from certplane.ctl.host_policy import difference
from certplane.ctl.init_line import NewHost
from certplane.ctl.output import members_of
from certplane.ctl.show.words import moment
from certplane.v1 import enrollment_pb2, policy_pb2

_SERIAL = re.compile(r"[0-9a-f]{1,40}")
_START = "systemctl enable --now certplane-agent.service"
_STOP = "systemctl disable --now certplane-agent.service"


class State(StrEnum):
    """What a command came to."""

    READY = "READY"
    """The new machine can be set up: the command for it is there."""
    SET_UP = "SET_UP"
    """It is set up, and connected."""
    POLICY_FIRST = "POLICY_FIRST"
    """The policy has to be changed first."""
    RETIRED = "RETIRED"
    """The host is gone."""
    REPLACED = "REPLACED"
    """Another machine has taken the place of the denied one already."""


@dataclass(frozen=True, slots=True)
class PolicyEdit:
    """A change that a person makes to the policy's file."""

    loaded: policy_pb2.LoadedPolicy
    before: str
    after: str

    @property
    def lines(self) -> list[str]:
        """The change as `diff -u` shows it."""
        return difference(self.before, self.after, self.loaded.file or "policy.yml")

    def members(self) -> dict[str, Any]:
        """The same for programs."""
        return {"policyFile": self.loaded.file, "policyDiff": "\n".join(self.lines) + "\n"}

    def told(self, what: str, reload: str, again: str) -> list[str]:
        """For people: what to change where, and what to do then."""
        where = f" on {self.loaded.broker_name}" if self.loaded.broker_name else ""
        return [
            f"{what}; in {self.loaded.file or 'policy.yml'}{where}, and wherever else brokers read theirs:",
            "",
            *self.lines,
            "",
            f"`{reload}` loads it; then `{again}` again",
        ]


@dataclass(frozen=True, slots=True)
class SetUp:
    """How a machine is set up: with a token of the broker's, or one that is made at the CA."""

    host: NewHost
    token: enrollment_pb2.CreateBootstrapTokenResponse | None
    ca_known: bool
    """Whether the CA's URL and fingerprint are more than words to be replaced."""

    @property
    def at_the_ca(self) -> str:
        """The command that makes a token where the broker makes none."""
        return f"step ca token {self.host.name}"

    def members(self) -> dict[str, Any]:
        """For programs."""
        found: dict[str, Any] = {"command": self.host.command, "startCommand": _START}
        if self.token is None:
            return {**found, "tokenCommand": self.at_the_ca}
        return {**found, "token": members_of(self.token)}

    def told(self, now: datetime) -> list[str]:
        """For people: what to type, and where."""
        if self.token is None:
            asked = ["this broker makes no tokens (it has no `bootstrap`); at the CA:", "", f"  {self.at_the_ca}", ""]
            known = (
                "with what it prints for TOKEN"
                if self.ca_known
                else "with what it prints for TOKEN, where the CA is for CA-URL, and for FINGERPRINT what "
                "`step certificate fingerprint root_ca.crt` prints there"
            )
            first = f"on {self.host.name}, as root, {known}:"
        else:
            asked = []
            once = f"once, until {moment(self.token.expire_time, now)}"
            first = f"on {self.host.name}, as root, {once}:"
        return [*asked, first, "", f"  {self.host.command}", "", "then:", "", f"  {_START}"]


def denied_lines(answer: enrollment_pb2.DenyIdentityResponse, *, dry_run: bool) -> list[str]:
    """What is shut out, a line each."""
    lines = []
    for each in answer.denied:
        what = each.name or f"identity certificate {each.serial_number} of {each.issuer}"
        done = "was denied before" if each.already_denied else ("would be denied" if dry_run else "is denied")
        lines.append(f"{what} {done}")
    return lines


def at_the_ca_lines(answer: enrollment_pb2.DenyIdentityResponse) -> list[str]:
    """What a person types at the CA, so that what is shut out here isn't renewed there.

    In decimal: step-ca's client takes `0x...` for a serial number, and doesn't know it again in a token of its own.
    """
    denied = [each.serial_number for each in answer.denied if each.serial_number] or [answer.active_serial_number]
    serials = [each for each in denied if _SERIAL.fullmatch(each)]
    if not serials:
        return []
    lines = [f"  step ca revoke {int(serial, 16)}" for serial in serials]
    return ["at the CA, so that its identity isn't renewed there:", "", *lines, ""]


def left_lines(name: str, certificates: Sequence[str], count: int, why: str, revoke: str) -> list[str]:
    """What is still valid of a machine that is gone; `revoke` is how that command is called here."""
    if not count:
        return []
    lines = [f"  {revoke} {each} --as cessationOfOperation --reason {shlex.quote(why)}" for each in certificates]
    head = (
        f"{count} of its certificates are valid until they end" if count > 1 else "1 certificate of it is valid still"
    )
    return [f"{head}; if others may have the keys of {name}:", "", *lines, ""] if lines else [head]


def on_the_old_machine(name: str) -> list[str]:
    """What a person types on a machine that is gone, if it can be reached."""
    return [
        f"on the old machine of {name}, if it can be reached:",
        "",
        f"  {_STOP}",
        "  rm -rf /var/lib/certplane/agent /etc/certplane/tls",
        "",
    ]
