"""A data set read and stored: rows become feedback that is laid aside, and all of it is stored in one transaction."""

from __future__ import annotations

import contextlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from comfyloop import capture, curate, formats
from comfyloop.datasets.place import DataSetFolder
from comfyloop.datasets.record import DataSet, DataSetState, Preview, Request, SampleShown
from comfyloop.durable import write_whole
from comfyloop.errors import ComfyLoopError, DataError, InvalidInput, NotFound
from comfyloop.files import regular
from comfyloop.formats import Row, UnusableRow
from comfyloop.records import Feedback
from comfyloop.settings import Settings
from comfyloop.sources import TARGETS, SourceItem, Tree, look, tree_of, unpack_all
from comfyloop.sources.fetching import UPLOAD, fetch
from comfyloop.store import Store, feedback, mentions

BATCH = 64
"""Rows that are checked, and marked as read, together."""
SHOWN = 20
"""Problems that are told; more are counted."""
_REMEMBERED = 1000  # pictures whose hashes are kept in mind
_LONGEST_SHOWN = 300

Tell = Callable[[DataSet], object]


class Stopped(Exception):
    """It was given up by a person."""


@dataclass
class Import:
    """One data set being taken.

    Args:
        tell: Told how far it is; may raise Stopped.
    """

    store: Store
    settings: Settings
    place: DataSetFolder
    dataset: DataSet
    tell: Tell
    _hashes: OrderedDict[str, str] = field(default_factory=OrderedDict)
    _fetched_notes: tuple[str, ...] = ()

    def now(self, **what: Any) -> None:
        self.dataset = self.dataset.model_copy(update=what)
        self.tell(self.dataset)

    def fetch(self) -> None:
        """Raises ComfyLoopError: The hub or registry does not have it, or refuses."""
        if self.dataset.source == UPLOAD:
            return
        self.now(state=DataSetState.FETCHING, total=0, progress=0)
        download = fetch(
            self.dataset.source,
            self.place.files,
            self.settings.cache_dir,
            self.settings.max_dataset_bytes,
            self.dataset.request.limit,
            lambda done, total: self.now(progress=done, total=total),
        )
        self._fetched_notes = download.notes
        self.now(licence=self.dataset.licence or download.licence)

    def unpack(self) -> None:
        self.now(state=DataSetState.UNPACKING, total=0, progress=0)
        unpack_all(
            self.place.files,
            self.settings.max_dataset_bytes,
            lambda name: self.now(progress=self.dataset.progress + 1),
        )

    # --- reading

    def read(self) -> None:
        """Lay all rows aside as feedback, going on where it was left.

        Raises:
            DataError: Rows cannot be used, and are not to be left out; or a file is no data.
        """
        cursor = self.place.cursor()
        request = self.dataset.request
        if cursor.get("request") != request.model_dump(mode="json"):
            self.place.begin_again()
            cursor = {}
        row_count, size = int(cursor.get("rows", 0)), int(cursor.get("bytes", 0))
        problems: list[str] = list(cursor.get("problems", []))
        counts = {name: int(cursor.get(name, 0)) for name in ("bad", "pictures")}
        unkept = curate.Unkept.model_validate(cursor.get("unkept", {}))
        tree = tree_of(self.place.files)
        scan = look(tree, request.options, request.format)
        unnamed = Unnamed(tree)
        self.now(
            state=DataSetState.READING,
            format=scan.source.name,
            mapping=scan.reading.map,
            rows=row_count,
            problems=tuple(problems),
            **{name: counts[name] for name in ("bad", "pictures")},
        )
        objects = islice(scan.objects, request.limit or None)
        for one in islice(objects, row_count):  # taken before it was broken off
            with contextlib.suppress(UnusableRow):
                unnamed.but(scan.reading.row(one))
        self.place.items.touch()
        with self.place.items.open("r+b") as out:
            out.truncate(size)
            out.seek(size)
            while batch := list(islice(objects, BATCH)):
                entries: list[tuple[str, Feedback]] = []
                bad: list[str] = []
                for one in batch:
                    try:
                        row = scan.reading.row(one)
                        unnamed.but(row)
                        entries.append((one.place, self._feedback(row)))
                        counts["pictures"] += len(row.pictures)
                        unkept = unkept.and_of(row)
                    except UnusableRow as error:
                        bad.append(f"{one.place}: {error}")
                entries, refused = self._checked(entries)
                bad += refused
                for _, item in entries:
                    out.write(json.dumps(feedback.body_of(item), ensure_ascii=False).encode() + b"\n")
                out.flush()
                row_count += len(batch)
                counts["bad"] += len(bad)
                problems += bad[: max(0, SHOWN - len(problems))]
                mark = {
                    "rows": row_count,
                    "bytes": out.tell(),
                    "problems": problems,
                    "unkept": unkept.model_dump(),
                }
                self.place.mark({"request": request.model_dump(mode="json"), **mark, **counts})
                self.now(
                    rows=row_count, bad=counts["bad"], pictures=counts["pictures"], problems=tuple(problems)
                )
        self._judge(row_count, unkept, "" if request.limit else unnamed.sentence())

    def _judge(self, rows: int, unkept: curate.Unkept, unnamed: str) -> None:
        dataset = self.dataset
        if not rows:
            raise DataError(f"{dataset.name} has no rows.", "Add at least one to train on.")
        if dataset.bad and (not dataset.request.skip_bad or dataset.bad == rows):
            more = dataset.bad - len(dataset.problems)
            listed = "\n".join([*dataset.problems, *([f"... and {more} more"] if more else [])])
            every = "" if dataset.request.skip_bad else ", or leave them out (--skip-bad)"
            raise DataError(
                f"{dataset.bad} of {rows} rows cannot be used:\n{listed}",
                f"Mend them{every}; nothing was stored.",
            )
        notes = list(unkept.sentences())
        if dataset.bad:
            notes.append(f"{dataset.bad} of {rows} rows were left out.")
        notes += [unnamed] if unnamed else []
        self.now(notes=(*self._fetched_notes, *notes))

    def _feedback(self, row: Row) -> Feedback:
        if why := curate.unsayable(row):
            raise UnusableRow(why)
        hashes = {str(picture): self._picture(picture) for picture in row.pictures}
        return curate.feedback_from(row, self.dataset.project, self.dataset.author, hashes)

    def _picture(self, picture: formats.Picture) -> str:
        """The hash of a picture, which is stored if it is one."""
        name = str(picture) if isinstance(picture, Path) else ""
        if name and name in self._hashes:
            return self._hashes[name]
        try:
            source = regular(picture, self.settings.max_image_bytes) if isinstance(picture, Path) else picture
            data = source.read_bytes()
            info = capture.images.intake(data, self.settings)
        except OSError as error:
            raise UnusableRow(f"its image {picture.name} cannot be read: {error.strerror}") from None
        except ComfyLoopError as error:
            raise UnusableRow(
                f"its image {picture.name} cannot be used: {error.message.rstrip('.')}"
            ) from None
        if not self.store.blobs.exists(info.sha256):
            with self.place.blobs.open(
                "a", encoding="ascii"
            ) as log:  # before it is stored: it may be taken back
                log.write(info.sha256 + "\n")
            self.store.blobs.put(data, info.media_type)
        if name:
            self._hashes[name] = info.sha256
            if len(self._hashes) > _REMEMBERED:
                self._hashes.popitem(last=False)
        return info.sha256

    def _checked(self, entries: list[tuple[str, Feedback]]) -> tuple[list[tuple[str, Feedback]], list[str]]:
        """Without what the service would not store; and what is wrong with that."""
        refused = {
            number: error
            for number, _, error in capture.feedback.refused(
                self.store, [item for _, item in entries], self.settings
            )
        }
        good = [one for number, one in enumerate(entries) if number not in refused]
        return good, [
            f"{entries[number][0]}: it cannot be stored: {error.message.rstrip('.')}"
            for number, error in refused.items()
        ]

    # --- storing

    def keep(self) -> None:
        """All rows become feedback, or none."""
        self.now(state=DataSetState.STORING, total=self.dataset.rows - self.dataset.bad, progress=0)
        write_whole(
            self.place.ids,
            "".join(f"{body.id}\n" for body in _laid_aside(self.place.items)),
            "ascii",
            durable=True,
        )
        with self.store.begin() as conn:
            stored, duplicates = feedback.add_made_of_content(conn, _laid_aside(self.place.items))
        self.dataset = self.dataset.model_copy(
            update={"state": DataSetState.DONE, "stored": stored, "duplicates": duplicates, "error": ""}
        )


def _laid_aside(path: Path) -> Iterator[feedback.Body]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield feedback.Body(*json.loads(line))


def take_back(store: Store, place: DataSetFolder) -> None:
    """Pictures that were stored for a data set of which nothing is kept."""
    if not place.blobs.exists():
        return
    hashes = {line for line in place.blobs.read_text("ascii").split() if len(line) == 64}
    with store.read() as conn:
        unwanted = mentions.unmentioned(conn, hashes)
    for sha in unwanted:
        store.blobs.delete(sha)
    place.blobs.unlink(missing_ok=True)


def ids_of(place: DataSetFolder, others: Iterable[DataSetFolder]) -> list[str]:
    """The feedback that a data set became, without what another one became, too.

    Args:
        others: Data sets of its project.

    Raises:
        NotFound: It was stored before this was written down.
    """
    if not place.ids.is_file():
        raise NotFound(
            f"It is not known which feedback the data set {place.folder.name} became: an older version stored it.",
            "comfyloop forget --author takes back what was added in somebody's name.",
        )
    own = dict.fromkeys(place.ids.read_text("ascii").split())
    for other in others:
        if other.folder != place.folder and other.ids.is_file():
            for id in other.ids.read_text("ascii").split():
                own.pop(id, None)
    return list(own)


class Unnamed:
    """The pictures of the data that no row names: nothing is said of them, and a person should know."""

    def __init__(self, tree: Tree) -> None:
        self._root, self._unnamed_pictures = tree.root.resolve(), set(tree.pictures)

    def but(self, row: Row) -> None:
        for picture in row.pictures:
            if isinstance(picture, Path) and picture.is_relative_to(self._root):
                self._unnamed_pictures.discard(picture.relative_to(self._root).as_posix())

    def sentence(self) -> str:
        if not self._unnamed_pictures:
            return ""
        many = len(self._unnamed_pictures)
        pictures = "1 picture is" if many == 1 else f"{many} pictures are"
        return f"{pictures} in no row that was taken, as {min(self._unnamed_pictures)}."


# --- looking ------------------------------------------------------------------------------------------------


def preview(settings: Settings, place: DataSetFolder, request: Request, rows: int) -> Preview:
    """What a data set is found to be, and its first rows as they would be taken. Nothing is stored.

    Of a hub only what so many rows need is fetched.

    Raises:
        InvalidInput, DataError: It is not known what it is, or cannot be read.
    """
    dataset = place.read()
    if dataset.source != UPLOAD:
        fetch(
            dataset.source,
            place.files,
            settings.cache_dir,
            settings.max_dataset_bytes,
            rows,
            lambda done, total: None,
        )
    most_bytes = settings.max_dataset_bytes
    unpack_all(place.files, most_bytes)
    scan = look(tree_of(place.files), request.options, request.format)
    samples = tuple(_shown(scan.reading.row, one) for one in islice(scan.objects, rows))
    if not samples:
        raise InvalidInput("It has no rows.", "Add at least one to train on.")
    reading = scan.reading
    return Preview(
        format=scan.source.name,
        what=scan.source.what,
        mapping=reading.map,
        guessed=reading.guessed,
        columns=reading.columns,
        left_out=reading.left_out,
        samples=samples,
        targets=TARGETS,
    )


def _shown(read_row: Callable[[SourceItem], Row], one: SourceItem) -> SampleShown:
    try:
        row = read_row(one)
        if why := curate.unsayable(row):
            raise UnusableRow(why)
    except UnusableRow as error:
        return SampleShown(place=one.place, problem=str(error))
    messages = [{"role": turn.role, "text": _short(turn.text)} for turn in row.turns]
    return SampleShown(
        place=one.place,
        messages=messages,
        images=[picture.name for picture in row.pictures],
        rejected=_short(row.rejected) if row.rejected else None,
        label=row.label,
    )


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
