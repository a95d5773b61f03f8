"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ID = sa.String(128)
NAME = sa.String(63)
MOMENT = sa.DateTime(timezone=True)


def seq() -> sa.Column[int]:
    return sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False)


def project() -> sa.Column[str]:
    return sa.Column("project", NAME, nullable=False)


def of_project(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["project"], ["projects.name"], name=f"fk_{table}_project")


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("name", NAME, nullable=False),
        sa.Column("base_model", sa.Text, nullable=False),
        sa.Column("live", sa.Integer, nullable=False),
        sa.Column("system_prompt", sa.Text, nullable=False),
        sa.Column("auto", sa.Boolean, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_projects"),
    )
    op.create_table(
        "generations",
        seq(),
        sa.Column("id", ID, nullable=False),
        project(),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_generations"),
        sa.UniqueConstraint("id", name="uq_generations_id"),
        of_project("generations"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_generations_project_seq", "generations", ["project", "seq"])
    op.create_table(
        "feedback",
        seq(),
        sa.Column("id", ID, nullable=False),
        project(),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("author", sa.String(200), nullable=False),
        sa.Column("generation", ID),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_feedback"),
        sa.UniqueConstraint("id", name="uq_feedback_id"),
        of_project("feedback"),
        sa.ForeignKeyConstraint(["generation"], ["generations.id"], name="fk_feedback_generation"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_feedback_project_seq", "feedback", ["project", "seq"])
    op.create_index("ix_feedback_author_project", "feedback", ["author", "project"])
    op.create_index("ix_feedback_generation", "feedback", ["generation"])
    op.create_table(
        "feedback_deleted",
        sa.Column("id", ID, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_feedback_deleted"),
        comment="Ids only: a late second delivery must not bring back what a person had deleted.",
    )
    op.create_table(
        "folds",
        project(),
        sa.Column("group_sha256", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("fold", sa.String(8), nullable=False),
        sa.PrimaryKeyConstraint("project", "group_sha256", name="pk_folds"),
        sa.UniqueConstraint("project", "number", name="uq_folds_project_number"),
        of_project("folds"),
    )
    op.create_table(
        "snapshots",
        seq(),
        project(),
        sa.Column("id", ID, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_snapshots"),
        sa.UniqueConstraint("project", "id", name="uq_snapshots_project_id"),
        of_project("snapshots"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "runs",
        seq(),
        sa.Column("id", ID, nullable=False),
        project(),
        sa.Column("snapshot", sa.String(128), nullable=False),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("parent", sa.Integer, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT),
        sa.PrimaryKeyConstraint("seq", name="pk_runs"),
        sa.UniqueConstraint("id", name="uq_runs_id"),
        of_project("runs"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_runs_project_seq", "runs", ["project", "seq"])
    op.create_table(
        "versions",
        project(),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("parent", sa.Integer, nullable=False),
        sa.Column("snapshot", sa.String(128), nullable=False),
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("text_adapter", sa.Text),
        sa.Column("image_adapter", sa.Text),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("gate", sa.Text),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("promoted_at", MOMENT),
        sa.PrimaryKeyConstraint("project", "number", name="pk_versions"),
        of_project("versions"),
    )
    live = sa.text("state = 'live'")
    op.create_index(
        "uq_versions_live",
        "versions",
        ["project"],
        unique=True,
        sqlite_where=live,
        postgresql_where=live,
    )
    op.create_table(
        "promotions",
        seq(),
        project(),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("previous", sa.Integer, nullable=False),
        sa.Column("rollback", sa.Boolean, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_promotions"),
        of_project("promotions"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_promotions_project_seq", "promotions", ["project", "seq"])
    op.create_table(
        "loops",
        project(),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("snapshot", sa.String(128), nullable=False),
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("requested", sa.Boolean, nullable=False),
        sa.Column("seen_seq", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("project", name="pk_loops"),
        of_project("loops"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
