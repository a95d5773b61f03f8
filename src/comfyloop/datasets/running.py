"""Data sets taken in the background, one thread each, a few at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from filelock import Timeout

from comfyloop.datasets.importing import Import, Stopped, take_back
from comfyloop.datasets.place import DataSetFolder
from comfyloop.datasets.record import DataSet, DataSetState, Request
from comfyloop.errors import ComfyLoopError, Conflict, DataError, InvalidInput, QueueFull, StorageError
from comfyloop.records import now
from comfyloop.settings import Settings
from comfyloop.sources import SOURCES
from comfyloop.sources.mapping import check_map
from comfyloop.store import Store

log = logging.getLogger(__name__)

MOST = 2
"""Data sets that are read at a time; each keeps a core busy with pictures."""
TELL_SECONDS = 0.5

Publish = Callable[[dict[str, Any]], None]


class Imports:
    """The data sets that this process takes. Safe to share between threads."""

    def __init__(self, store: Store, settings: Settings, publish: Publish) -> None:
        self._store, self._settings, self._publish = store, settings, publish
        self._lock = threading.Lock()
        self._stops: dict[str, threading.Event] = {}
        self._threads: dict[str, threading.Thread] = {}

    def start(self, place: DataSetFolder, request: Request) -> DataSet:
        """Begin to take a data set, or go on where it was left.

        Raises:
            InvalidInput: It is not said well how to read it.
            Conflict: It is done already, or is being taken.
            QueueFull: So many are under way.
        """
        check_map(request.map)
        if request.format and request.format not in SOURCES:
            raise InvalidInput(
                f"There is no format {request.format!r}.", f"It is one of {', '.join(SOURCES)}."
            )
        dataset = place.read()
        if dataset.state is DataSetState.DONE:
            raise Conflict(f"The data set {dataset.id} was stored already.", "Add it anew.")
        if next(place.partial(), None) is not None:
            raise Conflict(
                f"Not all files of the data set {dataset.id} have come.", "Send the rest of them first."
            )
        with self._lock:
            self._threads = {id: thread for id, thread in self._threads.items() if thread.is_alive()}
            if dataset.id in self._threads:
                raise Conflict(f"The data set {dataset.id} is being taken.", "Wait for it, or DELETE it.")
            if len(self._threads) >= MOST:
                raise QueueFull(
                    f"{MOST} data sets are being taken.", "Try again when one is done.", retry_after=5
                )
            dataset = place.write(
                dataset.model_copy(
                    update={
                        "request": request,
                        "state": DataSetState.UNPACKING,
                        "error": "",
                        "updated_at": now(),
                    }
                )
            )
            stop = self._stops[dataset.id] = threading.Event()
            thread = threading.Thread(
                target=self._run, args=(place, dataset, stop), name=f"dataset-{dataset.id}", daemon=True
            )
            self._threads[dataset.id] = thread
            thread.start()
        return dataset

    def state(self, place: DataSetFolder) -> DataSet:
        """What is known of a data set; one that is under way nowhere was broken off."""
        dataset = place.read()
        if dataset.state.is_under_way and not self._is_held(place):
            again = place.read()  # it may have ended just now
            if again.state.is_under_way:
                error = "It was broken off. Started again, it goes on where it was."
                return again.model_copy(update={"state": DataSetState.FAILED, "error": error})
            return again
        return dataset

    def _is_held(self, place: DataSetFolder) -> bool:
        with self._lock:
            thread = self._threads.get(place.folder.name)
        if thread is not None and thread.is_alive():
            return True
        try:
            with place.lock():
                return False
        except Timeout:
            return True

    def remove(self, place: DataSetFolder) -> None:
        """Give a data set up: stop taking it, and leave nothing of it. What is feedback already stays feedback."""
        id = place.folder.name
        with self._lock:
            stop, thread = self._stops.get(id), self._threads.get(id)
        if stop is not None:
            stop.set()
        if thread is not None:
            thread.join(timeout=30)
        try:
            with place.lock():
                if place.read().state is not DataSetState.DONE:
                    take_back(self._store, place)
        except Timeout:
            raise Conflict(f"The data set {id} is being taken by another process.", "Wait for it.") from None
        place.remove()

    def wait(self, id: str, seconds: float = 60.0) -> None:
        """Until a data set is no longer under way in this process."""
        with self._lock:
            thread = self._threads.get(id)
        if thread is not None:
            thread.join(seconds)

    # --- in the thread

    def _run(self, place: DataSetFolder, dataset: DataSet, stop: threading.Event) -> None:
        try:
            with place.lock():
                self._take(place, dataset, stop)
        except Timeout:
            log.warning("data set %s is being taken by another process", dataset.id)

    def _take(self, place: DataSetFolder, dataset: DataSet, stop: threading.Event) -> None:
        last = 0.0

        def tell(state_now: DataSet) -> None:
            nonlocal last
            if stop.is_set():
                raise Stopped
            if time.monotonic() - last > TELL_SECONDS or state_now.state is not place.read().state:
                last = time.monotonic()
                self._told(place, state_now)

        work = Import(self._store, self._settings, place, dataset, tell)
        try:
            work.fetch()
            work.unpack()
            work.read()
            work.keep()
            self._told(place, work.dataset)
            place.clean()
        except Stopped:
            return
        except (DataError, InvalidInput) as error:
            self._ended(place, work.dataset, DataSetState.REFUSED, str(error))
            place.begin_again()
            self._taken_back(place)
        except ComfyLoopError as error:
            self._ended(place, work.dataset, DataSetState.FAILED, str(error))
        except OSError as error:
            refused = StorageError(
                f"The disk refused: {error.strerror or error}.", "Make room, and start it again."
            )
            self._ended(place, work.dataset, DataSetState.FAILED, str(refused))
        except Exception as error:
            log.exception("data set %s", dataset.id)
            self._ended(
                place, work.dataset, DataSetState.FAILED, f"Something unforeseen happened: {error!r}."
            )

    def _ended(self, place: DataSetFolder, dataset: DataSet, state: DataSetState, error: str) -> None:
        self._told(place, dataset.model_copy(update={"state": state, "error": error}))

    def _taken_back(self, place: DataSetFolder) -> None:
        try:
            take_back(self._store, place)
        except ComfyLoopError as error:
            log.warning("pictures of data set %s stay: %s", place.folder.name, error)

    def _told(self, place: DataSetFolder, dataset: DataSet) -> None:
        written_entry = place.write(dataset.model_copy(update={"updated_at": now()}))
        self._publish(
            {
                "type": "dataset." + ("stored" if written_entry.state is DataSetState.DONE else "progress"),
                **{
                    name: getattr(written_entry, name)
                    for name in ("project", "id", "state", "rows", "bad", "stored")
                },
            }
        )
