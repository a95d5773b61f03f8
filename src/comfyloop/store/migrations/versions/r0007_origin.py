"""Where versions came from that were made elsewhere."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("versions", sa.Column("origin", sa.Text))
