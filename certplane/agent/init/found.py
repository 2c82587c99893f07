"""What certbot, acme.sh and lego keep on this host: each certificate with its files, its hooks and how to stop it.

Reads their folders and changes nothing there. What can't be read or isn't whole is found too, with the reason: a person
is to hear of it.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from certplane.agent.install.managed import acme_sh_hooks, certbot_hooks, certbot_hooks_around, settings_of
from certplane.agent.install.material import NoPairError, Part, rebuilt
from certplane.agent.install.takeover import NotTakenOverError, Wanted, check_standing
from certplane.errors import CertplaneError, OperationError, RefusalError
from certplane.pki.chain import leaf_facts
from certplane.pki.keys import KeyType, check_public_key

USUAL_FOLDERS: Final[Mapping[str, str]] = {
    "certbot": "/etc/letsencrypt",
    "acme.sh": "~/.acme.sh",
    "lego": "~/.lego",
}
"""Where each client keeps its files unless it is told otherwise."""

_MOVED: Final = ".moved"
_PAIR: Final = ("key", "fullchain")
_INSTALLED: Final = {
    "key": "Le_RealKeyPath",
    "fullchain": "Le_RealFullChainPath",
    "cert": "Le_RealCertPath",
    "chain": "Le_RealCACertPath",
}
"""Where `acme.sh --install-cert` puts each file."""
_SCRIPTS: Final = ("pre", "deploy", "post")
"""Folders below `renewal-hooks`: what is in them certbot runs for each of its certificates."""
_HOOKS_AROUND: Final = ("Le_PreHook", "Le_PostHook", "Le_RenewHook")
"""acme.sh's."""
_MOST_FILE: Final = 1 << 20
_CODED = re.compile(r"__ACME_BASE64__START_(?P<text>[A-Za-z0-9+/=]*)__ACME_BASE64__END_", re.ASCII)


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a client keeps of one certificate.

    Attributes:
        client: whose it is.
        name: what the client calls it.
        paths: where services read it now, by output as agent.yml calls them; empty where the client doesn't say.
        hooks: the commands that it runs once the certificate is renewed.
        around: those that it runs besides: before and after each try, or for all of its certificates.
        stop: what a person types so that the client leaves it alone.
        files: the pair as read; empty where `problem` says why.
        dns_names: of its certificate, canonical and sorted; empty where that can't be read.
        key_type: of its key; None where the pair can't be kept.
        not_after: end of its certificate; None where that can't be read.
        problem: why the pair can't be kept, with a remedy; empty where it can.
    """

    client: str
    name: str
    paths: Mapping[str, Path]
    hooks: tuple[str, ...]
    stop: str
    files: Mapping[Part, bytes]
    dns_names: tuple[str, ...] = ()
    key_type: KeyType | None = None
    not_after: datetime | None = None
    problem: str = ""
    around: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.client}'s {self.name}"


def find(client: str, folder: Path | None, now: datetime) -> tuple[Lineage, ...]:
    """All certificates of a client, in the order of their names. Blocks.

    Args:
        client: one of `USUAL_FOLDERS`.
        folder: where it keeps them; None for where it usually does.
        now: judges them.

    Raises:
        OperationError: the folder isn't there or can't be read, or there is none in it.
    """
    where = Path(USUAL_FOLDERS[client]).expanduser() if folder is None else folder
    try:
        found = [*_FINDERS[client](where, now)]
    except OSError as error:
        raise OperationError(
            f"{client}'s folder {where} can't be read: {error.strerror}",
            remedy="name its folder after --from, and run this as a user who may read it",
        ) from error
    if not found:
        raise OperationError(f"{where} has no certificate of {client}", remedy="name its folder after --from")
    return tuple(found)


def _certbot(folder: Path, now: datetime) -> Iterator[Lineage]:
    """`renewal/NAME.conf` is a lineage; `live/NAME` has its links, and alone is one that certbot was kept from.

    What it was kept from by `Lineage.stop` is read all the same: a second run is to find what the first one did.
    """
    live = folder / "live"
    names = {path.name for path in live.iterdir() if path.is_dir()} if live.is_dir() else set()
    renewal = folder / "renewal"
    scripts = [str(path) for kind in _SCRIPTS for path in sorted((folder / "renewal-hooks" / kind).glob("*"))]
    names |= {path.name.removesuffix(".conf") for path in renewal.glob("*.conf")}
    for name in sorted(names):
        file = renewal / f"{name}.conf"
        moved = file.with_name(f"{file.name}{_MOVED}")
        settings = settings_of(_text(file if file.is_file() else moved)) if file.is_file() or moved.is_file() else {}
        files = {
            kind: Path(settings.get(key) or live / name / f"{key}.pem")
            for kind, key in (("key", "privkey"), ("fullchain", "fullchain"), ("cert", "cert"), ("chain", "chain"))
        }
        paths = {kind: path for kind, path in files.items() if kind in _PAIR or os.path.lexists(path)}
        stop = f"mv {shlex.quote(str(file))} {shlex.quote(str(moved))}" if file.is_file() else ""
        around = (*certbot_hooks_around(settings), *scripts)
        lineage = Lineage("certbot", name, paths, certbot_hooks(settings), stop, {}, around=around)
        yield _judged(lineage, paths, now)


def _acme_sh(home: Path, now: datetime) -> Iterator[Lineage]:
    """`NAME/` or `NAME_ecc/` with `NAME.conf`; services read what `--install-cert` has made of it."""
    for folder in sorted(path for path in home.iterdir() if path.is_dir()):
        name = folder.name.removesuffix("_ecc")
        conf = folder / f"{name}.conf"
        removed = conf.with_name(f"{conf.name}.removed")  # as `acme.sh --remove` leaves it
        file = conf if conf.is_file() else removed
        if not file.is_file():
            continue
        settings = {key: value.strip("'\"") for key, value in settings_of(_text(file)).items()}
        if not settings.get("Le_Domain"):
            continue
        own = {"key": folder / f"{name}.key", "fullchain": folder / "fullchain.cer"}
        paths: dict[str, Path] = {}
        for kind, key in _INSTALLED.items():  # of two at one path it writes the full chain last
            if (real := settings.get(key, "")) and Path(real) not in paths.values():
                paths[kind] = Path(real)
        ecc = " --ecc" if folder.name.endswith("_ecc") else ""
        stop = f"acme.sh --remove -d {shlex.quote(name)}{ecc}" if file == conf else ""
        decoded = {key: _decoded(value) for key, value in settings.items()}
        around = tuple(decoded[key] for key in _HOOKS_AROUND if decoded.get(key))
        lineage = Lineage("acme.sh", name, paths, acme_sh_hooks(decoded), stop, {}, around=around)
        yield _judged(lineage, own, now)


def _lego(folder: Path, now: datetime) -> Iterator[Lineage]:
    """`certificates/NAME.json` beside `NAME.crt`, which has the chain, and `NAME.key`. Its hooks are its caller's."""
    certificates = folder if folder.name == "certificates" else folder / "certificates"
    for file in sorted(path for path in certificates.iterdir() if path.suffix == ".json"):
        name = file.name.removesuffix(".json")
        own = {"key": certificates / f"{name}.key", "fullchain": certificates / f"{name}.crt"}
        stop = "take the line of `lego ... renew` out of its crontab, or disable its timer"
        yield _judged(Lineage("lego", name, own, (), stop, {}), own, now)


_FINDERS: Final[Mapping[str, Callable[[Path, datetime], Iterator[Lineage]]]] = {
    "certbot": _certbot,
    "acme.sh": _acme_sh,
    "lego": _lego,
}


def _judged(lineage: Lineage, own: Mapping[str, Path], now: datetime) -> Lineage:
    """The lineage with what the files at `own`, the client's, are worth."""
    found: dict[Part, bytes] = {}
    problem = ""
    for part in (Part.PRIVKEY, Part.FULLCHAIN):
        path = own[part.setting]
        try:
            found[part] = _read(path)
        except OSError as error:
            problem = problem or f"{path} can't be read: {error.strerror}; restore it, or issue it anew"
    if problem:
        return replace(lineage, dns_names=_names(found.get(Part.FULLCHAIN, b"")), problem=problem)
    try:
        leaf_pem = rebuilt(found)[Part.CERT]
        facts = leaf_facts(leaf_pem.decode("ascii"))
        lineage = replace(lineage, dns_names=facts.dns_names, not_after=facts.not_after)
        kind = check_public_key(x509.load_pem_x509_certificate(leaf_pem).public_key())
        check_standing(found, Wanted(facts.dns_names, kind, chain=True), now)
    except NoPairError as error:
        return replace(lineage, dns_names=_names(found[Part.FULLCHAIN]), problem=str(error))
    except RefusalError as error:
        return replace(lineage, problem=error.refusal.message)
    except NotTakenOverError as error:
        return replace(lineage, problem=error.message)
    return replace(lineage, files=found, key_type=kind)


def _names(fullchain: bytes) -> tuple[str, ...]:
    """Of a certificate whose key isn't there or is another one's: what is wanted is known all the same."""
    try:
        return leaf_facts(fullchain.decode("ascii")).dns_names
    except (CertplaneError, ValueError):
        return ()


def _decoded(value: str) -> str:
    """acme.sh keeps commands in base64, since its files are read by a shell."""
    match = _CODED.fullmatch(value)
    if match is None:
        return value
    try:
        return base64.b64decode(match["text"]).decode("utf-8", "replace").strip()
    except (binascii.Error, ValueError):
        return ""


def _text(file: Path) -> str:
    return _read(file).decode("utf-8", "replace")


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_MOST_FILE)
