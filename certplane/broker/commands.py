"""What an operator at the broker's machine may read beside the running broker: certificates, the audit log, a policy.

Each function answers one command with values ready to be shown (`Row`: text, lists of text).
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certplane.broker.budget.model import IssuerLimits
from certplane.broker.database import open_store
from certplane.broker.model import (
    ROLES,
    CertificateRecord,
    IdentityKind,
)
from certplane.broker.policy.document import read_policy
from certplane.broker.policy.same_names import same_names, warnings
from certplane.broker.settings import BrokerSettings
from certplane.config.document import Document
from certplane.errors import ConfigurationError, OperationError

if TYPE_CHECKING:
    from certplane.broker.store.stores import Stores

Row = dict[str, Any]


async def newest_certificates(settings: BrokerSettings, limit: int) -> tuple[list[Row], bool]:
    """The newest certificates of all identities, newest first, and whether there are more."""
    async with open_store(settings) as stores:
        found = await stores.certificates.newest_certificates(limit + 1)
        return await _rows(stores, found[:limit]), len(found) > limit


async def _rows(stores: Stores, records: Sequence[CertificateRecord]) -> list[Row]:
    """The certificates, with what else is known of them.

    One that another has taken the place of says so, and isn't renewed: its holder has been given that. Others are
    renewed when their plan says, which hosts, the fleet's views and this are to say alike.
    """
    ids = [record.certificate_id for record in records]
    gone = await stores.certificates.superseded(ids)
    plans = {plan.certificate_id: plan.renew_time for plan in await stores.renewal_plans.planned(ids)}
    rows = []
    for record in records:
        row = certificate_row(record)
        if record.certificate_id in gone and not record.revoke_time:
            row |= {"state": "superseded", "renew": ""}
        elif (planned := plans.get(record.certificate_id)) is not None:
            row["renew"] = shown_time(planned)
        rows.append(row)
    return rows


async def certificate_of(settings: BrokerSettings, certificate_id: str) -> tuple[CertificateRecord, Row]:
    """A certificate by its id, and its row as `certs list` has it.

    Certificates are public, so that looking at one is not audited.

    Raises:
        OperationError: there is none.
    """
    async with open_store(settings) as stores:
        record = await stores.certificates.get_certificate(certificate_id)
        if record is not None:
            return record, (await _rows(stores, [record]))[0]
    raise OperationError(
        f"there is no certificate {certificate_id[:64]!a}", remedy="`certplane-broker certs list` shows their ids"
    )


def policy_rows(
    path: Path,
    private_issuers: Collection[str] | None = None,
    budgets: Mapping[str, IssuerLimits] | None = None,
) -> Row:
    """What a policy file says: its hash, its profiles, who has which, and what of it looks like a mistake (`notices`).

    Args:
        path: The file.
        private_issuers: The broker's issuers that are private CAs (`load_policy`); None where no broker.yml tells, as
            in a repository of policies. Then names that only those may certify are a notice.
        budgets: What each issuer may be asked for, the default one first; None likewise: nothing is said of it.

    Raises:
        ConfigurationError: everything that is wrong with it.
    """
    document = Document.read(path)
    policy = read_policy(document, private_issuers)
    policy.check_grants()
    notices = []
    if private_issuers is None:
        try:
            read_policy(document)
        except ConfigurationError as error:  # of nothing else, as it was read
            notices = [f"{problem.key}: {problem.message}; {problem.remedy}" for problem in error.problems]
    profiles = [
        {"profile": profile.name, "type": profile.kind, "dns_names": list(profile.dns_names), "hash": profile.hash}
        for profile in policy.profiles
    ]
    identities = [
        {
            "identity": grant.name,
            "kind": grant.kind.value,
            "label": grant.label,
            "profiles": list(grant.profiles),
            "roles": list(grant.roles),
            "labels": [f"{key}={value}" for key, value in grant.labels.items()],
        }
        for grant in policy.grants
    ]
    rows = {"policy_hash": policy.hash, "profiles": profiles, "identities": identities}
    alike = warnings(same_names(policy, budgets or {}))
    return {**rows, "notices": [*notices, *policy_notices(rows), *alike]}


def policy_notices(policy: Row) -> list[str]:
    """What is allowed in a policy and looks like a mistake all the same; `policy` as from `policy_rows`."""
    notices = []
    served = [each for each in policy["identities"] if each["kind"] != IdentityKind.OPERATOR]
    if not served:
        notices.append("has operators only: no host or service can connect; add one under `hosts`")
    elif not any(each["profiles"] for each in served):
        notices.append("gives no host or service a profile, so that nobody gets a certificate; add `profiles` to one")
    for each in policy["identities"]:
        place = f"{each['kind']}s.{each['label']}"
        known = ", ".join(sorted(ROLES))
        notices += [
            f"{place}.roles: {role!r} means nothing to the broker; the roles that do are {known}"
            for role in each["roles"]
            if role not in ROLES
        ]
        if each["kind"] == IdentityKind.OPERATOR and not each["roles"]:
            notices.append(f"{place}: has no roles, so the fleet is closed to it; the roles are {known}")
    return notices


def certificate_row(record: CertificateRecord) -> Row:
    """A certificate by its record alone: `renew` is the time that it was stored with."""
    return {
        "certificate_id": record.certificate_id,
        "identity": record.identity,
        "profile": record.profile,
        "dns_names": list(record.dns_names),
        "serial_number": record.serial_number,
        "issuer": record.issuer,
        "not_before": shown_time(record.not_before),
        "not_after": shown_time(record.not_after),
        "renew": shown_time(record.renew_time),
        "created": shown_time(record.create_time),
        "delivered": shown_time(record.deliver_time),
        "revoked": shown_time(record.revoke_time),
        "state": "revoked" if record.revoke_time else "delivered" if record.deliver_time else "not delivered",
    }


def shown_time(time: datetime | None) -> str:
    """A time as rows have it; empty for none."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}" if time else ""


def operator() -> str:
    """Who gave the command: the login name, and the user behind sudo."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    behind = os.environ.get("SUDO_USER", "")
    return f"{user} ({behind[:64]})" if behind and behind.isprintable() else user
