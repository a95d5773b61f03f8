"""Text that the data format would read as the place of a picture.

ms-swift's rows have no way to quote these tags; an example with one in its text would train on something
else than what the person wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from comfyloop.curate.samples import Draft
from comfyloop.settings import Settings

REASON = "reserved_tag"
SENTENCE = "the text contains a tag such as <image>, which marks the place of a picture in data files"

TAGS = re.compile(r"<(?:image|video|audio|bbox|ref-object|cot-process)>")


def find(drafts: Sequence[Draft], settings: Settings) -> Iterator[tuple[int, str]]:
    for index, draft in enumerate(drafts):
        texts = [*(m.text for m in draft.sample.messages), draft.sample.rejected or ""]
        if match := next(filter(None, map(TAGS.search, texts)), None):
            yield index, match.group()
