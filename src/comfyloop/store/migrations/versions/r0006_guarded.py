"""What a turn was asked to do, what it left for the next and has to say; what people are asked; how canaries do."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("loops", sa.Column("consolidating", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("loops", sa.Column("held_over", sa.Integer, nullable=False, server_default="0"))
    op.add_column("loops", sa.Column("note", sa.Text, nullable=False, server_default=""))
    op.create_table(
        "flags",
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("key", sa.String(300), nullable=False),
        sa.Column("answer", sa.String(128)),
        sa.Column("body", sa.Text),
        sa.PrimaryKeyConstraint("project", "key", name="pk_flags"),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_flags_project"),
    )
    op.add_column("versions", sa.Column("canary", sa.Text))
