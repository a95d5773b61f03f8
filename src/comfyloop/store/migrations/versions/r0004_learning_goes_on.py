"""What each version learned; hold-out by what a person did; why a loop rests."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table(
        "folds", naming_convention={"uq": "uq_%(table_name)s_%(column_0_N_name)s"}
    ) as folds:
        folds.add_column(sa.Column("stratum", sa.String(16), nullable=False, server_default="correction"))
        folds.drop_constraint("uq_folds_project_number", type_="unique")
        folds.create_unique_constraint("uq_folds_project_stratum_number", ["project", "stratum", "number"])
    for table in ("runs", "versions"):
        op.add_column(table, sa.Column("fresh", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "lessons",
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("number", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("feedback", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("project", "number", "feedback", name="pk_lessons"),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_lessons_project"),
        comment="What each version itself was trained on; what it has of its parent is found there.",
    )
    op.create_index("ix_lessons_feedback", "lessons", ["feedback"])
    op.add_column("loops", sa.Column("reason", sa.Text, nullable=False, server_default=""))
    op.add_column("loops", sa.Column("looked_seq", sa.BigInteger, nullable=False, server_default="0"))
    for name in ("consolidate", "by_hand"):
        op.add_column("loops", sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false()))
