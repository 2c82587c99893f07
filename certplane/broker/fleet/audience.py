"""Whom an agent CA bundle lets in: every host of the policy that was ever heard, by the CA of its last identity.

A host that isn't connected, or is at another broker, is shut out by a bundle as one that is here. Services and
operators have no stream, so what they have isn't known; nor is it of hosts that were last heard by an older release.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from certplane.broker.fleet.registry import StreamRegistry
from certplane.broker.members.ports import OtherBrokers
from certplane.broker.ports import PolicySource
from certplane.errors import RefusalError

logger = logging.getLogger(__name__)

_PAGE = 1024


@dataclass(frozen=True, slots=True)
class HostAnchor:
    """By which CA a host was let in last.

    Attributes:
        host: The identity's name.
        anchor: The CA of the bundle that its identity led to (`Caller.anchor`); empty where it isn't known.
        broker_id: Who has its stream; empty if that has ended.
    """

    host: str
    anchor: str
    broker_id: str


class HostAnchors(Protocol):
    """The CAs of hosts' identities, as their last streams had them; the rules of `certplane.broker.ports` hold here."""

    async def list_anchors(self, *, after: str, limit: int) -> Sequence[HostAnchor]:
        """Hosts by name, those after `after`.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


@dataclass(frozen=True, slots=True)
class AnchoredHost:
    """A host of the policy, by which CA it was let in last, and whether it has a stream at any broker."""

    name: str
    anchor: str
    connected: bool


class TrustAudience:
    """Knows the hosts and their CAs."""

    def __init__(
        self, anchors: HostAnchors, registry: StreamRegistry, policies: PolicySource, others: OtherBrokers
    ) -> None:
        """Nothing is read yet; `others` knows whether a broker still is."""
        self._anchors = anchors
        self._registry = registry
        self._policies = policies
        self._others = others

    async def hosts(self) -> Sequence[AnchoredHost]:
        """All of them by name; where the store can't be read, those that are connected to this broker. Never raises."""
        found = {
            host: AnchoredHost(host, stream.caller.anchor, connected=True)
            for host in self._registry.hosts
            if (stream := self._registry.place_of(host)) is not None
        }
        try:
            known = frozenset(self._policies.current.host_names)
            after = ""
            while page := await self._anchors.list_anchors(after=after, limit=_PAGE):
                for each in page:
                    if each.host in known and each.host not in found:
                        connected = bool(each.broker_id) and self._others.find(each.broker_id) is not None
                        found[each.host] = AnchoredHost(each.host, each.anchor, connected)
                after = page[-1].host
        except RefusalError as error:
            logger.warning("of hosts that aren't connected to this broker, the CAs can't be read: %s", error)
        return sorted(found.values(), key=lambda host: host.name)


@dataclass(frozen=True, slots=True)
class ShutOut:
    """Whom a bundle would shut out.

    Attributes:
        hosts: By name.
        connected: How many of them have a stream.
        all_connected: How many hosts have one.
    """

    hosts: tuple[str, ...]
    connected: int
    all_connected: int


def shut_out_by(anchors: Collection[str], hosts: Sequence[AnchoredHost]) -> ShutOut:
    """Whom a bundle of these CAs (`TrustBundle.anchors`) would shut out."""
    lost = [host for host in hosts if host.anchor and host.anchor not in anchors]
    return ShutOut(
        tuple(host.name for host in lost),
        sum(host.connected for host in lost),
        sum(host.connected for host in hosts),
    )
