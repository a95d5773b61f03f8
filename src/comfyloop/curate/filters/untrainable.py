"""What every trainer would refuse, found by the reader that they share: no snapshot holds a row that none can read.

What only a model can tell (more tokens than it has positions, a picture that its processor refuses) is found when
it trains: such rows are left out of the run and named there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from comfyloop import __version__, formats
from comfyloop.curate.rows import row_of
from comfyloop.curate.rulings import KEEP, Filter, Ground, Options, Ruling
from comfyloop.curate.samples import Draft
from comfyloop.records import Sample


def judge(drafts: Sequence[Draft], ground: Ground, options: Options) -> Iterator[Ruling]:
    for reason in ground.measurements.of_samples(f"untrainable/{__version__}", drafts, _reasons):
        yield Ruling("drop", reason) if reason else KEEP


def _reasons(drafts: Sequence[Draft]) -> Iterator[str]:
    return (why(draft.sample) for draft in drafts)


def why(sample: Sample) -> str:
    """Why no trainer can use it; "" where one can."""
    value = row_of(sample, str)
    try:
        formats.row_of(formats.Item(1, json.dumps(value), value), Path())
    except formats.UnusableRow as error:
        return str(error)
    return ""


FILTER = Filter("untrainable", "no trainer can use it as it is", judge, rank=30, final=True)
