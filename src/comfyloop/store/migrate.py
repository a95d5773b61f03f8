"""Bring a database to the newest schema, safely when several processes open it at once."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.errors import StorageError
from comfyloop.store.locks import one_at_a_time
from comfyloop.store.schema import HEAD


def revision(conn: Connection) -> str | None:
    """The revision of the database, None when it is empty."""
    if not sa.inspect(conn).has_table("alembic_version"):
        return None
    return conn.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def upgrade(conn: Connection, shown: str) -> None:
    """Run the missing migrations inside the write transaction of `conn`: all of them or none.

    Args:
        shown: The database as it may be named in a sentence, without a password.

    Raises:
        StorageError: The database was written by a newer ComfyLoop, or has tables of another program.
    """
    one_at_a_time(conn, "migrate")
    here = revision(conn)
    if here == HEAD:  # another process was quicker
        return

    # Alembic takes a while to import, and most starts do not need it.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "comfyloop.store:migrations")
    revisions = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if here is not None and here not in revisions:
        raise StorageError(
            f"The database {shown} was written by a newer ComfyLoop: it is at revision {here}, "
            f"and this ComfyLoop knows revisions up to {HEAD}.",
            "Update ComfyLoop, or give another database with COMFYLOOP_DATABASE_URL.",
        )
    if here is None and "projects" in sa.inspect(conn).get_table_names():
        raise StorageError(
            f"The database {shown} has a table `projects` that ComfyLoop did not make.",
            "Give ComfyLoop a database of its own with COMFYLOOP_DATABASE_URL.",
        )
    config.attributes["connection"] = conn
    command.upgrade(config, "head")
