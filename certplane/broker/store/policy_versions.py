"""The policies that were in force: a hundred rows, with their texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import bindparam, delete, func, select
from typing_extensions import override

from certplane.broker.policy.history import MOST_VERSIONS, PolicyHistory, PolicyVersion
from certplane.broker.store.audit_log import reading
from certplane.broker.store.batch import Done
from certplane.broker.store.cells import Columns
from certplane.broker.store.locks import lock_key
from certplane.broker.store.schema import policy_versions
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import limited_to
from certplane.broker.store.writer import Writer

_VERSION: Final = Columns(PolicyVersion)
_FIRST: Final = 2**31
"""Beyond every number."""


class SqlPolicyHistory(PolicyHistory):
    """`PolicyHistory` over the database."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        compiler = database.compiler
        number = policy_versions.c.number
        rows = select(*(policy_versions.c[name] for name in _VERSION.names))
        page = rows.where(number < bindparam("before")).order_by(number.desc()).suffix_with(limited_to())
        self._page = compiler(page)
        self._newest = compiler(
            select(number, policy_versions.c.hash)
            .where(number < bindparam("before"))
            .order_by(number.desc())
            .suffix_with(limited_to(1))
        )
        self._insert = compiler(compiler.insert(policy_versions), [*_VERSION.names, "packed"])
        self._drop = compiler(delete(policy_versions).where(number <= bindparam("last")))
        self._of_hash = compiler(select(func.max(number)).where(policy_versions.c.hash == bindparam("which")))
        self._one = compiler(rows.add_columns(policy_versions.c.packed).where(number == bindparam("which")))

    @override
    async def keep(self, version: PolicyVersion, packed: bytes) -> bool:
        values = {**_VERSION.values(version), "packed": packed or None}

        def change(session: Session) -> Done[bool]:
            last, newest = session.one(self._newest, {"before": _FIRST}) or (0, "")
            if newest == version.hash:
                return Done(False)
            values["number"] = last + 1
            session.execute(self._insert, self._insert.arguments(values))
            session.execute(self._drop, self._drop.arguments({"last": last + 1 - MOST_VERSIONS}))
            return Done(True)

        return await self._writer.write(change, (), locks=[lock_key("policy versions", "")])

    @override
    async def versions(self, *, before: int | None, limit: int) -> Sequence[PolicyVersion]:
        with reading():
            rows = await self._database.all(self._page.at_most(limit), {"before": before or _FIRST})
        return [_VERSION.value(row) for row in rows[: max(0, limit)]]

    @override
    async def find(self, policy_hash: str) -> tuple[PolicyVersion, bytes] | None:
        with reading():
            found = await self._database.one(self._of_hash, {"which": policy_hash})
            if found is None or found[0] is None:
                return None
            row = await self._database.one(self._one, {"which": found[0]})
        return None if row is None else (_VERSION.value(row[:-1]), bytes(row[-1] or b""))
