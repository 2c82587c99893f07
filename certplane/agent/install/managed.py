"""Which other program renews what stands at a path, as far as its own files beside it say so. Reads, changes nothing.

    certbot   `<folder>/live/<name>/` are links into `<folder>/archive/<name>/`, by `<folder>/renewal/<name>.conf`
    acme.sh   `<folder>/<name>[_ecc]/` holds `<name>.conf`, with `Le_Domain=`
    lego      `<folder>/certificates/` holds `<name>.json` beside `<name>.crt`

Two programs that renew one certificate undo each other's work: acme.sh and lego write through a link into the files of
a version, certbot gives up on a lineage whose links lead elsewhere.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_MOST = 256 * 1024
_DEPLOY = ("renew_hook", "deploy_hook")
_AROUND = ("pre_hook", "post_hook")
_RELOADS = {"nginx": "systemctl reload nginx.service", "apache": "systemctl reload apache2.service"}
"""What certbot's installers do after a renewal, without any hook (`certbot --nginx`, `--apache`)."""
_SETTING = re.compile(r"\s*(?P<key>[A-Za-z_]+)\s*=\s*(?P<value>.*?)\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Manager:
    """A program that renews a certificate too: by which file, with which commands, and how it is stopped."""

    program: str
    file: Path
    stop: str
    hooks: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.program} renews it too, by {self.file}; stop that: `{self.stop}`"
        if not self.hooks:
            return text
        return f"{text}, and give what its hook does as reload_command: {'; '.join(self.hooks)}"


def manager_of(path: Path) -> Manager | None:
    """What renews the file at a path, or the one that a link there leads to; None if nothing is seen of it."""
    try:
        return _certbot(path) or _acme_sh(path) or _lego(path)
    except (OSError, ValueError):  # what can't be read is nobody's
        return None


def settings_of(text: str) -> dict[str, str]:
    """The keys of a file of lines like `key = value`; sections are passed over, the first of a key counts."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if (match := _SETTING.fullmatch(line)) is not None:
            found.setdefault(match["key"], match["value"])
    return found


def certbot_hooks(settings: dict[str, str]) -> tuple[str, ...]:
    """What certbot does once a lineage is renewed, of its renewal file: its hooks, and its installer's reload."""
    reload = _RELOADS.get(settings.get("installer", ""), "")
    return tuple(dict.fromkeys((*_commands(settings, _DEPLOY), *([reload] if reload else []))))


def certbot_hooks_around(settings: dict[str, str]) -> tuple[str, ...]:
    """Those that it runs before and after each try, whatever comes of it: they may stop a service."""
    return _commands(settings, _AROUND)


def _commands(settings: dict[str, str], keys: tuple[str, ...]) -> tuple[str, ...]:
    """`None` is how certbot writes none; it quotes what has a comma or a quote in it."""
    values = (settings.get(key, "") for key in keys)
    return tuple(dict.fromkeys(_unquoted(value) for value in values if value not in {"", "None"}))


def _unquoted(value: str) -> str:
    for quote in ('"""', "'''", '"', "'"):
        if len(value) >= 2 * len(quote) and value.startswith(quote) and value.endswith(quote):
            return value[len(quote) : -len(quote)]
    return value


def _certbot(path: Path) -> Manager | None:
    live = path.parent
    if live.parent.name != "live" or not path.is_symlink():
        return None
    folder = live.parent.parent
    file = folder / "renewal" / f"{live.name}.conf"
    if not file.is_file():
        return None
    stop = f"mv {shlex.quote(str(file))} {shlex.quote(str(file))}.moved"
    settings = settings_of(_read(file))
    return Manager("certbot", file, stop, (*certbot_hooks(settings), *certbot_hooks_around(settings)))


def _acme_sh(path: Path) -> Manager | None:
    folder = path.parent
    name = folder.name.removesuffix("_ecc")
    file = folder / f"{name}.conf"
    if not file.is_file() or not (settings := settings_of(_read(file))).get("Le_Domain"):
        return None
    ecc = " --ecc" if folder.name.endswith("_ecc") else ""
    return Manager("acme.sh", file, f"acme.sh --remove -d {shlex.quote(name)}{ecc}", acme_sh_hooks(settings))


def acme_sh_hooks(settings: dict[str, str]) -> tuple[str, ...]:
    """The command that acme.sh runs once a certificate is renewed, as far as it stands there in clear."""
    value = _unquoted(settings.get("Le_ReloadCmd", ""))
    return (value,) if value and not value.startswith("__ACME_BASE64__") else ()


def _lego(path: Path) -> Manager | None:
    if path.parent.name != "certificates":
        return None
    name = path.name.removesuffix(".issuer.crt").removesuffix(path.suffix)
    file = path.with_name(f"{name}.json")
    if not file.is_file():
        return None
    return Manager("lego", file, "crontab -e (take `lego ... renew` out), or its timer")


def _read(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(_MOST).decode("utf-8", "replace")
