"""broker.yml and policy.yml as `init` writes them. Pure."""

from __future__ import annotations

from certplane.broker.init.wanted import BOOTSTRAP_KEY, CREDENTIAL, SECRET_KEYS, Wanted
from certplane.setup.yaml_text import scalar

_POLICY_HEAD = """\
# Written by `certplane-broker init`, and yours from now on. Who gets which certificates: all keys are in
# docs/configuration.md, "policy.yml". After a change: `certplane-broker policy validate`, then
# `certplane-broker reload`.
version: 1

# What there is to have: the names of a certificate, all of which are in it. Their DNS is written by this broker.
profiles: {}
#profiles:
#  web:
#    type: multi_san               # multi_san: plain names; wildcard: `*.` names; mixed: both
#    dns_names: [www.example.com, example.com]

# Who has what. An identity is the name that a host has for Certplane: its one-time token is for that name.
hosts: {}
#hosts:
#  web1: {identity: web1.example.net, profiles: [web]}
"""

_OPERATORS = """
# Who may look at the fleet (viewer), act on it (operator), and make tokens (admin), by `certplanectl`.
operators:
"""


def broker_yml(wanted: Wanted) -> str:
    """The whole of broker.yml."""
    acme = [
        f"directory_url: {scalar(wanted.directory_url)}",
        *([f"account_email: {scalar(wanted.email)}"] if wanted.email else []),
        f"account_key: {scalar(str(wanted.state_dir / 'account.key'))}",
        *([f"ca_bundle: {scalar(str(wanted.acme_ca))}"] if wanted.acme_ca else []),
        f"dns_provider: {wanted.provider}",
        f"{wanted.provider.replace('-', '_')}: {_section(wanted)}",
    ]
    lines = "".join(f"    {line}\n" for line in acme)
    secrets = "{provider: file}" if wanted.by_unit else f"{{provider: file, file: {{directory: {_path(wanted)}}}}}"
    return f"""\
# Written by `certplane-broker init`, and yours from now on. All keys are in docs/configuration.md; after a change:
# `certplane-broker check`, then restart the broker.
server:
  address: {scalar(wanted.address)}
  tls:
    cert: {scalar(str(wanted.certificate))}
    key: {scalar(str(wanted.key))}
    step_ca: {{url: {scalar(wanted.ca_url)}}}  # who renews it: `certplane-broker renew-certificate`, by a timer
  mtls: {{agent_ca_bundle: {scalar(str(wanted.internal_ca))}}}
policy: {{path: {scalar(str(wanted.policy))}}}
issuer:
  provider: acme
  acme:
{lines}secrets: {secrets}
store: {_store(wanted)}
metrics: {{address: "127.0.0.1:9464"}}
{_bootstrap(wanted)}"""


def drop_in(wanted: Wanted) -> str:
    """What the unit needs to hand the provisioner's key to the broker."""
    return f"""\
# Written by `certplane-broker init`: the key that one-time tokens are made with, for `bootstrap` in broker.yml.
[Service]
LoadCredential={BOOTSTRAP_KEY}:{wanted.bootstrap_key}
"""


def _bootstrap(wanted: Wanted) -> str:
    if not wanted.provisioner:
        return ""
    return f"""\
bootstrap:  # `certplanectl host add` and `token` get one-time tokens by it
  ca_url: {scalar(wanted.ca_url)}
  root_ca_bundle: {scalar(str(wanted.internal_ca))}
  provisioner: {scalar(wanted.provisioner)}
  key_secret: {BOOTSTRAP_KEY}
"""


def policy_yml(wanted: Wanted) -> str:
    """A policy that gives no certificates yet, and says how it is written; its operators are admins."""
    labels: dict[str, str] = {}
    for identity in wanted.operators:
        label, number = _label(identity), 1
        while (own := label if number == 1 else f"{label}-{number}") in labels:
            number += 1
        labels[own] = identity
    operators = "".join(
        f"  {label}: {{identity: {scalar(identity)}, roles: [admin]}}\n" for label, identity in labels.items()
    )
    return _POLICY_HEAD + _OPERATORS + operators


def _section(wanted: Wanted) -> str:
    keys = {**wanted.provider_keys}
    keys.setdefault(SECRET_KEYS[wanted.provider], CREDENTIAL)
    return f"{{{', '.join(f'{key}: {_value(value)}' for key, value in keys.items())}}}"


def _value(text: str) -> str:
    """A value of an argument: a number stays one, since some keys want one."""
    return text if text.isascii() and text.isdigit() and (text == "0" or text[0] != "0") else scalar(text)


def _store(wanted: Wanted) -> str:
    if not wanted.store:
        return f"{{path: {scalar(str(wanted.state_dir / 'broker.db'))}}}"
    return f"{{driver: postgresql, url: {scalar(wanted.store)}}}"


def _path(wanted: Wanted) -> str:
    return scalar(str(wanted.secrets))


def _label(identity: str) -> str:
    """What policy.yml calls an operator: the first label of a name."""
    label = identity.rpartition("/")[2].partition(".")[0]
    kept = "".join(each if each.isascii() and (each.isalnum() or each in "_-") else "-" for each in label)[:64]
    return kept if kept and kept[0].isalnum() else "operator"
