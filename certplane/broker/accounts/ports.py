"""What the accounts' keys need from the database. The rules of `certplane.broker.ports` hold here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from certplane.broker.accounts.model import Account


class AccountRows(Protocol):
    """The accounts, in the database that brokers share, by issuer and directory.

    | adapter | where |
    |---|---|
    | `store.accounts` | the broker, and commands beside it |
    | `issuing.accounts` | the issuing process, which asks the broker |
    """

    async def find(self, issuer: str, directory_url: str) -> Account | None:
        """The account, None if none is recorded.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def change(self, before: Account | None, after: Account) -> Account:
        """Write `after` if the row is still as in `before` (None: there is none), durable, and tell other programs.

        Returns:
            What stands then: `after`, or what another program was faster with. A repeat finds its own row, and
            returns it.

        Raises:
            RefusalError: STORE_UNAVAILABLE; whether it was written isn't known.
        """
        ...


class AllAccounts(AccountRows, Protocol):
    """The rows where all of them can be seen."""

    async def all(self) -> Sequence[Account]:
        """All accounts, by issuer and directory.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...
