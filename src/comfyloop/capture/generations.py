"""Write down what a model answered. This is on the path of every answer, so it is short."""

from __future__ import annotations

from comfyloop.records import Generation
from comfyloop.store import Store, generations


def record(store: Store, generation: Generation) -> None:
    """Store a generation; the same one again changes nothing.

    It does not wait for the disk: a power cut may lose the newest generations, a crash of the process loses
    none. Feedback waits for the disk, and with it for every generation before it, so that feedback never
    refers to a generation that is lost.

    Raises:
        NotFound: Its project does not exist.
        Conflict: Its id belongs to another generation.
        StorageError: The database refused.
    """
    with store.begin(durable=False) as conn:
        generations.add(conn, generation)
