"""`certplanectl host add`, `host retire`, `host replace`: docs/machines.md in a command each.

Each looks first and does what is left to do: run again, it does nothing twice, and says so. The policy is a person's
file: what must change in it is shown as a diff, and the command ends with the status `POLICY_FIRST`.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from certplane.ctl.client import Client
from certplane.ctl.commands.token import asked_if_any
from certplane.ctl.host_policy import Holder, PolicyText, canonical
from certplane.ctl.init_line import NewHost, profile_words
from certplane.ctl.output import members_of
from certplane.ctl.session import Session, misuse
from certplane.ctl.show.machines import (
    PolicyEdit,
    SetUp,
    State,
    at_the_ca_lines,
    denied_lines,
    left_lines,
    on_the_old_machine,
)
from certplane.ctl.show.policy import problem_line
from certplane.ctl.show.words import held
from certplane.errors import OperationError, Reason, RefusalError
from certplane.runtime.command import FAILED, OK
from certplane.runtime.text import serial_digits
from certplane.v1 import enrollment_pb2, policy_pb2, renewal_pb2

POLICY_FIRST: Final = 3
"""The exit status where a person has to change the policy first."""
_DRY: Final = "dry run: nothing is changed"
_NAME: Final = enrollment_pb2.DenyIdentityRequest.SCOPE_NAME
_CERTIFICATES: Final = enrollment_pb2.DenyIdentityRequest.SCOPE_CERTIFICATES
_GONE: Final = timedelta(seconds=30)
"""A stream of a denied identity ends within a second, at each broker."""
_LOOK: Final = timedelta(milliseconds=250)


@dataclass(frozen=True, slots=True)
class _Policy:
    """The policy in force, as its broker has it."""

    loaded: policy_pb2.LoadedPolicy
    text: str
    places: PolicyText

    @classmethod
    async def of(cls, client: Client) -> _Policy:
        loaded, text = await client.policy(with_text=True)
        return cls(loaded, text, PolicyText(text))

    def edit(self, after: str) -> PolicyEdit:
        return PolicyEdit(self.loaded, self.text, after)


async def add(options: argparse.Namespace, session: Session) -> int:
    """What a new host needs: lines in the policy, or else a token and the command for the machine."""
    async with session.client() as client:
        policy = await _Policy.of(client)
        holder, after = _wanted(options, policy.places)
        _require_host(session, holder)
        members = {"host": holder.label, "identity": holder.identity, "profiles": list(holder.profiles)}
        if after is not None:
            return await _policy_lacks(client, session, policy.edit(after), options, members)
        known = await _host(client, holder.identity)
        if known is not None and known.connected:
            again = session.command(f"host replace {holder.identity} --reason TEXT")
            text = f"{holder.identity} is set up and connected; a new machine takes its place by `{again}`"
            _told(session, {**members, "state": State.SET_UP}, [text])
            return OK
        made = await _set_up(client, session, options, holder.identity)
    lines = [_DRY] if options.dry_run else []
    if known is not None and known.last_seen_time.seconds:
        again = session.command(f"host replace {holder.identity} --reason TEXT")
        lines += [f"{holder.identity} had a machine before; one that may come back contests the new one: `{again}`"]
    profiles = " ".join(holder.profiles) or "none"
    lines += [f"{holder.identity} is in the policy, with the profiles: {profiles}", *made.told(session.now())]
    _told(session, {**members, "state": State.READY, **_dry(options), **made.members()}, lines)
    return OK


async def retire(options: argparse.Namespace, session: Session) -> int:
    """Shut a host out, have it taken out of the policy, and have it forgotten."""
    async with session.client() as client:
        policy = await _Policy.of(client)
        holder = policy.places.find(options.name)
        identity = canonical(options.name) if holder is None else holder.identity
        request = enrollment_pb2.DenyIdentityRequest(
            identity=identity, scope=_NAME, reason=options.reason, dry_run=True
        )
        planned = await client.deny(request)
        known = await _host(client, identity)
        to_deny = any(not each.already_denied for each in planned.denied)
        if holder is None and known is None:
            if to_deny:
                raise OperationError(
                    f"nobody knows {identity}: neither the policy nor the fleet has it",
                    remedy=f"compare with `{session.command('fleet')}`",
                )
            before = {"identity": identity, "state": State.RETIRED, "denied": [*map(members_of, planned.denied)]}
            _told(session, before, [f"{identity} was retired before; nothing is left to do"])
            return OK
        question = f"{identity} is shut out and forgotten, and gets no certificates any more"
        if not options.dry_run and not options.yes and not await session.agreed(question):
            session.say("nothing was changed")
            return FAILED
        answer = planned
        if not options.dry_run:
            request.dry_run = False
            answer = await client.deny(request)
        lines = [*([_DRY] if options.dry_run else []), *denied_lines(answer, dry_run=options.dry_run), ""]
        members: dict[str, Any] = {
            "identity": identity,
            **_dry(options),
            "denied": [*map(members_of, answer.denied)],
            "validCertificateCount": answer.valid_certificate_count,
        }
        lines += _left(options, session, identity, answer, known)
        if holder is not None:
            edit = policy.edit(policy.places.without(holder))
            members = {"host": holder.label, **members, "state": State.POLICY_FIRST, **edit.members()}
            command = session.command(shlex.join(["host", "retire", identity, "--reason", options.reason]))
            told = edit.told(f"the policy still has {holder.label}", session.command("policy reload"), command)
            _told(session, members, [*lines, *told])
            return POLICY_FIRST
        if options.dry_run:
            _told(session, {**members, "state": State.RETIRED}, [*lines, f"{identity} would be forgotten"])
            return OK
        await _forget(client, session, identity, options.reason)
    _told(session, {**members, "state": State.RETIRED}, [*lines, f"{identity} is forgotten"])
    return OK


async def replace_machine(options: argparse.Namespace, session: Session) -> int:
    """Shut a host's old machine out, and show how the new one is set up."""
    async with session.client() as client:
        holder = (await _Policy.of(client)).places.find(options.name)
        if holder is None:
            command = session.command(f"host add {options.name} --profile PROFILE")
            raise OperationError(f"the policy has no host {options.name}", remedy=f"`{command}` adds one")
        _require_host(session, holder)
        request = enrollment_pb2.DenyIdentityRequest(
            identity=holder.identity,
            scope=_CERTIFICATES,
            reason=options.reason,
            active_serial_number=serial_digits(options.serial),
            dry_run=True,
        )
        planned = await client.deny(request)
        members: dict[str, Any] = {"host": holder.label, "identity": holder.identity, **_dry(options)}
        if planned.active_replaces_denied:
            serial = planned.active_serial_number
            text = (
                f"the machine of {holder.identity} was replaced before: the identity certificate {serial} has taken "
                "the place of a denied one; nothing is changed. To replace this machine too, add "
                f"--serial {serial}"
            )
            denied = {"activeSerialNumber": serial, "denied": [*map(members_of, planned.denied)]}
            _told(session, {**members, "state": State.REPLACED, **denied}, [text])
            return OK
        new = [each.serial_number for each in planned.denied if not each.already_denied]
        question = f"the machine of {holder.identity} is shut out ({', '.join(new)}), and another one takes its place"
        if new and not options.dry_run and not options.yes and not await session.agreed(question):
            session.say("nothing was changed")
            return FAILED
        answer = planned
        if new and not options.dry_run:
            request.dry_run, request.active_serial_number = False, planned.active_serial_number
            answer = await client.deny(request)
        made = await _set_up(client, session, options, holder.identity)
    lines = [*([_DRY] if options.dry_run else []), *denied_lines(answer, dry_run=options.dry_run)]
    if not answer.denied:
        lines.append(f"no machine of {holder.identity} has called yet: there is nothing to shut out")
    lines += ["", *on_the_old_machine(holder.identity), *at_the_ca_lines(answer), *made.told(session.now())]
    shut_out = {
        "denied": [*map(members_of, answer.denied)],
        "validCertificateCount": answer.valid_certificate_count,
    }
    _told(session, {**members, "state": State.READY, **shut_out, **made.members()}, lines)
    return OK


def _wanted(options: argparse.Namespace, policy: PolicyText) -> tuple[Holder, str | None]:
    """The host as the policy shall have it, and the policy's text with it; None where it has it.

    Raises:
        ConfigurationError: what is asked for isn't enough, or contradicts the policy.
    """
    name, profiles = options.name, tuple(dict.fromkeys(options.profile))
    found = policy.find(name) or (policy.find(options.identity) if options.identity else None)
    if found is not None:
        if options.identity and found.identity != canonical(options.identity):
            raise misuse(
                f"the policy has {found.label} with the identity {found.identity}, and not {options.identity}",
                "leave --identity out, or choose another label",
            )
        lacking = tuple(each for each in profiles if each not in found.profiles)
        chosen = replace(found, profiles=profiles or found.profiles)
        return chosen, policy.with_profiles(found, lacking) if lacking else None
    if not profiles:
        raise misuse(f"the policy has no host {name}", "add --profile PROFILE, once for each of its certificates")
    identity = canonical(options.identity or name)
    label = name if options.identity else identity.partition(".")[0]
    if "." not in identity and "://" not in identity:
        raise misuse(f"{name} is no identity", f"add its name as a certificate has it, --identity {name}.example.net")
    if (other := policy.find(label)) is not None or "://" in label or ":" in label:
        taken = f"the label {label} is {other.identity}'s" if other is not None else f"{name} makes no label"
        raise misuse(taken, f"give another one: host add LABEL --identity {identity}")
    return Holder("hosts", label, identity, profiles), policy.with_host(label, identity, profiles)


def _require_host(session: Session, holder: Holder) -> None:
    """See that it is a machine with an agent.

    Raises:
        OperationError: it is a service.
    """
    if holder.section != "hosts":
        token = session.command(f"token {holder.identity}")
        raise OperationError(f"{holder.label} is a service, and no host", remedy=f"`{token}` makes a token for it")


async def _policy_lacks(
    client: Client, session: Session, edit: PolicyEdit, options: argparse.Namespace, members: dict[str, Any]
) -> int:
    """Show what must be added, once the broker has said that it would take it."""
    planned = await client.plan_policy(edit.after.encode())
    if planned.problems:
        if not session.out.for_people:
            for problem in planned.problems:
                session.out.message(problem)
        for problem in planned.problems:
            session.say(problem_line(problem, "the policy with these lines"))
        return FAILED
    words = ["host", "add", options.name, *(["--identity", options.identity] if options.identity else [])]
    again = shlex.join([*words, *profile_words(options.profile, options.service)])
    told = edit.told(
        f"the policy lacks this for {members['identity']}", session.command("policy reload"), session.command(again)
    )
    _told(session, {**members, "state": State.POLICY_FIRST, **edit.members()}, told)
    return POLICY_FIRST


async def _set_up(client: Client, session: Session, options: argparse.Namespace, identity: str) -> SetUp:
    """A token where the broker makes some, and the command for the machine.

    Raises:
        RefusalError: this name gets none.
    """
    token = await asked_if_any(client, identity, options.lifetime, dry_run=options.dry_run)
    brokers: Sequence[str] = options.broker or [*map(str, session.context.settings.broker.all_urls)]
    host = NewHost(
        name=identity,
        ca_url=options.ca_url or (token.ca_url if token is not None else "CA-URL"),
        ca_fingerprint=options.ca_fingerprint or (token.ca_root_fingerprint if token is not None else "FINGERPRINT"),
        brokers=brokers,
        profiles=options.profile,
        services=options.service,
        token=(token.token if token is not None else "") or "TOKEN",
    )
    return SetUp(host, token, ca_known=token is not None or bool(options.ca_url and options.ca_fingerprint))


async def _host(client: Client, identity: str) -> renewal_pb2.Host | None:
    try:
        return await client.host(identity)
    except RefusalError as error:
        if error.refusal.reason is not Reason.HOST_NOT_FOUND:
            raise
        return None


async def _forget(client: Client, session: Session, identity: str, reason: str) -> None:
    """Have it forgotten, once its stream has ended: it was shut out a moment ago."""
    end = session.now() + _GONE
    while True:
        try:
            await client.forget(identity, reason)
        except RefusalError as error:
            if error.refusal.reason is Reason.HOST_NOT_FOUND:
                return
            known = await _host(client, identity)
            if known is None or not known.connected or session.now() >= end:
                raise
            await session.clock.sleep(_LOOK)
        else:
            return


def _left(
    options: argparse.Namespace,
    session: Session,
    identity: str,
    answer: enrollment_pb2.DenyIdentityResponse,
    known: renewal_pb2.Host | None,
) -> list[str]:
    """What a person may do besides."""
    statuses = known.certificates if known is not None else ()
    held_now = (held(status) for status in statuses)
    ids = [each.certificate_id for each in held_now if each is not None and each.certificate_id]
    return [
        *on_the_old_machine(identity),
        *at_the_ca_lines(answer),
        *left_lines(identity, ids, answer.valid_certificate_count, options.reason, session.command("revoke")),
    ]


def _dry(options: argparse.Namespace) -> dict[str, Any]:
    return {"dryRun": True} if options.dry_run else {}


def _told(session: Session, members: dict[str, Any], lines: Sequence[str]) -> None:
    out = session.out
    if out.for_people:
        out.lines(lines)
    else:
        out.object({key: str(value) if isinstance(value, State) else value for key, value in members.items()})
