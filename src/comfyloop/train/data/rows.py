"""Reads the rows of a run of the language model strictly: every row is valid or reported as bad.

Row formats are defined in `comfyloop.formats`; this module handles bad rows. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from comfyloop import formats
from comfyloop.errors import DataError
from comfyloop.formats import BadRow, Row

_SHOWN = 20
_OF_A_PICTURE = (
    "it names a picture that was kept (chosen or picked), which recipe = image_sft or image_dpo learns from; answers "
    "that look like file names are written as messages and rejected_response"
)


def read_rows(path: Path, note: Callable[[str], object] = lambda _: None) -> tuple[list[Row], list[BadRow]]:
    """All rows of a data file, good and bad; `note` is told what a person should know of the file.

    Raises:
        NotFound: There is no such file.
        DataError: The file is empty or not UTF-8.
    """
    contents = formats.read(path)
    for sentence in contents.notes:
        note(sentence)
    good, bad = [], list(contents.bad)
    for row in contents.good:
        if row.is_of_a_picture:
            bad.append(BadRow(row.line, row.id, _OF_A_PICTURE, row.item))
        else:
            good.append(row)
    return good, sorted(bad, key=lambda b: (b.line, b.item))


def refuse_or_skip(
    path: Path, good: int, bad: list[BadRow], skip: bool, max_share: float, may_be_none: bool = False
) -> None:
    """Stop with every bad line named, unless they may be skipped and are few enough.

    Args:
        may_be_none: Whether a run can do without any row of this file, as without a hold-out.

    Raises:
        DataError: Names file, line and sample of each (the first 20).
    """
    if not bad:
        return
    listing = "; ".join(
        f"{path.name}:{b.where}{f' (sample {b.id})' if b.id else ''}: {b.reason}" for b in bad[:_SHOWN]
    )
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    total = good + len(bad)
    what = f"{len(bad)} of {total} rows cannot be trained on: {listing}{more}."
    if not skip:
        raise DataError(what, "Correct these lines, or set skip_bad to train on the rest.")
    if good == 0 and not may_be_none:
        raise DataError(what, "Nothing is left to train on: correct these lines, or leave them out.")
    if len(bad) > max_share * total:
        raise DataError(
            what, f"That is more than the share of {max_share:.0%} that may be skipped (max_bad_share)."
        )
