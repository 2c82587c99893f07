"""`certplane-broker init` as a person sees it: each step, and what to do next.

The order keeps a token from being spent for nothing: the arguments; the CA's root and what is on this machine already;
the token, as far as it can be judged here; folders and files; the broker's certificate; `check`, as the broker's user.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401 - else imported at the first look-up, by a user who may have no way to it
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from certplane.broker.contact import ContactEmail
from certplane.broker.enrolling.provisioner_key import ProvisionerKey, ProvisionerKeyError
from certplane.broker.init.certificate import OwnCertificate
from certplane.broker.init.text import broker_yml, drop_in, policy_yml
from certplane.broker.init.wanted import BOOTSTRAP_KEY, CREDENTIAL, DIRECTORIES, DROP_IN, SECRET_KEYS, Wanted
from certplane.broker.settings import BrokerSettings, parse_settings
from certplane.config.files import read_file, read_private_file
from certplane.config.values import DnsName, HttpsUrl, IdentityName, ListenAddress
from certplane.errors import ConfigurationError
from certplane.runtime.clock import SystemClock
from certplane.runtime.command import FAILED, OK, say
from certplane.runtime.failpoints import failpoint
from certplane.runtime.files import Owner
from certplane.setup.account import Account, EndedError, account, as_account
from certplane.setup.apply import apply, refuse_differences, would
from certplane.setup.asking import Asker
from certplane.setup.internal_ca import (
    CA_TIME,
    Pin,
    asked_ca,
    bundle_text,
    certificates_in,
    discard_token,
    fingerprints,
    internal_ca_text,
    require_pinned,
    token_for,
)
from certplane.setup.look import Finding, look
from certplane.setup.plan import MakeFolder, Note, Plan, Step, WriteFile
from certplane.stepca.exchange import Endpoint
from certplane.stepca.trust import PinnedRoots

FAILPOINTS = ("init.files",)
"""Beside those of `certplane.setup.apply` and `certificate`: where a test may end this module's work."""

PROGRAM = "certplane-broker init"
_USER = "certplane-broker"
_USER_REMEDY = (
    "install the package or the units' sysusers file, which make it; or name another one by --user, which the broker's "
    "unit must have too"
)
_SYSTEMD = Path("/run/systemd/system")
_USUAL = Path("/etc/certplane/broker.yml")
_TIMER = "certplane-broker-certificate.timer"


def run(options: Namespace, config: Path) -> int:
    """Set this machine up; returns the exit status."""
    try:
        return _Init(options, config).run()
    except EndedError as ended:
        return ended.status


class _Init:
    """One run."""

    def __init__(self, options: Namespace, config: Path) -> None:
        self._options = options
        self._asker = Asker(PROGRAM)
        self._wanted, self._pin = _wanted_by(options, config, self._asker)
        self._settings = _settings(self._wanted)
        self._who: Account = account(options.user, _USER, remedy=_USER_REMEDY)

    def run(self) -> int:
        first = self._as_user(lambda: _first_look(self._wanted, self._pin))
        internal_ca: str = first["internal_ca"]
        require_pinned(internal_ca, self._pin)
        why: str = first["why"]
        files = self._files(internal_ca)
        findings = look(files)
        token = ""
        if not self._options.dry_run:
            refuse_differences(findings, replace=self._options.replace, say=print)
        if why:
            roots = fingerprints(internal_ca)
            token = token_for(self._asker, self._options.token, self._wanted.name, roots, SystemClock(), why=why)
        if self._options.dry_run:
            return self._show(findings, why)
        changed = apply(files, print, replace=self._options.replace)
        failpoint("init.files")
        if why:
            self._as_user(lambda: _get_certificate(self._wanted, internal_ca, token))
            print(f"made {self._wanted.certificate} (the broker's certificate, and its key)")
        else:
            print(f"kept {self._wanted.certificate}")
        if told := discard_token(self._options.token, used=bool(why)):
            print(told)
        return self._end(changed=bool(changed) or bool(why))

    def _files(self, internal_ca: str) -> Plan:
        wanted, owner = self._wanted, self._who.owner
        readable = None if owner is None else Owner(0, owner.gid)
        secrets, secrets_owner = self._secrets_folder()
        steps: list[Step] = [
            MakeFolder(wanted.folder, 0o755),
            MakeFolder(wanted.own, 0o700, owner, exact=True),
            secrets,
            *([] if wanted.state_dir.parent == wanted.folder else [MakeFolder(wanted.state_dir.parent, 0o755)]),
            MakeFolder(wanted.state_dir, 0o711, owner, exact=True),
            WriteFile(wanted.internal_ca, internal_ca),
        ]
        if wanted.acme_ca is not None:
            steps.append(WriteFile(wanted.acme_ca, bundle_text(PROGRAM, self._options.acme_ca, "--acme-ca")))
        secret = self._secret()
        if secret:
            steps.append(WriteFile(wanted.dns_secret, f"{secret}\n", 0o600, secrets_owner, secret=True))
        elif not wanted.dns_secret.exists():
            to_do = f"put the secret of the DNS provider into {wanted.dns_secret} (mode 0600), or give --dns-secret"
            steps.append(Note(f"to do: {to_do}"))
        steps += self._provisioner(secrets_owner)
        steps.append(WriteFile(wanted.config, broker_yml(wanted), 0o640, readable))
        steps.append(WriteFile(wanted.policy, policy_yml(wanted), 0o640, readable, once=True))
        return Plan(tuple(steps))

    def _provisioner(self, owner: Owner | None) -> list[Step]:
        """The key that makes tokens, and what the unit needs to hand it to the broker."""
        wanted, given = self._wanted, self._options.provisioner_key
        if not wanted.provisioner:
            return []
        steps: list[Step] = []
        if given is not None:
            key = self._provisioner_key(given)
            steps.append(WriteFile(wanted.bootstrap_key, key, 0o600, owner, secret=True))
        if wanted.by_unit:
            steps += [MakeFolder(DROP_IN.parent, 0o755), WriteFile(DROP_IN, drop_in(wanted))]
        return steps

    def _provisioner_key(self, path: Path) -> str:
        text = read_private_file(path, at=self._asker.problem("--provisioner-key", "")).decode(errors="replace")
        try:
            ProvisionerKey(text)
        except ProvisionerKeyError as error:
            remedy = "give the provisioner's private key, unencrypted: docs/configuration.md, `bootstrap.key_secret`"
            problem = self._asker.problem("--provisioner-key", f"{path} {error}", remedy)
            raise ConfigurationError([problem]) from error
        return text

    def _secrets_folder(self) -> tuple[MakeFolder, Owner | None]:
        """The folder, and whose a secret in it is: root's where systemd hands it on, else the broker's user's."""
        path, owner = self._wanted.secrets, self._who.owner
        if owner is None:
            return MakeFolder(path, 0o700, exact=True), None
        if self._wanted.by_unit:
            return MakeFolder(path, 0o700, Owner(0, 0), exact=True), Owner(0, 0)
        return MakeFolder(path, 0o750, Owner(0, owner.gid), exact=True), owner

    def _secret(self) -> str:
        path = self._options.dns_secret
        if path is not None:
            return read_private_file(path, at=self._asker.problem("--dns-secret", "")).decode().strip()
        if self._wanted.dns_secret.exists() or self._options.dry_run:
            return ""
        return self._asker.secret(f"The secret of {self._wanted.provider} (not shown; empty for later)")

    def _show(self, findings: Sequence[Finding], why: str) -> int:
        lines = would(findings, replace=self._options.replace)
        wanted = self._wanted
        if why:
            lines.append(f"would get a certificate for {wanted.name} at {wanted.ca_url} with the token: {why}")
            lines.append(f"would make {wanted.key} (mode 0600) and {wanted.certificate}, as user {self._who.name}")
        else:
            lines.append(f"would keep {wanted.certificate}")
        print("\n".join([*lines, "would run `check`", "nothing was changed: this was a dry run"]))
        refuse_differences(findings, replace=self._options.replace)
        return OK

    def _end(self, *, changed: bool) -> int:
        wanted = self._wanted
        config = "" if wanted.config == _USUAL else f" -c {wanted.config}"
        try:
            handed = self._handed()
            self._as_user(
                lambda: _checked(self._settings, offline=self._options.offline, handed=handed), _load_checking
            )
        except EndedError:
            say(f"{PROGRAM}: the files are in place; mend that, and run `certplane-broker{config} check`")
            return FAILED
        print("checked: a start would get as far as its port")
        if not changed:
            print(f"nothing to do: this broker is set up as {wanted.name}")
            return OK
        print(f"next: write {wanted.policy}, then `certplane-broker{config} policy validate`")
        if _SYSTEMD.exists() and not config and self._who.name == _USER:
            reload = "systemctl daemon-reload && " if wanted.provisioner else ""
            print(f"next: {reload}systemctl enable --now {_TIMER} certplane-broker.service")
        else:
            print(f"next: certplane-broker{config} serve; and once an hour: certplane-broker{config} renew-certificate")
        return OK

    def _handed(self) -> Mapping[str, str]:
        """The secrets that the unit will hand to the broker, whose user can't read their files."""
        wanted = self._wanted
        if not wanted.by_unit or self._who.owner is None:
            return {}
        files = {CREDENTIAL: wanted.dns_secret, BOOTSTRAP_KEY: wanted.bootstrap_key}
        return {name: read_file(path).decode(errors="replace") for name, path in files.items() if path.exists()}

    def _as_user(
        self, work: Callable[[], Mapping[str, Any]], load: Callable[[], None] = lambda: None
    ) -> Mapping[str, Any]:
        return as_account(self._who, "certplane-broker", work, load)


def _load_checking() -> None:
    """Import what `check` needs, while root still may."""
    import certplane.broker.checking  # noqa: F401, PLC0415


def _first_look(wanted: Wanted, pin: Pin) -> Mapping[str, Any]:
    """As the broker's user: the internal CA's roots, and why a certificate has to be got; empty if none has."""
    text = internal_ca_text(PROGRAM, wanted.ca_url, pin, wanted.internal_ca, SystemClock())
    why = _own(wanted, text).why_missing(wanted.name, SystemClock().now())
    return {"internal_ca": text, "why": why}


def _get_certificate(wanted: Wanted, internal_ca: str, token: str) -> Mapping[str, Any]:
    _own(wanted, internal_ca).get(wanted.name, token, SystemClock().now())
    return {"done": True}


def _checked(settings: BrokerSettings, *, offline: bool, handed: Mapping[str, str]) -> Mapping[str, Any]:
    from certplane.broker.checking import check  # noqa: PLC0415 - loaded by `_load_checking`

    _, doubts = asyncio.run(check(settings, offline=offline, handed=handed))
    for notice in (*settings.notices, *doubts):
        say(notice)
    return {"done": True}


def _own(wanted: Wanted, internal_ca: str) -> OwnCertificate:
    roots = PinnedRoots(tuple(certificates_in(internal_ca)))
    return OwnCertificate(wanted.certificate, wanted.key, Endpoint.from_url(wanted.ca_url), roots, CA_TIME)


def _settings(wanted: Wanted) -> BrokerSettings:
    """The settings that the file will have; what an argument has put there wrongly is told by its key."""
    return parse_settings(broker_yml(wanted).encode(), str(wanted.config))


def _wanted_by(options: Namespace, config: Path, asker: Asker) -> tuple[Wanted, Pin]:
    name = asker.value(options.name, "--name", "This broker's DNS name, which hosts call", DnsName.parse)
    url, pin = asked_ca(asker, options.ca_url, options.ca_fingerprint, options.ca_bundle)
    question = f"The public CA's ACME directory: a URL, or {' or '.join(DIRECTORIES)}"
    directory = asker.value(options.directory_url, "--directory-url", question, _directory)
    question = f"Who writes the TXT records: {', '.join(SECRET_KEYS)}"
    provider = asker.value(options.dns_provider, "--dns-provider", question, _provider)
    address = asker.value(options.address, "--address", "", ListenAddress.parse)
    question = "Your own identity as an operator, a name that the internal CA will give to you: alice.ops.example.net"
    given: list[str | None] = options.operator or [None]  # a policy that gives nothing to anybody is refused
    operators = [asker.value(each, "--operator", question, IdentityName.parse) for each in given]
    if options.email:
        asker.value(options.email, "--email", "", ContactEmail.parse)
    keys = {}
    for each in options.dns:
        key, separator, value = each.partition("=")
        if not separator or not key:
            raise ConfigurationError([asker.problem("--dns", "must be KEY=VALUE")])
        keys[key] = value
    if options.provisioner_key is not None and not options.provisioner:
        asker.missing("--provisioner", "is required with --provisioner-key", "name the provisioner whose key it is")
    if options.provisioner and options.provisioner_key is None:
        there = config.parent / "secrets" / BOOTSTRAP_KEY
        if not there.exists():
            asker.missing("--provisioner-key", "is required with --provisioner", "give the file with its private key")
    asker.finish()
    state_dir = Path.cwd() / options.state_dir
    return Wanted(
        name=str(name),
        address=str(address),
        ca_url=str(url),
        config=config,
        state_dir=state_dir,
        directory_url=str(directory),
        email=options.email,
        provider=str(provider),
        acme_ca=None if options.acme_ca is None else config.parent / "acme-ca.pem",
        provider_keys=keys,
        store=options.store,
        operators=tuple(str(each) for each in operators),
        provisioner=options.provisioner,
        by_unit=config == _USUAL,
    ), pin


def _directory(text: str) -> str:
    return HttpsUrl.parse(DIRECTORIES.get(text, text))


def _provider(text: str) -> str:
    if text not in SECRET_KEYS:
        raise ValueError(f"must be one of {', '.join(SECRET_KEYS)}")
    return text
