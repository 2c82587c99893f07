"""Certificates that another client keeps on this host, as entries of agent.yml with the files that go with them.

Each goes to the profile of policy that has exactly its names. Where the agent's user is root its outputs are the paths
that services read now; for any other user, who may not write there, the pair is copied to where the agent's user may,
and stands there when the agent comes (`certplane.agent.takeover`). Nothing of the client's own is changed: what a
person is to do with it is said in lines to type.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from certplane.agent.init.found import Lineage
from certplane.agent.init.text import certificates_of
from certplane.agent.init.wanted import Certificate, ProfileChoice, Wanted
from certplane.agent.install.material import Part, rebuilt
from certplane.errors import OperationError
from certplane.pki.keys import KeyType
from certplane.setup.account import Account
from certplane.setup.plan import Plan, WriteFile

_OF_THE_CLIENT = "RENEWED_"
"""What certbot's hooks know their certificate by; nobody else sets it."""
_HOMES = ("/root", "/home", "/run/user")
"""What systemd's ProtectHome hides (systemd.exec(5))."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What comes of a client's certificates.

    Attributes:
        certificates: the entries of agent.yml.
        copies: the pairs where the agent finds them, to be made by its user; empty where services' paths are its own.
        said: what was left out or can't be kept, and why; a line each.
        then: what a person does next, a line each.
    """

    certificates: tuple[Certificate, ...]
    copies: Plan
    said: tuple[str, ...]
    then: tuple[str, ...]


def taken(wanted: Wanted, lineages: Sequence[Lineage], names: Mapping[str, tuple[str, ...]], who: Account) -> Taken:
    """What agent.yml and the disk are to have for a client's certificates. Blocks; looks whether files are there.

    Args:
        wanted: the host; its profiles, if any are named, are all that is taken, with their services.
        lineages: the client's.
        names: the names of each profile that policy gives to this host.
        who: whose the agent is.

    Raises:
        OperationError: no profile has the names of any of them.
    """
    said: list[str] = []
    by_profile = _by_profile(wanted, lineages, names, said)
    if not by_profile:
        if not any(lineage.dns_names for lineage in lineages):
            raise OperationError(
                f"no certificate of {lineages[0].client}'s can be read: {'; '.join(said)}",
                remedy="restore them; or run the same command without --from, and certificates are ordered",
            )
        raise OperationError(
            f"no profile that policy gives to {wanted.name} has the names of any of {lineages[0].client}'s "
            f"certificates: {'; '.join(said)}",
            remedy="have a profile with exactly these names added to policy.yml and given to this host; then run the "
            "same command, which needs no new token",
        )
    services = {choice.profile: choice.service for choice in wanted.profiles}
    certificates: list[Certificate] = []
    copies = Plan()
    then: list[str] = []
    for profile in services or by_profile:
        (plain,) = certificates_of(wanted, [ProfileChoice(profile, services.get(profile))], names)
        lineage = by_profile.get(profile)
        if lineage is None:
            certificates.append(plain)
            continue
        in_place = _may_be_outputs(lineage.paths, who)
        certificate = _entry(wanted, plain, lineage, in_place=in_place)
        certificates.append(certificate)
        then += _stop(lineage)
        if lineage.problem:
            said.append(f"{lineage} is not taken over, and a certificate is ordered: {lineage.problem}")
        elif any(os.path.lexists(path) for _, path in certificate.outputs):
            if not in_place:
                said.append(f"kept what stands at {', '.join(str(path) for _, path in certificate.outputs)}")
        else:
            copies += _copies(certificate, lineage)
        if not in_place:
            then += _links(certificate, lineage)
        else:
            folders = dict.fromkeys(str(path.parent) for path in lineage.paths.values())
            then.append(f"let the agent's unit write there, by a drop-in: ReadWritePaths={' '.join(folders)}")
        then += _hooks(certificate, lineage)
    return Taken(tuple(certificates), copies, tuple(said), tuple(then))


def shown(lineages: Sequence[Lineage]) -> Iterator[str]:
    """What of a client's certificates would be taken over, before anybody knows what policy gives; a line each."""
    for lineage in lineages:
        if lineage.problem:
            yield f"would not take over {lineage}: {lineage.problem}"
        else:
            yield (
                f"would take over {lineage} ({', '.join(lineage.dns_names)}), until {_text(lineage.not_after)}, "
                "if a profile of this host has these names"
            )


def _by_profile(
    wanted: Wanted, lineages: Sequence[Lineage], names: Mapping[str, tuple[str, ...]], said: list[str]
) -> dict[str, Lineage]:
    """The one lineage for each profile: of several with the same names a good one, and the one that ends last."""
    chosen = {choice.profile for choice in wanted.profiles}
    found: dict[str, Lineage] = {}
    for lineage in sorted(lineages, key=_worth):
        of_names = sorted(profile for profile, each in names.items() if tuple(sorted(each)) == lineage.dns_names)
        profiles = [profile for profile in of_names if not chosen or profile in chosen]
        if not lineage.dns_names:
            said.append(f"{lineage} is left out: {lineage.problem}")
        elif not profiles:
            why = "--profile doesn't name" if of_names else "no profile has exactly"
            said.append(f"{lineage} is left out: {why} its names, {', '.join(lineage.dns_names)}")
        elif (other := found.get(profiles[0])) is not None:
            said.append(f"{lineage} is left out: {other.name} has the same names and is good for longer")
        else:
            found[profiles[0]] = lineage
    return dict(sorted(found.items()))


def _worth(lineage: Lineage) -> tuple[bool, float, str]:
    end = 0.0 if lineage.not_after is None else lineage.not_after.timestamp()
    return bool(lineage.problem), -end, lineage.name


def _entry(wanted: Wanted, plain: Certificate, lineage: Lineage, *, in_place: bool) -> Certificate:
    """The profile's entry with what the lineage has of its own.

    Each file that services may read now is an output, `cert` and `chain` too: one that stayed behind would be of
    another key after the first renewal. A service that wants one in another form has it in any case.
    """
    kinds = dict(plain.outputs)
    if in_place:
        chosen = any(choice.service for choice in wanted.profiles if choice.profile == plain.profile)
        kinds = {**(kinds if chosen else {}), **lineage.paths}
    elif "key" in kinds:
        kinds |= {kind: wanted.tls / f"{plain.name}.{kind}" for kind in lineage.paths if kind not in kinds}
    outputs = tuple(kinds.items())
    return replace(
        plain,
        outputs=outputs,
        reload_command=plain.reload_command or _reload_command(lineage),
        more=() if lineage.key_type in {None, KeyType.EC_P256} else (f"key_type: {lineage.key_type}",),
    )


def _reload_command(lineage: Lineage) -> str:
    """The client's one hook, where it knows nothing that only the client could tell it."""
    if len(lineage.hooks) != 1 or _OF_THE_CLIENT in lineage.hooks[0]:
        return ""
    return lineage.hooks[0]


def _copies(certificate: Certificate, lineage: Lineage) -> Plan:
    """The pair in the forms that the outputs have; written by the agent's user."""
    files = rebuilt(lineage.files)
    parts = {part.setting: part for part in Part}
    return Plan(
        tuple(
            WriteFile(
                path,
                files[parts[kind]].decode("ascii"),
                mode=0o600 if parts[kind].holds_key else 0o644,
                secret=True,
            )
            for kind, path in certificate.outputs
        )
    )


def _stop(lineage: Lineage) -> Iterator[str]:
    if lineage.stop:
        yield f"keep {lineage.client} from renewing {lineage.name}: {lineage.stop}"


def _links(certificate: Certificate, lineage: Lineage) -> Iterator[str]:
    """How services come to the new paths: by their configuration, or by links where they read now."""
    paths = dict(certificate.outputs)
    there = {kind: path for kind, path in lineage.paths.items() if kind in paths}
    if not there or all(_leads_to(path, paths[kind]) for kind, path in there.items()):
        return
    lines = " && ".join(f"ln -sfn {_word(paths[kind])} {_word(path)}" for kind, path in there.items())
    listed = ", ".join(str(path) for path in paths.values())
    when = "once the agent has its first certificate, " if lineage.problem else ""
    yield f"{when}have services read {listed}; or let them read where they do: {lines}"


def _leads_to(path: Path, target: Path) -> bool:
    return path.is_symlink() and path.readlink() == target


def _hooks(certificate: Certificate, lineage: Lineage) -> Iterator[str]:
    lost = [each for each in (*lineage.hooks, *lineage.around) if each != certificate.reload_command]
    if lost:
        yield (
            f"{lineage.client} runs this no longer for {lineage.name}, give what of it is needed as reload_command: "
            f"{'; '.join(lost)}"
        )


def _may_be_outputs(paths: Mapping[str, Path], who: Account) -> bool:
    """Whether the agent's outputs can be where services read: root's can, but not in homes, which its unit hides."""
    hidden = any(path.is_relative_to(home) for path in paths.values() for home in _HOMES)
    return who.name == "root" and not hidden and "key" in paths and not {"fullchain", "cert"}.isdisjoint(paths)


def _word(path: Path) -> str:
    return shlex.quote(str(path))


def _text(time: datetime | None) -> str:
    return "" if time is None else f"{time:%Y-%m-%d}"
