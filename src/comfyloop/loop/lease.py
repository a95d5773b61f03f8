"""The lease of a project's loop: one controller at a time takes its turns, wherever it runs."""

from __future__ import annotations

import logging
import os
import socket
import threading

import psutil

from comfyloop.errors import ComfyLoopError
from comfyloop.records import new_id
from comfyloop.store import Store, leases

log = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews a lease while its holder is busy, so that only a dead controller loses its turn."""

    def __init__(self, store: Store, name: str, owner: str, seconds: float) -> None:
        self._store, self._name, self._owner, self._seconds = store, name, owner, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        try:
            with self._store.begin() as conn:
                leases.release(conn, self._name, self._owner)
        except ComfyLoopError as error:
            log.warning("The lease %s could not be given back and runs out by itself: %s", self._name, error)

    def _keep(self) -> None:
        while not self._stop.wait(self._seconds / 3):
            try:
                with self._store.begin() as conn:
                    if not leases.renew(conn, self._name, self._owner, self._seconds):
                        return
            except ComfyLoopError as error:
                log.warning("The lease %s was not renewed: %s", self._name, error)


def lease_of(project: str) -> str:
    return f"loop:{project}"


def this_process() -> str:
    """Names this process so that a later one on the same machine can tell whether it is still alive."""
    return f"{socket.gethostname()}/{os.getpid()}/{psutil.Process().create_time():.2f}/{new_id('c')[-8:]}"


def is_dead(owner: str) -> bool:
    """Whether a lease's owner was a process of this machine that is gone. Of others nothing can be said."""
    host, pid, started, _ = owner.rsplit("/", 3)
    if host != socket.gethostname():
        return False
    try:
        return bool(abs(psutil.Process(int(pid)).create_time() - float(started)) > 1.0)
    except psutil.NoSuchProcess:
        return True
