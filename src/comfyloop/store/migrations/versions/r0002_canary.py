"""A share of the traffic of a project may go to a canary."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("projects", sa.Column("canary", sa.Integer, nullable=False, server_default="0"))
    op.add_column("projects", sa.Column("canary_share", sa.Float, nullable=False, server_default="0"))
