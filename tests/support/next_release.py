"""Programs of a release after this one: a copy of the package with a newer version and one more migration.

environment = next_release(tmp_path)                     # it adds a column and a table: this release goes on beside it
environment = next_release(tmp_path, removes=True)       # it drops what this release needs
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import certplane
from certplane.broker.store.schema import READABLE_FROM, SCHEMA_REVISION

NEXT_REVISION: Final = f"{int(SCHEMA_REVISION) + 1:04d}"
NEXT_VERSION: Final = "99.0.0"

_MIGRATION: Final = '''"""What a later release needs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"
branch_labels = None
depends_on = None

_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    # Nothing of the copy writes or reads them: what is shown is that the programs of this release don't mind.
    op.add_column("orders", sa.Column("budget", _text))
    op.create_table(
        "budgets",
        sa.Column("name", _text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_budgets"),
        sqlite_strict=True,
    )
{more}'''


def next_release(folder: Path, *, removes: bool = False) -> dict[str, str]:
    """The environment in which `python -m certplane...` is of that release.

    Args:
        folder: Where the copy is put.
        removes: The migration also drops something, and says that programs of this release can't use what is left.
    """
    package = folder / "certplane"
    shutil.copytree(Path(certplane.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    _change(package / "__init__.py", f'"{certplane.__version__}"', f'"{NEXT_VERSION}"')
    schema = package / "broker/store/schema.py"
    _change(schema, f'SCHEMA_REVISION: Final = "{SCHEMA_REVISION}"', f'SCHEMA_REVISION: Final = "{NEXT_REVISION}"')
    if removes:
        _change(schema, f'READABLE_FROM: Final = "{READABLE_FROM}"', f'READABLE_FROM: Final = "{NEXT_REVISION}"')
    more = '    op.drop_index("ix_enrollment_reports_record_time", "enrollment_reports")\n' if removes else ""
    migration = _MIGRATION.format(revision=NEXT_REVISION, before=SCHEMA_REVISION, more=more)
    (package / f"broker/store/migrations/versions/{NEXT_REVISION}_next_release.py").write_text(migration)
    return {"PYTHONPATH": str(folder)}


def _change(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text, f"{file} has no {before}"
    file.write_text(text.replace(before, after))
