"""Opens the database, provides transactions, and converts database errors to messages."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from comfyloop.errors import ComfyLoopError, Conflict, InvalidInput, StorageError
from comfyloop.settings import Settings
from comfyloop.store import migrate
from comfyloop.store.blobs import Blobs
from comfyloop.store.schema import HEAD

log = logging.getLogger(__name__)

BUSY_SECONDS = 15.0
"""How long a transaction waits for its turn before it gives up with a StorageError."""


class Store:
    """The database and the blobs of one ComfyLoop. Safe to share between threads.

    Reading and writing is done by the functions of the modules beside this one, on a connection from `begin`
    or `read`::

        with store.begin() as conn:
            feedback.add(conn, items)
    """

    def __init__(self, engine: Engine, blobs: Blobs) -> None:
        self.blobs = blobs
        self._engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        self._file = Path(str(engine.url.database)).absolute() if self._sqlite else None
        self._opened = _identity(self._file)
        # SQLite lets one writer in and makes the others poll, in no order. Threads of this process queue here
        # instead; only other processes are waited for by polling.
        self._turn = threading.Lock()
        self._inside = threading.local()

    @property
    def name(self) -> str:
        """The database's name for display, without its password."""
        return shown(self._engine.url)

    @contextmanager
    def begin(self, *, durable: bool = True) -> Iterator[Connection]:
        """A write transaction: committed at the end of the block, rolled back when it raises.

        Args:
            durable: The commit is on the disk (fsync) when the block has ended. Without it a power cut (not a
                crash of the process) may lose the newest such commits; a later durable commit makes all
                earlier ones durable too, on both databases.

        Raises:
            StorageError: The disk is full, the database is locked, away or damaged. Nothing was written.
        """
        if getattr(self._inside, "writing", False):
            raise RuntimeError("begin() inside begin() in one thread would wait for itself")
        if self._sqlite and not self._turn.acquire(timeout=BUSY_SECONDS):
            raise _busy(self.name)
        self._inside.writing = True
        try:
            with self._transaction(mode="durable" if durable else "relaxed") as conn:
                yield conn
            self._check_file()
        finally:
            self._inside.writing = False
            if self._sqlite:
                self._turn.release()

    def _check_file(self) -> None:
        """Refuse a database file that was deleted or replaced: writes to it would be lost when this process
        ends."""
        if self._file is None:
            return
        if self._opened is None:
            self._opened = _identity(self._file)
        elif _identity(self._file) != self._opened:
            raise StorageError(
                f"The database {self._file} was deleted or replaced while it was in use; nothing more can be kept.",
                "Stop the service, put back a copy of the file, and start it again.",
            )

    def probe(self) -> None:
        """Raises StorageError unless the database answers and is still the one that was opened."""
        with self.read() as conn:
            conn.exec_driver_sql("SELECT 1")
        self._check_file()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only transaction with a consistent snapshot of the database."""
        with self._transaction(mode="read") as conn:
            yield conn

    @contextmanager
    def _transaction(self, mode: str) -> Iterator[Connection]:
        try:
            with self._engine.connect() as conn:
                if self._sqlite:
                    conn = conn.execution_options(comfyloop_mode=mode)
                elif mode == "read":
                    conn = conn.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                with conn.begin():
                    if not self._sqlite and mode == "relaxed":
                        conn.exec_driver_sql("SET LOCAL synchronous_commit TO off")
                    yield conn
        except (DBAPIError, PoolTimeout) as error:
            raise explain(error, self.name) from error

    def settle(self) -> None:
        """Checkpoint and truncate SQLite's write-ahead log, so that no byte of deleted data is left in it.

        Raises:
            StorageError: Others read or write without a pause; the log is emptied another time.
        """
        if not self._sqlite:
            return
        deadline = time.monotonic() + BUSY_SECONDS
        raw = self._engine.raw_connection()
        try:
            while raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > deadline:
                    raise _busy(self.name)
                time.sleep(0.02)
        except sqlite3.Error as error:
            raise explain(error, self.name) from error
        finally:
            raw.close()

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_store(settings: Settings) -> Store:
    """Open the store of `settings`, creating or migrating it if needed.

    Raises:
        InvalidInput: The database URL is not one of SQLite or PostgreSQL.
        StorageError: The database cannot be reached or written, was emptied, or is newer than this ComfyLoop.
    """
    url = url_of(settings)
    if url.get_backend_name() == "sqlite":
        _refuse_emptied(url, settings.home)
    engine = _sqlite_engine(url) if url.get_backend_name() == "sqlite" else _postgresql_engine(url)
    store = Store(engine, Blobs(settings.blobs))
    try:
        if engine.dialect.name == "sqlite":
            _use_wal(engine)
        with store.read() as conn:
            current = migrate.revision(conn) == HEAD
        if not current:
            with store.begin() as conn:
                migrate.upgrade(conn, store.name)
    except DBAPIError as error:
        store.close()
        raise explain(error, store.name) from error
    except ComfyLoopError:
        store.close()
        raise
    return store


def _identity(file: Path | None) -> tuple[int, int] | None:
    """The file behind a name; None where there is none."""
    try:
        status = file.stat() if file is not None else None
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status is not None else None


def _refuse_emptied(url: URL, home: Path) -> None:
    """Refuse an empty database beside the data of an older one, which is not a fresh start.

    Raises:
        StorageError: It was emptied or deleted.
    """
    file = Path(str(url.database)).absolute()
    if file.parent != home.absolute() or (file.exists() and file.stat().st_size):
        return
    folders = [
        name
        for name in ("versions", "snapshots", "blobs")
        if (home / name).is_dir() and any((home / name).iterdir())
    ]
    if folders:
        what = "is empty" if file.exists() else "is gone"
        raise StorageError(
            f"The database {file} {what}, but {' and '.join(folders)} beside it are not.",
            f"Put back a copy of it; or, to begin anew, move {home} away.",
        )


def shown(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.render_as_string(hide_password=True)


def url_of(settings: Settings) -> URL:
    """Where the database is.

    Raises:
        InvalidInput: The database URL is not one of SQLite or PostgreSQL.
    """
    if settings.database_url:
        return _parse(settings.database_url)
    # Put together, not parsed: in a text, "what?/home" would be the file "what", and "100%20" another folder.
    return URL.create("sqlite", database=str(settings.home / "comfyloop.db"))


def _parse(text: str) -> URL:
    hint = "Use sqlite:////path/to/comfyloop.db or postgresql://user:password@host/database."
    try:
        url = sa.make_url(text)
    except ArgumentError:
        # The text is not repeated: it may hold a password.
        raise InvalidInput("The database URL cannot be read.", hint) from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        if url.database in (None, "", ":memory:"):
            raise InvalidInput("An in-memory database would lose everything that people did.", hint)
        return url
    if url.drivername == "postgresql+psycopg":
        return url
    raise InvalidInput(f"A database of the kind {url.drivername!r} is not supported.", hint)


# --- SQLite -------------------------------------------------------------------------------------------------


def _sqlite_engine(url: URL) -> Engine:
    folder = Path(str(url.database)).resolve().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The folder {folder} for the database cannot be made: {error.strerror}.",
            "Give another place with COMFYLOOP_HOME.",
        ) from error
    engine = sa.create_engine(
        url, connect_args={"timeout": BUSY_SECONDS}, pool_size=4, max_overflow=60, pool_timeout=BUSY_SECONDS
    )

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself: _begin does
        try:
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA secure_delete=ON")  # what a person had deleted leaves no bytes
            connection.execute("PRAGMA synchronous=FULL")
        except sqlite3.Error as error:
            raise explain(error, shown(url)) from error
        record.info["mode"] = "durable"

    @sa.event.listens_for(engine, "begin")
    def _begin(conn: Connection) -> None:
        mode = conn.get_execution_options().get("comfyloop_mode", "durable")
        info = conn.info
        if info["mode"] != mode:
            conn.exec_driver_sql(f"PRAGMA query_only={'ON' if mode == 'read' else 'OFF'}")
            conn.exec_driver_sql(f"PRAGMA synchronous={'NORMAL' if mode == 'relaxed' else 'FULL'}")
            info["mode"] = mode
        # A write transaction takes its lock at once: one that begins as a reader may be refused later.
        conn.exec_driver_sql("BEGIN" if mode == "read" else "BEGIN IMMEDIATE")

    return engine


def _use_wal(engine: Engine) -> None:
    """Write-ahead logging, kept in the file once set. Setting it does not wait for others, so try again."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        raw = engine.raw_connection()
        try:
            cursor = raw.cursor()
            if cursor.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
                return
            mode = cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            if mode != "wal":
                log.warning("SQLite keeps its journal mode %r on this file system: readers wait.", mode)
            return
        except sqlite3.Error as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise explain(error, shown(engine.url)) from error
            time.sleep(0.02)
        finally:
            raw.close()


# --- PostgreSQL ---------------------------------------------------------------------------------------------


def _postgresql_engine(url: URL) -> Engine:
    try:
        engine = sa.create_engine(
            url,
            pool_size=8,
            max_overflow=24,
            pool_timeout=BUSY_SECONDS,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 5},
        )
    except ModuleNotFoundError as error:
        raise StorageError(
            "PostgreSQL needs the package psycopg, which is not installed.",
            "Run: pip install 'comfyloop[postgres]'.",
        ) from error

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: Any, record: Any) -> None:
        try:
            connection.execute(f"SET lock_timeout = '{int(BUSY_SECONDS * 1000)}ms'")
            connection.commit()
        except connection.Error as error:
            raise explain(error, shown(url)) from error

    return engine


# --- refusals -----------------------------------------------------------------------------------------------


def _busy(name: str) -> StorageError:
    return StorageError(
        f"The database {name} stayed busy with other writers for {BUSY_SECONDS:.0f} s.",
        "Try again; if it lasts, look for another program that holds the database open.",
        retry_after=1.0,
    )


def explain(error: Exception, name: str) -> ComfyLoopError:
    """Convert a database error to one of ComfyLoop's errors. Nothing was written."""
    cause = getattr(error, "orig", None) or error
    text = " ".join(str(cause).split())
    state = getattr(cause, "sqlstate", None)
    low = text.lower()
    if isinstance(error, IntegrityError):
        return Conflict(
            f"The database {name} refused a row that clashes with another or refers to nothing: {text}."
        )
    if "disk is full" in low or "no space left" in low or state == "53100":
        return StorageError(
            f"The disk of the database {name} is full; nothing was written and nothing was lost.",
            "Make room, then try again.",
            retry_after=10.0,
        )
    if isinstance(error, PoolTimeout) or "is locked" in low or state == "55P03":
        return _busy(name)
    if "readonly" in low or "read-only" in low:
        return StorageError(
            f"The database {name} cannot be written: {text}.", "Check who owns the file and its folder."
        )
    if "malformed" in low or "not a database" in low:
        return StorageError(
            f"The file {name} is damaged or not a database: {text}.",
            "Put back a copy, or give another database with COMFYLOOP_DATABASE_URL.",
        )
    if "unable to open" in low:
        return StorageError(
            f"The database {name} cannot be opened: {text}.",
            "Check that the folder exists and may be written.",
        )
    if state is None and "connect" in low:
        return StorageError(
            f"The database {name} cannot be reached: {text}.",
            "Check that PostgreSQL runs there and that the URL is right.",
            retry_after=2.0,
        )
    return StorageError(f"The database {name} refused: {text}.")
