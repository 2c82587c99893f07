"""The ACME accounts that brokers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import bindparam, select, update
from typing_extensions import override

from certplane.broker.accounts.model import Account
from certplane.broker.accounts.ports import AllAccounts
from certplane.broker.model import ChangeKind
from certplane.broker.store.audit_log import reading
from certplane.broker.store.batch import Done
from certplane.broker.store.cells import Columns
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import acme_accounts
from certplane.broker.store.session import Database, Session
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock

_ACCOUNT: Final = Columns(Account)
_KEY: Final = ("issuer", "directory_url")


class SqlAccounts(AllAccounts):
    """`AllAccounts` over the database."""

    def __init__(self, database: Database, writer: Writer, clock: Clock, changes: ChangeLog) -> None:
        self._database = database
        self._writer = writer
        self._clock = clock
        self._changes = changes
        compiler = database.compiler
        row = select(*(acme_accounts.c[name] for name in _ACCOUNT.names))
        which = [acme_accounts.c[name] == bindparam(f"which_{name}") for name in _KEY]
        self._find = compiler(row.where(*which))
        self._find_to_change = compiler(row.where(*which).with_for_update())
        self._all = compiler(row.order_by(*(acme_accounts.c[name] for name in _KEY)))
        columns = (*_ACCOUNT.names, "change_time")
        self._insert = compiler(compiler.insert(acme_accounts).on_conflict_do_nothing(), columns)
        self._update = compiler(update(acme_accounts).where(*which), [name for name in columns if name not in _KEY])

    @override
    async def find(self, issuer: str, directory_url: str) -> Account | None:
        with reading():
            row = await self._database.one(self._find, _which(issuer, directory_url))
        return None if row is None else _ACCOUNT.value(row)

    @override
    async def all(self) -> Sequence[Account]:
        with reading():
            return [_ACCOUNT.value(row) for row in await self._database.all(self._all, {})]

    @override
    async def change(self, before: Account | None, after: Account) -> Account:
        which = _which(after.issuer, after.directory_url)
        values = {**which, **_ACCOUNT.values(after), "change_time": to_micros(self._clock.now())}

        def change(session: Session) -> Done[Account]:
            standing = self._standing(session, which)
            if standing is not None and standing != before:
                return Done(standing)
            if standing is not None:
                session.execute(self._update, self._update.arguments(values))
            elif not session.execute(self._insert, self._insert.arguments(values)):
                # Another broker has inserted it since the question above, and this statement has waited for it.
                faster = self._standing(session, which)
                assert faster is not None
                return Done(faster)
            self._changes.add(session, ChangeKind.ACCOUNT, after.issuer)  # commands beside a broker change it too
            return Done(after)

        return await self._writer.write(change, ())

    def _standing(self, session: Session, which: dict[str, Any]) -> Account | None:
        row = session.one(self._find_to_change, which)
        return None if row is None else _ACCOUNT.value(row)


def _which(issuer: str, directory_url: str) -> dict[str, Any]:
    return {"which_issuer": issuer, "which_directory_url": directory_url}
