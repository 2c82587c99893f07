"""`AllAccounts` in memory: one fleet's rows, which several brokers of a test may share."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from certplane.broker.accounts.model import Account
from certplane.broker.accounts.ports import AllAccounts
from tests.fakes.faults import FaultScript


class FakeAccounts(AllAccounts):
    """`rows` is what is stored, by issuer and directory."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Account] = {}
        self.faults = FaultScript()

    @override
    async def find(self, issuer: str, directory_url: str) -> Account | None:
        async with self.faults.around("find"):
            return self.rows.get((issuer, directory_url))

    @override
    async def all(self) -> Sequence[Account]:
        async with self.faults.around("all"):
            return [self.rows[key] for key in sorted(self.rows)]

    @override
    async def change(self, before: Account | None, after: Account) -> Account:
        async with self.faults.around("change"):
            standing = self.rows.get((after.issuer, after.directory_url))
            if standing is not None and standing != before:
                return standing
            self.rows[after.issuer, after.directory_url] = after
            return after
