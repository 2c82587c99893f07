"""A policy made of values, and a `PolicySource` whose policy a test changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from certplane.broker.model import Grant, IdentityKind, Profile
from certplane.broker.ports import Policy
from certplane.broker.standing_rules import IncidentRules, RolloutRules
from certplane.errors import Reason, RefusalError


@dataclass(frozen=True)
class FakePolicy:
    """`Policy` of the given grants and profiles; its hash is that of what it says."""

    grants: dict[str, Grant] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    rules: tuple[RolloutRules, IncidentRules] = (RolloutRules(), IncidentRules())

    @classmethod
    def of(cls, grants: Iterable[Grant] = (), profiles: Iterable[Profile] = ()) -> FakePolicy:
        return cls({grant.name: grant for grant in grants}, {profile.name: profile for profile in profiles})

    @property
    def hash(self) -> str:
        return hashlib.sha256(repr((self.grants, self.profiles)).encode()).hexdigest()

    def find_grant(self, identity: str) -> Grant | None:
        return self.grants.get(identity)

    def find_profile(self, name: str) -> Profile | None:
        return self.profiles.get(name)

    def granted(self, identity: str, profile: str) -> Profile | None:
        grant = self.grants.get(identity)
        return self.profiles.get(profile) if grant is not None and profile in grant.profiles else None

    @property
    def rollouts(self) -> RolloutRules:
        return self.rules[0]

    @property
    def incidents(self) -> IncidentRules:
        return self.rules[1]

    def find_host(self, label: str) -> Grant | None:
        hosts = (grant for grant in self.grants.values() if grant.kind is IdentityKind.HOST)
        return next((grant for grant in hosts if grant.label == label), None)

    def hosts_with(self, labels: Iterable[str]) -> frozenset[str]:
        wanted = {*labels}
        return frozenset(
            grant.name
            for grant in self.grants.values()
            if not wanted.isdisjoint(f"{key}={value}" for key, value in grant.labels.items())
        )

    def identities_of(self, name_or_label: str) -> frozenset[str]:
        return frozenset(grant.name for grant in self.grants.values() if name_or_label in {grant.name, grant.label})

    @property
    def host_names(self) -> list[str]:
        return self._names(IdentityKind.HOST)

    @property
    def service_names(self) -> list[str]:
        return self._names(IdentityKind.SERVICE)

    def _names(self, kind: IdentityKind) -> list[str]:
        return sorted(grant.name for grant in self.grants.values() if grant.kind is kind)


class FakePolicySource:
    """`PolicySource`; assign `policy` to reload, None stands for one that never loaded."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy

    @property
    def current(self) -> Policy:
        if self.policy is None:
            raise RefusalError(Reason.POLICY_UNAVAILABLE, "no policy is loaded")
        return self.policy
