"""Persistent storage: a database (SQLite or PostgreSQL) and a content-addressed blob store.

One module a noun, each of plain functions over a connection and records::

    with store.begin() as conn:  # a transaction; store.read() for one that only reads
        project = projects.get(conn, "acme")
"""

from comfyloop.store import (
    feedback,
    generations,
    leases,
    loops,
    preferences,
    projects,
    runs,
    snapshots,
    splits,
    versions,
)
from comfyloop.store.blobs import Blobs
from comfyloop.store.db import Store, open_store, url_of

__all__ = [
    "Blobs",
    "Store",
    "feedback",
    "generations",
    "leases",
    "loops",
    "open_store",
    "preferences",
    "projects",
    "runs",
    "snapshots",
    "splits",
    "url_of",
    "versions",
]
