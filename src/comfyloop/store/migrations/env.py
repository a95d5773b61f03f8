"""Run by Alembic. The connection, already in a transaction, comes from `comfyloop.store.migrate`."""

from alembic import context

from comfyloop.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
