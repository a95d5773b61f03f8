"""What a turn under way was asked to do is told apart from what the next one is."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("loops", sa.Column("consolidating", sa.Boolean, nullable=False, server_default=sa.false()))
