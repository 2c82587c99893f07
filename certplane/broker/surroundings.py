"""What `certplane-broker check` can see of the service from where it is run, and what it can't.

What is right depends on who looks and when: a shell lacks the service's environment, root may read what the service may
not, and before the first start systemd has made no folder yet. Such things are notices, a line each, and never silence.
"""

from __future__ import annotations

import dataclasses
import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from certplane.broker.accounts.seal import HOW_TO_MAKE, SealError, SealKeys
from certplane.broker.configured import locating
from certplane.broker.enrolling import provisioner_key
from certplane.broker.enrolling.provisioner_key import ProvisionerKey, ProvisionerKeyError
from certplane.broker.ports import SecretSource
from certplane.broker.prepared import Prepared
from certplane.broker.proof.checkpoints import CheckpointKeyError, Signer
from certplane.broker.secrets.env import EnvSecrets
from certplane.broker.secrets.files import FileSecrets
from certplane.broker.secrets.source import CREDENTIALS_VARIABLE, SecretsProvider
from certplane.broker.settings import BrokerSettings, StoreDriver
from certplane.broker.store.files import look_at
from certplane.config.files import is_there
from certplane.errors import ConfigurationError, ConfigurationProblem, OperationError, RefusalError
from certplane.pki.keys import PrivateKeyError, load_private_key

STATE_DIRECTORY: Final = Path("/var/lib/certplane")
_UNIT_USER: Final = "certplane-broker"
"""As packaging/systemd has them."""


async def unreadable_secrets(
    settings: BrokerSettings, prepared: Prepared | None, secrets: SecretSource, wanted: Callable[[str], bool]
) -> list[ConfigurationProblem]:
    """Secrets that are named, `wanted`, and can't be read here, or used; those of a vault aren't asked for."""
    if not isinstance(secrets, EnvSecrets | FileSecrets):
        return []
    problems = []
    readers = _readers(settings)
    for name, at in secret_names(settings, prepared).items():
        if not wanted(name):
            continue
        read, remedy = readers.get(name, (_anything, ""))
        try:
            read(await secrets.read(name))
        except RefusalError as error:
            problems.append(dataclasses.replace(at, message=error.refusal.message))
        except (SealError, CheckpointKeyError, ProvisionerKeyError) as error:
            problems.append(dataclasses.replace(at, message=f"the secret {name!r} {error}", remedy=remedy))
        except PrivateKeyError as error:
            message = f"the secret {name!r} can't be used: {error}"
            problems.append(dataclasses.replace(at, message=message, remedy=remedy))
    return problems


def _readers(settings: BrokerSettings) -> dict[str, tuple[Callable[[str], object], str]]:
    """What reads the secrets that must have a form, by name, and the remedy for one that hasn't."""

    def account_key(text: str) -> object:
        return load_private_key(text.encode())

    readers: dict[str, tuple[Callable[[str], object], str]] = {
        ca.account_key.secret: (account_key, "put the account's key there, PEM") for ca in settings.cas.values()
    }
    if settings.bootstrap is not None:
        readers[settings.bootstrap.key_secret] = (ProvisionerKey, provisioner_key.HOW_TO_MAKE)
    readers[settings.audit.checkpoint_key_secret] = (Signer, HOW_TO_MAKE)
    readers[settings.store.seal_secret] = (SealKeys, HOW_TO_MAKE)
    return readers


def _anything(_: str) -> None:
    """Of a secret without a form, that it can be read is all that is asked."""


def secret_names(settings: BrokerSettings, prepared: Prepared | None) -> dict[str, ConfigurationProblem]:
    """The secrets that a start and the profiles' orders will want, each with the place that names it first."""
    names: dict[str, ConfigurationProblem] = {}

    def note(name: object, key: str) -> None:
        if isinstance(name, str) and name:
            names.setdefault(name, settings.source.problem(key, ""))

    note(settings.store.password_secret, "store.password_secret")
    note(settings.store.seal_secret, "store.seal_secret")
    note(settings.audit.checkpoint_key_secret, "audit.checkpoint_key_secret")
    note(getattr(settings.bootstrap, "key_secret", ""), "bootstrap.key_secret")
    for issuer, ca in settings.cas.items():
        note(ca.account_key.secret, f"{settings.ca_section(issuer)}.account_key.secret")
        if ca.eab is not None:
            note(ca.eab.hmac_secret, f"{settings.ca_section(issuer)}.eab.hmac_secret")
    acme = settings.issuer.acme
    section = acme.section_of(acme.dns_provider)
    place = f"issuer.acme.{acme.dns_provider.section}" if acme.dns_provider is not None else ""
    notified = {f"notifications.{name}.{each.kind}": each.place for name, each in settings.notifications.items()}
    sinks = {f"audit.sinks.{name}.otlp": each.otlp for name, each in settings.audit.sinks.items() if each.otlp}
    writing = {} if section is None else {place: section}
    for at, each in {**writing, **notified, **sinks}.items():
        for key, name in _named(each):
            note(name, f"{at}.{key}")
    profiles = () if prepared is None else prepared.policy.current.profiles
    for profile in profiles:
        if profile.credentials:
            key = f"profiles.{profile.name}.acme.credentials"
            names.setdefault(profile.credentials, ConfigurationProblem(str(settings.policy.path), None, key, ""))
    if section is not None and any(not profile.credentials for profile in profiles):
        note(getattr(section, section.profiles_key, ""), f"{place}.{section.profiles_key}")
    return names


def _named(section: Any) -> Iterator[tuple[str, object]]:
    """A section's keys that name a secret, with what they name."""
    for field in dataclasses.fields(section):
        if field.name.endswith("_secret"):
            yield field.name, getattr(section, field.name)


def looks_where_the_service_does(settings: BrokerSettings) -> bool:
    """Whether secrets are looked for where the service looks: a directory that is configured, or systemd's."""
    secrets = settings.secrets
    if secrets.provider is not SecretsProvider.FILE:
        return False
    return secrets.file.directory is not None or CREDENTIALS_VARIABLE in os.environ


def look_at_store(settings: BrokerSettings) -> list[str]:
    """What a start would find at `store.path`."""
    if settings.store.driver is not StoreDriver.SQLITE:
        return []
    path = settings.store.path
    if not is_there(path.parent, folder=True):
        return [missing_folder(settings, "store.path", path)]
    try:
        return locating(settings, lambda: look_at(path), key="store.path")
    except OperationError as error:
        raise ConfigurationError([settings.source.problem("store.path", error.message, error.remedy)]) from error


def state_folder_of(configuration: Path) -> Path | None:
    """Where a broker of this file has its state, as far as that can be told of a file that doesn't load."""
    try:
        found = yaml.safe_load(configuration.read_text())
        store = Path(found.get("store", {}).get("path", STATE_DIRECTORY / "broker.db"))
        return Path(found.get("audit", {}).get("spill_path", store)).parent
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return None


def missing_folder(settings: BrokerSettings, key: str, path: Path) -> str:
    """The notice for a folder that systemd makes at the first start.

    Raises:
        ConfigurationError: it is another, which a person must make.
    """
    folder = path.parent
    if folder != STATE_DIRECTORY and STATE_DIRECTORY not in folder.parents:
        remedy = f"make {folder}, owned by the service's user"
        raise ConfigurationError([settings.source.problem(key, f"{path}: there is no folder {folder}", remedy)])
    return f"{folder} isn't there yet: systemd makes it at the first start (StateDirectory= of the unit)"


def seen_as_root(settings: BrokerSettings) -> list[str]:
    """Root may read everything, so that what it sees is no proof for a service that runs as somebody else."""
    if os.geteuid() != 0:
        return []
    user = service_user(settings)
    if user is None:
        return []
    again = f"sudo -u {user} certplane-broker -c {settings.source.file} check"
    return [f"checked as root, which may read everything; to check as the service: {again}"]


def service_user(settings: BrokerSettings) -> str | None:
    """The user that the service runs as, if it isn't root: the owner of its state, else the unit's user."""
    try:
        owner = settings.store.path.parent.stat().st_uid
        return pwd.getpwuid(owner).pw_name if owner else None
    except (OSError, KeyError):
        pass
    try:
        return pwd.getpwnam(_UNIT_USER).pw_name
    except KeyError:
        return None
