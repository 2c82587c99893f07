"""What a start, and a check, reads before anything is changed: the settings and the files that they name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding

from certplane.broker.configured import locating
from certplane.broker.enrolling.settings import BootstrapSettings
from certplane.broker.enrolling.tokens import IdentityCa
from certplane.broker.policy.source import FilePolicySource
from certplane.broker.services.trust import LoadedTrust, TrustFiles, TrustText
from certplane.broker.settings import BrokerSettings
from certplane.config.bundles import read_ca_bundle
from certplane.errors import ConfigurationError, ConfigurationProblem


@dataclass(frozen=True, slots=True)
class Prepared:
    """Settings, and the files that they name as far as they can be read without changing anything."""

    settings: BrokerSettings
    trust_files: TrustFiles
    trust_text: TrustText
    trust: LoadedTrust
    policy: FilePolicySource
    identity_ca: IdentityCa | None = None
    """That tokens are made for."""


def prepare(settings: BrokerSettings) -> Prepared:
    """Read and check all files that the settings name. Blocks; changes nothing.

    Raises:
        ConfigurationError: everything that is wrong with them, at once.
    """
    problems: list[ConfigurationProblem] = []
    files = TrustFiles(
        cert=settings.server.tls.cert,
        key=settings.server.tls.key,
        agent_ca_bundle=settings.server.mtls.agent_ca_bundle,
        locate=lambda key: settings.source.problem(key, ""),
    )
    policy = FilePolicySource(settings.policy.path, settings.cas, settings.private_issuers, guard=settings.policy.guard)
    text = trust = ca = None
    try:
        text = files.read()
        trust = files.check(text)
    except ConfigurationError as error:
        problems += error.problems
    try:
        locating(settings, lambda: policy.reload().check_grants(), key="policy.path")
    except ConfigurationError as error:
        problems += error.problems
    try:
        ca = identity_ca(settings)
    except ConfigurationError as error:
        problems += error.problems
    if problems or text is None or trust is None:
        raise ConfigurationError(problems)
    return Prepared(settings, files, text, trust, policy, ca)


def identity_ca(settings: BrokerSettings) -> IdentityCa | None:
    """The CA that tokens are made for; None where broker.yml has no section for it. Blocks.

    Raises:
        ConfigurationError: its root can't be read.
    """
    section = settings.bootstrap
    if section is None:
        return None
    return locating(settings, lambda: IdentityCa.of(section, _fingerprint(section)), key="bootstrap.root_ca_bundle")


def _fingerprint(section: BootstrapSettings) -> str:
    """Of a bundle the first certificate counts: a root that is to come is appended."""
    if section.root_ca_bundle is None:
        return section.fingerprint or ""
    root = read_ca_bundle(section.root_ca_bundle).certificates[0]
    return hashlib.sha256(root.public_bytes(Encoding.DER)).hexdigest()
