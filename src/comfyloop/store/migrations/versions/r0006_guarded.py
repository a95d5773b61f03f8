"""What a turn under way was asked to do, what it left for the next, and what it has to say."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("loops", sa.Column("consolidating", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("loops", sa.Column("held_over", sa.Integer, nullable=False, server_default="0"))
    op.add_column("loops", sa.Column("note", sa.Text, nullable=False, server_default=""))
