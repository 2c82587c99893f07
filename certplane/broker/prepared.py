"""What a start, and a check, reads before anything is changed: the settings and the files that they name."""

from __future__ import annotations

from dataclasses import dataclass

from certplane.broker.configured import locating
from certplane.broker.policy.source import FilePolicySource
from certplane.broker.services.trust import LoadedTrust, TrustFiles, TrustText
from certplane.broker.settings import BrokerSettings
from certplane.errors import ConfigurationError, ConfigurationProblem


@dataclass(frozen=True, slots=True)
class Prepared:
    """Settings, and the files that they name as far as they can be read without changing anything."""

    settings: BrokerSettings
    trust_files: TrustFiles
    trust_text: TrustText
    trust: LoadedTrust
    policy: FilePolicySource


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
    text = trust = None
    try:
        text = files.read()
        trust = files.check(text)
    except ConfigurationError as error:
        problems += error.problems
    try:
        locating(settings, lambda: policy.reload().check_grants(), key="policy.path")
    except ConfigurationError as error:
        problems += error.problems
    if problems or text is None or trust is None:
        raise ConfigurationError(problems)
    return Prepared(settings, files, text, trust, policy)
