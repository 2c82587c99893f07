"""Words of enums that are stored: an older program, which shares the database, must know each of them (ADR 0037)."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import Any, get_args, get_type_hints

from certplane.broker.store import accounts, cells, fleet_rows, holds, members, request_rows

KNOWN = {
    "AgentMode": "daemon timer",
    "CertificateState": "absent waiting due requesting issued installing reloading verifying serving failed degraded",
    "OrderCause": "ordinary early withdrawn revoked operator issuer due",
    "OrderState": "PENDING AUTHORIZED VALIDATING FINALIZING ISSUED FAILED",
    "Reason": (
        "IDENTITY_EXPIRED IDENTITY_REVOKED IDENTITY_RETIRED IDENTITY_CONTESTED IDENTITY_UNKNOWN PROFILE_NOT_ALLOWED "
        "NAMES_NOT_ALLOWED KEY_REUSED ROLE_REQUIRED CSR_INVALID KEY_WEAK REQUEST_INVALID RATE_LIMITED "
        "ISSUER_RATE_LIMITED AUDIT_UNAVAILABLE STORE_UNAVAILABLE POLICY_UNAVAILABLE ISSUER_UNAVAILABLE DNS_UNAVAILABLE "
        "DRAINING ISSUER_REJECTED DNS_REJECTED ORDER_NOT_FOUND CERTIFICATE_NOT_FOUND HOST_NOT_FOUND STREAM_DISPLACED "
        "STREAM_TIMED_OUT INTERNAL"
    ),
    "RenewalCause": "lifetime issuer operator revoked",
    "RenewalStep": "request install reload verify rollback",
    "RevocationReason": "unspecified keyCompromise affiliationChanged superseded cessationOfOperation",
}
"""What a program of `schema.READABLE_FROM` can read. It can't read a row with another word.

So a new word is known by one release and written by the next, or raises `READABLE_FROM`; then it is added here.
"""

NEVER_WRITTEN = {"Reason": {"BOOTSTRAP_NOT_CONFIGURED"}}
"""What no row has: why a call of an operator's was refused, which is no order's failure and no host's report."""


def stored_words() -> dict[str, set[str]]:
    """Every enum that a row can hold, by the types of the fields that are stored."""
    found: dict[str, set[str]] = {}

    def look(hint: Any) -> None:
        if isinstance(hint, type) and issubclass(hint, StrEnum):
            found[hint.__name__] = {word.value for word in hint}
        elif dataclasses.is_dataclass(hint):
            for each in get_type_hints(hint).values():
                look(each)
        for each in get_args(hint):
            if each is not ...:
                look(each)

    for module in (accounts, cells, fleet_rows, holds, members, request_rows):
        for value in vars(module).values():
            if isinstance(value, cells.Cells):
                look(value._kind)
    return found


def test_older_programs_know_all_words() -> None:
    """Those of a release before would fail on a row that has another one."""
    assert stored_words() == {
        name: set(words.split()) | NEVER_WRITTEN.get(name, set()) for name, words in KNOWN.items()
    }
