"""`NoProvider`: in the place of a DNS provider where none is configured, since no issuer wants records of ours.

It is met by orders of a configuration of before alone: those that were open when `dns_provider` was taken out of it.
"""

from __future__ import annotations

from typing_extensions import override

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.provider import DnsProvider
from certplane.broker.model import TxtRecord
from certplane.errors import Reason, RefusalError


class NoProvider(DnsProvider):
    """Writes and removes nothing, and says so."""

    @override
    async def add_txt(self, record: TxtRecord, deadline: Deadline) -> TxtRecord:
        raise RefusalError(Reason.DNS_REJECTED, _message(record, "written"))

    @override
    async def remove_txt(self, record: TxtRecord, deadline: Deadline) -> None:
        raise RefusalError(Reason.DNS_REJECTED, _message(record, "removed"))


def _message(record: TxtRecord, what: str) -> str:
    return (
        f"the TXT record at {record.name} can't be {what}: no DNS provider is configured; add issuer.acme.dns_provider"
    )
