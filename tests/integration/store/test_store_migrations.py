"""Migrations make what the schema says, once, and never touch what they do not know."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from comfyloop.errors import StorageError
from comfyloop.records import Project
from comfyloop.settings import Settings
from comfyloop.store import migrate, open_store, projects, url_of
from comfyloop.store.schema import HEAD, metadata

UPGRADE = migrate.upgrade


@pytest.fixture(autouse=True)
def _each_time_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here every database is made by the migrations themselves."""
    monkeypatch.setattr(migrate, "upgrade", UPGRADE)


@contextmanager
def connected(settings: Settings) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url_of(settings))
    with engine.begin() as conn:
        yield conn
    engine.dispose()


def described(conn: sa.Connection) -> list[tuple[str, ...]]:
    """Tables, columns, constraints and indexes as the database itself describes them."""
    if conn.dialect.name == "sqlite":
        rows = conn.execute(sa.text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
        return sorted((name, *sorted(_words(sql))) for name, sql in rows if "alembic" not in name)
    columns = conn.execute(
        sa.text(
            "SELECT table_name, column_name, data_type, is_nullable, column_default, character_maximum_length"
            " FROM information_schema.columns WHERE table_schema = 'public'"
        )
    )
    constraints = conn.execute(
        sa.text(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE connamespace = 'public'::regnamespace"
        )
    )
    indexes = conn.execute(
        sa.text("SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'")
    )
    found = [tuple(map(str, row)) for rows in (columns, constraints, indexes) for row in rows]
    return sorted(row for row in found if "alembic" not in row[0])


def _words(sql: str) -> list[str]:
    """A statement's parts in no order: constraints may be written in any."""
    inner = sql.replace("\n", " ").replace("\t", " ").replace('"', "")  # a table made anew is quoted
    return [" ".join(part.split()).strip("( )") for part in inner.split(",")]


def test_the_migrations_make_exactly_the_schema(settings: Settings) -> None:
    open_store(settings).close()
    with connected(settings) as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        migrated = described(conn)
    with connected(settings) as conn:
        metadata.drop_all(conn)
        metadata.create_all(conn)
    with connected(settings) as conn:
        assert described(conn) == migrated
    assert len(migrated) >= 19  # tables and indexes at least


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", "comfyloop.store:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_opening_again_keeps_everything(settings: Settings) -> None:
    with open_store(settings) as store, store.begin() as conn:
        projects.add(conn, Project(name="acme", base_model="m"))
    for _ in range(2):
        with open_store(settings) as store, store.read() as conn:
            assert projects.get(conn, "acme").base_model == "m"


def test_a_database_of_a_newer_comfyloop_is_left_alone(settings: Settings) -> None:
    open_store(settings).close()
    with connected(settings) as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '9000'"))
        before = described(conn)
    with pytest.raises(StorageError, match=r"newer ComfyLoop: it is at revision 9000.*Update ComfyLoop"):
        open_store(settings)
    with connected(settings) as conn:
        assert described(conn) == before
        assert conn.scalar(sa.text("SELECT version_num FROM alembic_version")) == "9000"


def test_a_database_of_another_program_is_left_alone(settings: Settings) -> None:
    settings.home.mkdir()
    with connected(settings) as conn:
        conn.execute(sa.text("CREATE TABLE projects (id INTEGER)"))
    with pytest.raises(StorageError, match="did not make"):
        open_store(settings)


def test_a_migration_that_fails_leaves_nothing(settings: Settings) -> None:
    settings.home.mkdir()
    with connected(settings) as conn:
        conn.execute(sa.text("CREATE TABLE runs (id INTEGER)"))  # in the way half-way through
    with pytest.raises(StorageError, match="runs"):
        open_store(settings)
    with connected(settings) as conn:
        assert sa.inspect(conn).get_table_names() == ["runs"]
        conn.execute(sa.text("DROP TABLE runs"))
    open_store(settings).close()


def test_sqlite_is_set_up_for_durability(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = Settings(home=tmp_path_factory.mktemp("home"))

    def pragma(conn: sa.Connection, name: str) -> object:
        return conn.exec_driver_sql(f"PRAGMA {name}").scalar_one()

    with open_store(settings) as store:
        for _ in range(2):  # the second time on connections that were used before
            with store.begin() as conn:
                assert pragma(conn, "synchronous") == 2  # FULL
                assert pragma(conn, "foreign_keys") == 1
                assert pragma(conn, "journal_mode") == "wal"
                assert pragma(conn, "query_only") == 0
            with store.begin(durable=False) as conn:
                assert pragma(conn, "synchronous") == 1  # NORMAL
            with store.read() as conn:
                assert pragma(conn, "query_only") == 1
    assert sqlite3.connect(settings.home / "comfyloop.db").execute("PRAGMA integrity_check").fetchone() == (
        "ok",
    )


def test_postgresql_is_set_up_for_durability(postgres_url: str) -> None:
    with open_store(Settings(database_url=postgres_url)) as store:
        for _ in range(2):
            with store.begin(durable=False) as conn:
                assert conn.scalar(sa.text("SHOW synchronous_commit")) == "off"
            with store.begin() as conn:
                assert conn.scalar(sa.text("SHOW synchronous_commit")) == "on"
                assert conn.scalar(sa.text("SHOW transaction_isolation")) == "read committed"
            with store.read() as conn:
                assert conn.scalar(sa.text("SHOW transaction_read_only")) == "on"
                assert conn.scalar(sa.text("SHOW transaction_isolation")) == "repeatable read"
