"""The tables, the same on SQLite and PostgreSQL.

Immutable records (generations, feedback, snapshots) are stored as JSON in `body`, beside the columns that queries
need. Mutable ones (projects, runs, versions, loops) have one column per field. A change here needs a new file in
`migrations/versions` and a new `HEAD`; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

HEAD = "0009"
"""The newest migration, written here too so that opening an up-to-date database need not import Alembic."""


class TextColumn(sa.TypeDecorator[str]):
    """Text that people, models or exceptions wrote.

    PostgreSQL cannot hold U+0000, and neither database holds half a surrogate pair: these are replaced, on
    both databases. Bodies need no such care: JSON escapes the one, and records refuse the other.
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


class Moment(sa.TypeDecorator[datetime]):
    """An aware datetime in UTC. SQLite keeps no zone, so it is put back on reading."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

_Id = sa.String(128)
_Name = sa.String(63)


def _seq() -> sa.Column[int]:
    """Grows and is never used again, also after deletes."""
    return sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True)


def _project(primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(
        "project", _Name, sa.ForeignKey("projects.name"), nullable=False, primary_key=primary_key
    )


projects = sa.Table(
    "projects",
    metadata,
    sa.Column("name", _Name, primary_key=True),
    sa.Column("base_model", TextColumn, nullable=False),
    sa.Column("live", sa.Integer, nullable=False),
    sa.Column("system_prompt", TextColumn, nullable=False),
    sa.Column("auto", sa.Boolean, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("image_model", TextColumn, nullable=False, server_default=""),
    sa.Column("canary", sa.Integer, nullable=False, server_default="0"),
    sa.Column("canary_share", sa.Float, nullable=False, server_default="0"),
    sa.Column("image_vae", TextColumn, nullable=False, server_default=""),
    sa.Column("image_prediction_type", sa.Text, nullable=False, server_default="auto"),
)

generations = sa.Table(
    "generations",
    metadata,
    _seq(),
    sa.Column("id", _Id, nullable=False, unique=True),
    _project(),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index(None, "project", "seq"),
    sqlite_autoincrement=True,
)

feedback = sa.Table(
    "feedback",
    metadata,
    _seq(),
    sa.Column("id", _Id, nullable=False, unique=True),
    _project(),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("author", sa.String(200), nullable=False),
    sa.Column("generation", _Id, sa.ForeignKey("generations.id"), index=True),
    sa.Column("received_at", Moment, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index(None, "project", "seq"),
    sa.Index(None, "author", "project"),
    sqlite_autoincrement=True,
)

feedback_deleted = sa.Table(
    "feedback_deleted",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    comment="Ids only: a late second delivery must not bring back what a person had deleted.",
)

splits = sa.Table(
    "folds",
    metadata,
    _project(primary_key=True),
    # A hash, since a group may be named after what a person wrote, and folds outlive deletions.
    sa.Column("group_sha256", sa.String(64), primary_key=True),
    sa.Column("stratum", sa.String(16), nullable=False, server_default="correction"),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("fold", sa.String(8), nullable=False),
    sa.UniqueConstraint("project", "stratum", "number"),
)

snapshots = sa.Table(
    "snapshots",
    metadata,
    _seq(),
    _project(),
    sa.Column("id", _Id, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.UniqueConstraint("project", "id"),
    sqlite_autoincrement=True,
)

runs = sa.Table(
    "runs",
    metadata,
    _seq(),
    sa.Column("id", _Id, nullable=False, unique=True),
    _project(),
    sa.Column("snapshot", sa.String(128), nullable=False),
    sa.Column("recipe", TextColumn, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("path", TextColumn, nullable=False),
    sa.Column("parent", sa.Integer, nullable=False),
    sa.Column("error", TextColumn, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("finished_at", Moment),
    sa.Column("fresh", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index(None, "project", "seq"),
    sqlite_autoincrement=True,
)

versions = sa.Table(
    "versions",
    metadata,
    _project(primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("parent", sa.Integer, nullable=False),
    sa.Column("snapshot", sa.String(128), nullable=False),
    sa.Column("run", sa.String(128), nullable=False),
    sa.Column("text_adapter", TextColumn),
    sa.Column("image_adapter", TextColumn),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("gate", sa.Text),
    sa.Column("canary", sa.Text),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("promoted_at", Moment),
    sa.Column("fresh", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("origin", sa.Text),
)

lessons = sa.Table(
    "lessons",
    metadata,
    _project(primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("feedback", _Id, primary_key=True),
    sa.Index(None, "feedback"),
    comment="What each version itself was trained on; what it has of its parent is found there.",
)
sa.Index(
    "uq_versions_live",
    versions.c.project,
    unique=True,
    sqlite_where=versions.c.state == "live",
    postgresql_where=versions.c.state == "live",
)

promotions = sa.Table(
    "promotions",
    metadata,
    _seq(),
    _project(),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("previous", sa.Integer, nullable=False),
    sa.Column("rollback", sa.Boolean, nullable=False),
    sa.Column("at", Moment, nullable=False),
    sa.Index(None, "project", "seq"),
    sqlite_autoincrement=True,
)

loops = sa.Table(
    "loops",
    metadata,
    _project(primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("snapshot", sa.String(128), nullable=False),
    sa.Column("run", sa.String(128), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("requested", sa.Boolean, nullable=False),
    sa.Column("seen_seq", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("error", TextColumn, nullable=False),
    sa.Column("outcome", TextColumn, nullable=False),
    sa.Column("updated_at", Moment, nullable=False),
    sa.Column("reason", TextColumn, nullable=False, server_default=""),
    sa.Column("looked_seq", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("consolidate", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("by_hand", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("consolidating", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("held_over", sa.Integer, nullable=False, server_default="0"),
    sa.Column("note", TextColumn, nullable=False, server_default=""),
)

preferences = sa.Table(
    "preferences",
    metadata,
    _project(primary_key=True),
    sa.Column("id", _Id, primary_key=True),
    sa.Column("text", TextColumn),  # null: the person does not want it
)

flags = sa.Table(
    "flags",
    metadata,
    _project(primary_key=True),
    sa.Column("key", sa.String(300), primary_key=True),
    sa.Column("answer", sa.String(128)),  # null: a person has not answered
    sa.Column("body", sa.Text),  # what the gate found; null: it shows in the feedback
)

votes = sa.Table(
    "votes",
    metadata,
    _project(primary_key=True),
    sa.Column("id", _Id, primary_key=True),
    sa.Column("first", sa.Integer, nullable=False),
    sa.Column("second", sa.Integer, nullable=False),
    sa.Column("chosen", sa.Integer),  # null: they were as good
    sa.Column("at", Moment, nullable=False),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("owner", sa.String(200), nullable=False),
    sa.Column("expires", sa.Double, nullable=False),  # seconds since 1970 by the database's clock
)
