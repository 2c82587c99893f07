"""What the entries of policy.yml say of each other: names of identities and profiles, and names with placeholders.

Asked of the file's nodes, so that it is told beside whatever else is wrong with the file.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass
from typing import Final

from certplane.broker.policy.entries import PRIVATE_USE, covered_names, is_private, name_problem
from certplane.broker.policy.placeholders import LABEL, DnsNamePattern, MissingLabelError, expand, has_placeholder
from certplane.config.decoding import Decoder
from certplane.config.document import MappingNode, Node, ScalarNode, SequenceNode
from certplane.config.values import canonical_identity_name
from certplane.pki.names import DnsNameError

_TRUE: Final = frozenset({"true", "yes", "on"})


@dataclass(frozen=True, slots=True)
class _Patterns:
    """The names of a profile that has placeholders; `public`: its CAs are, so that names of private networks aren't."""

    names: tuple[str, ...]
    public: bool


def check_across(root: MappingNode, private_issuers: Collection[str] | None, decoder: Decoder) -> None:
    """Note all that is wrong between entries; `private_issuers` as in `read_policy`."""
    profiles = entries_of(root, "profiles")
    patterns = {}
    for name, node in profiles.items():
        _check_label(name, node, decoder)
        if isinstance(node, MappingNode):
            found = _check_private_names(node, private_issuers, decoder)
            if found is not None:
                patterns[name] = found
    owners: dict[str, str] = {}
    for section in ("hosts", "services", "operators"):
        for label, node in entries_of(root, section).items():
            _check_label(label, node, decoder)
            if isinstance(node, MappingNode):
                _check_identity(node, owners, decoder)
                _check_profiles(node, label, profiles, patterns, decoder)


def entries_of(root: MappingNode, section: str) -> dict[str, Node]:
    """The entries of a section, as far as they have names."""
    entry = root.entries.get(section)
    if entry is None or not isinstance(entry.value, MappingNode):
        return {}
    return {name: inner.value for name, inner in entry.value.entries.items()}


def _check_private_names(
    profile: MappingNode, private_issuers: Collection[str] | None, decoder: Decoder
) -> _Patterns | None:
    """Names of private networks belong into profiles whose CAs are private; the names, if they have placeholders."""
    public = private_issuers is not None and not _is_private_profile(profile, private_issuers)
    names = _texts(profile, "dns_names")
    if public:
        for item in names:
            _check_private_name(item.key, item.text.lower(), decoder)
    if not any(has_placeholder(item.text) for item in names):
        return None
    try:
        return _Patterns(tuple(DnsNamePattern.parse(item.text) for item in names), public)
    except ValueError:
        return None  # told already


def _is_private_profile(profile: MappingNode, private_issuers: Collection[str]) -> bool:
    acme = profile.entries.get("acme")
    if acme is None or not isinstance(acme.value, MappingNode):
        return "" in private_issuers
    entry = acme.value.entries.get("private_ca")
    if entry is not None and isinstance(entry.value, ScalarNode) and entry.value.text.lower() in _TRUE:
        return True
    named = [item.text for item in _texts(acme.value, "issuers")]
    return all(issuer in private_issuers for issuer in named or [""])


def _check_private_name(key: str, name: str, decoder: Decoder) -> None:
    if is_private(name):
        domain = next(domain for domain in PRIVATE_USE if f".{name}".endswith(f".{domain}"))
        remedy = (
            "remove it; or, if the profile's issuers are private ACME CAs, set their ca_bundle in broker.yml or "
            "acme.private_ca: true here"
        )
        decoder.add(key, f"is {name[:80]}: names under .{domain} are not public", remedy)


def _texts(node: MappingNode, key: str) -> list[ScalarNode]:
    """The texts of a list."""
    entry = node.entries.get(key)
    items = entry.value.items if entry is not None and isinstance(entry.value, SequenceNode) else ()
    return [item for item in items if isinstance(item, ScalarNode)]


def _check_label(label: str, node: Node, decoder: Decoder) -> None:
    if LABEL.fullmatch(label) is None:
        decoder.add(node.key, "has a name with other characters than A-Z, a-z, 0-9, '.', '_', '-', or over 64 of them")


def _check_identity(node: MappingNode, owners: dict[str, str], decoder: Decoder) -> None:
    entry = node.entries.get("identity")
    if entry is None or not isinstance(entry.value, ScalarNode):
        return
    try:
        identity = canonical_identity_name(entry.value.text)
    except ValueError:
        return  # told already
    first = owners.setdefault(identity, node.key)
    if first != node.key:
        decoder.add(entry.value.key, f"is {identity}, the identity of {first} too", "give each entry its own")


def _check_profiles(
    node: MappingNode, label: str, known: Container[str], patterns: Mapping[str, _Patterns], decoder: Decoder
) -> None:
    for item in _texts(node, "profiles"):
        if item.text not in known:
            decoder.add(item.key, f"is {item.text[:64]!a}, which is no profile", "define it under `profiles`")
        elif (of_profile := patterns.get(item.text)) is not None and LABEL.fullmatch(label) is not None:
            labels = _labels(node)
            if labels is not None:
                _check_names(item, of_profile, label, labels, decoder)


def _labels(node: MappingNode) -> Mapping[str, str] | None:
    """The labels of a host; None if something is wrong with them, which is told already."""
    entry = node.entries.get("labels")
    if entry is None or (isinstance(entry.value, ScalarNode) and entry.value.is_null):
        return {}
    if not isinstance(entry.value, MappingNode):
        return None
    labels = {key: inner.value for key, inner in entry.value.entries.items()}
    texts = {key: value.text for key, value in labels.items() if isinstance(value, ScalarNode)}
    return texts if len(texts) == len(labels) and all(map(LABEL.fullmatch, texts.values())) else None


def _check_names(
    item: ScalarNode, patterns: _Patterns, label: str, labels: Mapping[str, str], decoder: Decoder
) -> None:
    """The names that one identity gets from a profile with placeholders, as `ProfileEntry` has it of written ones."""
    profile, change = item.text, "change the label that it is made of, or the profile's dns_names"
    try:
        names = expand(patterns.names, label, labels)
    except MissingLabelError as error:
        needed = f"is {profile}, whose dns_names have {{labels.{error.key}}}, and there is no such label here"
        remedy = f"add `labels: {{{error.key}: ...}}`; only hosts have labels" if not labels else "add it to `labels`"
        decoder.add(item.key, needed, remedy)
        return
    except DnsNameError as error:
        decoder.add(item.key, f"is {profile}, by which a name {error}", change)
        return
    for name in names:
        if problem := name_problem(name):
            decoder.add(item.key, f"is {profile}, which gives {name}: {problem}", change)
        elif patterns.public and not any(map(is_private, patterns.names)):
            _check_private_name(item.key, name, decoder)
    for _, (name, covering) in covered_names(names):
        problem = f"is {profile}, which gives {name}, which {covering} covers; CAs refuse both together"
        decoder.add(item.key, problem, change)
