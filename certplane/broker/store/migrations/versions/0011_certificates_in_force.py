# ruff: noqa: S608 - the parts of these statements are the lines below
"""Every certificate in force has a row among the renewal plans, and is found by it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_time = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_REPLACED = "EXISTS (SELECT 1 FROM orders AS o WHERE o.replaces_certificate_id = c.certificate_id AND state = 'ISSUED')"


def upgrade() -> None:
    """Rows for those that had no plan; those of certificates that were replaced or revoked go.

    An expired one may get a row, which is dropped an instant later by the broker that starts: what time it is, is not a
    migration's to say.
    """
    op.add_column("renewal_plans", sa.Column("issuer", _text, nullable=False, server_default=""))
    op.add_column("renewal_plans", sa.Column("not_after", _time, nullable=False, server_default="0"))
    op.execute(
        "DELETE FROM renewal_plans WHERE certificate_id IN (SELECT p.certificate_id FROM renewal_plans AS p "
        "JOIN certificates AS c ON c.certificate_id = p.certificate_id "
        f"WHERE c.revoke_time IS NOT NULL OR {_REPLACED})"
    )
    op.execute(
        "UPDATE renewal_plans SET "
        "issuer = (SELECT c.issuer FROM certificates AS c WHERE c.certificate_id = renewal_plans.certificate_id), "
        "not_after = (SELECT c.not_after FROM certificates AS c WHERE c.certificate_id = renewal_plans.certificate_id)"
    )
    op.execute(
        "INSERT INTO renewal_plans (certificate_id, host, renew_time, cause, reason, explanation_url, check_failures, "
        "renewal_request_id, issuer, not_after) "
        "SELECT c.certificate_id, c.identity, c.renew_time, '', '', '', 0, '', c.issuer, c.not_after "
        f"FROM certificates AS c WHERE c.revoke_time IS NULL AND NOT {_REPLACED} "
        "AND NOT EXISTS (SELECT 1 FROM renewal_plans AS p WHERE p.certificate_id = c.certificate_id)"
    )
    op.drop_index("ix_renewal_plans_next_check_time", "renewal_plans")
    op.create_index("ix_renewal_plans_host", "renewal_plans", ["host", "certificate_id"])
    op.create_index("ix_renewal_plans_check", "renewal_plans", ["issuer", "next_check_time", "certificate_id"])
    op.create_index("ix_renewal_plans_not_after", "renewal_plans", ["not_after"])


def downgrade() -> None:
    """Rows for which nothing is planned say nothing to an older release."""
    op.drop_index("ix_renewal_plans_not_after", "renewal_plans")
    op.drop_index("ix_renewal_plans_check", "renewal_plans")
    op.drop_index("ix_renewal_plans_host", "renewal_plans")
    op.execute("DELETE FROM renewal_plans WHERE cause = ''")
    op.drop_column("renewal_plans", "not_after")
    op.drop_column("renewal_plans", "issuer")
    op.create_index("ix_renewal_plans_next_check_time", "renewal_plans", ["next_check_time"])
