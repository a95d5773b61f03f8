"""What every trainer would refuse, found by the reader that they share: no snapshot holds a row that none can read.

What only a model can tell (more tokens than it has positions, a picture that its processor refuses) is found when
it trains: such rows are left out of the run and named there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from comfyloop import formats
from comfyloop.curate.rows import row_of
from comfyloop.curate.samples import Draft
from comfyloop.records import Sample
from comfyloop.settings import Settings

REASON = "untrainable"
SENTENCE = "no trainer can use it as it is"


def find(drafts: Sequence[Draft], settings: Settings) -> Iterator[tuple[int, str]]:
    for index, draft in enumerate(drafts):
        if reason := why(draft.sample):
            yield index, reason


def why(sample: Sample) -> str:
    """Why no trainer can use it; "" where one can."""
    value = row_of(sample, str)
    try:
        formats.row_of(formats.Item(1, json.dumps(value), value), Path())
    except formats.UnusableRow as error:
        return str(error)
    return ""
