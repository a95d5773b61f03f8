"""Snapshots as data that trains elsewhere: for ms-swift, LLaMA-Factory (ShareGPT), LLaVA and kohya's scripts.

Each form is read by `comfyloop data add` to the same rows. What a form cannot say is left out, and named.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from comfyloop import formats
from comfyloop.curate.rows import dump_rows, with_images
from comfyloop.errors import Conflict, InvalidInput, NotFound, StorageError
from comfyloop.formats import IMAGE_TAG, Row


class Exported(NamedTuple):
    files: list[Path]
    left_out: tuple[str, ...]  # rows that the format cannot say, each named with the reason


def export(snapshot: Path, out: Path, format: str = "swift") -> Exported:
    """Copies a snapshot's rows and pictures into the new folder `out`, as another trainer reads them.

    Args:
        format: One of `FORMATS`.

    Returns:
        The data files written, and what could not be: a text with ``<image>`` in it would be read as a picture.

    Raises:
        InvalidInput: The format is unknown.
        NotFound: There is no snapshot at that path.
        Conflict: `out` has something in it already.
    """
    if format not in FORMATS:
        raise InvalidInput(
            f"Data cannot be exported as {format!r}.", f"The formats are {', '.join(FORMATS)}."
        )
    if not (snapshot / "train.jsonl").is_file():
        raise NotFound(f"There is no snapshot at {snapshot}.", "`comfyloop snapshot` makes one.")
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Conflict(f"{out} is there already.", "Give a new or empty folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        return FORMATS[format](snapshot, out)
    except OSError as error:
        raise StorageError(f"The data could not be written to {out}: {error.strerror or error}.") from error


# --- of the language side -----------------------------------------------------------------------------------


def _swift(snapshot: Path, out: Path) -> Exported:
    """ms-swift's rows. Image paths are absolute, as ms-swift recommends: they hold wherever it is started."""
    written: list[Path] = []
    left_out: list[str] = []
    for name, rows in _of_answers(snapshot, left_out, lambda row: ""):
        lines = []
        for row in rows:
            images = [str(out / _copied(image, snapshot, out)) for image in row.images]
            lines.append(with_images(formats.to_swift(row, images), images))
        written.append(_write(out / name, dump_rows(lines)))
    return Exported(written, tuple(left_out))


def _sharegpt(snapshot: Path, out: Path) -> Exported:
    """ShareGPT's conversations, with the `dataset_info.json` by which LLaMA-Factory finds them: `--dataset_dir OUT
    --dataset train`."""
    written: list[Path] = []
    left_out: list[str] = []
    info: dict[str, Any] = {}
    for name, rows in _of_answers(snapshot, left_out, _taking_turns):
        lines = []
        for row in rows:
            said = _said(row)
            line: dict[str, Any] = {"id": row.id, "conversations": said}
            if row.rejected is not None:
                line["conversations"], line["chosen"] = said[:-1], said[-1]
                line["rejected"] = {"from": "gpt", "value": row.rejected}
            if row.label is not None:
                line["kto_tag"] = row.label
            images = [_copied(image, snapshot, out) for image in row.images]
            lines.append({**line, "images": images})
        written.append(_write(out / name, dump_rows(lines)))
        columns = {key: key for key in ("images", "kto_tag", "chosen", "rejected") if key in _keys(lines)}
        info[name.removesuffix(".jsonl").replace(".", "_")] = {
            "file_name": name,
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", **columns},
            **({"ranking": True} if "chosen" in columns else {}),
        }
    _write(out / "dataset_info.json", json.dumps(info, indent=2) + "\n")
    return Exported(written, tuple(left_out))


def _llava(snapshot: Path, out: Path) -> Exported:
    """LLaVA's JSON arrays, to be trained with `--image_folder OUT`: a question and its answer, after one picture or
    several. It has no place for a system prompt, nor for an answer that was not wanted."""

    def why(row: Row) -> str:
        if row.rejected is not None or row.label is not None:
            return "LLaVA has no place for an answer that was not wanted"
        if row.turns[0].role == "system":
            return "LLaVA has no place for its system prompt"
        return _taking_turns(row)

    written: list[Path] = []
    left_out: list[str] = []
    for name, rows in _of_answers(snapshot, left_out, why):
        items = []
        for row in rows:
            images = [_copied(image, snapshot, out) for image in row.images]
            shown = {} if not images else {"image": images[0] if len(images) == 1 else images}
            items.append({"id": row.id, **shown, "conversations": _said(row)})
        if items or name == "train.jsonl":
            target = out / (name.removesuffix("l"))
            written.append(_write(target, json.dumps(items, ensure_ascii=False, indent=1) + "\n"))
    return Exported(written, tuple(left_out))


def _of_answers(
    snapshot: Path, left_out: list[str], why: Callable[[Row], str]
) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each data file of the language side that a form can say.

    Args:
        left_out: Is told of the others.
        why: Why a row cannot be said; "" where it can.
    """
    for file in sorted(snapshot.glob("*.jsonl")):
        found = formats.read(file, may_be_empty=True)
        if any(row.is_of_a_picture for row in found.good):
            continue  # the image model's data is no chat
        left_out += [
            f"{file.name}:{bad.where} (sample {bad.id}) is left out: {bad.reason}." for bad in found.bad
        ]
        rows = []
        for row in found.good:
            tag = formats.quoted_tag(row)
            reason = (
                f"its text has {tag}, which would be taken for the place of something else"
                if tag
                else why(row)
            )
            if reason:
                left_out.append(f"{file.name}:{row.where} (sample {row.id}) is left out: {reason}.")
            else:
                rows.append(row)
        yield file.name, rows


def _taking_turns(row: Row) -> str:
    spoken = [turn for turn in row.turns if turn.role != "system"]
    if any(turn.role == "system" for turn in row.turns[1:]):
        return "it has a system prompt within its conversation"
    if any(turn.role != ("user", "assistant")[place % 2] for place, turn in enumerate(spoken)):
        return "its user and its assistant do not take turns"
    if not all(turn.learn for turn in row.turns if turn.role == "assistant"):
        return "it has an answer that is not to be learnt"
    return ""


def _said(row: Row) -> list[dict[str, str]]:
    called = {"user": "human", "assistant": "gpt"}
    return [
        {
            "from": called.get(turn.role, turn.role),
            "value": "".join(IMAGE_TAG if part is None else part for part in turn.parts),
        }
        for turn in row.turns
    ]


def _keys(lines: Sequence[Mapping[str, Any]]) -> set[str]:
    return {key for line in lines for key, value in line.items() if value not in ([], None)}


# --- of the image side --------------------------------------------------------------------------------------


def _kohya(snapshot: Path, out: Path) -> Exported:
    """Folders of pictures with their captions beside them, as kohya's scripts take them: `--train_data_dir OUT/train`.
    A folder's name begins with how often its pictures are passed in an epoch."""
    written: list[Path] = []
    left_out: list[str] = []
    for file in sorted(snapshot.glob("*.jsonl")):
        found = formats.read(file, may_be_empty=True)
        shown = [row for row in found.good if row.chosen_image is not None]
        pairs = sum(row.rejected_image is not None for row in shown)
        if pairs:
            left_out.append(f"{file.name}: {pairs} pairs of pictures, of which kohya's folders have no form.")
        side = file.name.partition(".")[0]
        for row in shown:
            if row.rejected_image is None:
                written.append(_captioned(row, out / side / f"{_repeats(row)}_captions"))
    if not written:
        left_out.append("There are no pictures with captions in it, and kohya's folders hold nothing else.")
    return Exported(written, tuple(left_out))


def _captioned(row: Row, folder: Path) -> Path:
    """A picture and its caption, of which kohya's scripts read the first line."""
    assert isinstance(row.chosen_image, Path)  # snapshots keep pictures as files
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / row.chosen_image.name
    copy = 1
    while picture.exists():  # one picture with several captions
        copy += 1
        picture = picture.with_name(f"{row.chosen_image.stem}-{copy}{row.chosen_image.suffix}")
    shutil.copyfile(row.chosen_image, picture)
    _write(picture.with_suffix(".txt"), " ".join(row.answer.split()) + "\n")
    return picture


def _repeats(row: Row) -> int:
    return int(row.extra.get("repeats", 1))


# --- files --------------------------------------------------------------------------------------------------


def _copied(image: formats.Picture, snapshot: Path, out: Path) -> str:
    """The name of a picture in the export, where it is copied to."""
    assert isinstance(image, Path)  # snapshots keep pictures as files
    name = image.relative_to(snapshot)
    target = out / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, target)
    return name.as_posix()


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


FORMATS: Mapping[str, Callable[[Path, Path], Exported]] = {
    "swift": _swift,
    "sharegpt": _sharegpt,
    "llava": _llava,
    "kohya": _kohya,
}
