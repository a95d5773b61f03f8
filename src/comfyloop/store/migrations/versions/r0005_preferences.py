"""What a person made of the preferences in words."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "preferences",
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("text", sa.Text),
        sa.PrimaryKeyConstraint("project", "id", name="pk_preferences"),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_preferences_project"),
    )
