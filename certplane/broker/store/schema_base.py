"""What the tables of the one schema are made of; `schema` has its rules, and is what others import."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Integer, MetaData, Text

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

TextColumn: Final = Text().with_variant(Text(collation="C"), "postgresql")
TimeColumn: Final = BigInteger().with_variant(Integer(), "sqlite")
SequenceColumn: Final = BigInteger().with_variant(Integer(), "sqlite")
