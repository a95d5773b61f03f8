"""What is left out of training data, one file a reason.

A filter looks at all drafts at once and yields the index of each one it leaves out, with a detail for the
report (which never repeats a secret). `REASON` is the word it is counted under, `SENTENCE` says it in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from comfyloop.curate.filters import (
    duplicate,
    empty,
    missing_image,
    secret,
    too_long,
    unchanged,
    untrainable,
)
from comfyloop.curate.samples import Draft
from comfyloop.records import Dropped
from comfyloop.settings import Settings

Find = Callable[[Sequence[Draft], Settings], Iterator[tuple[int, str]]]

SENTENCES: dict[str, str] = {
    module.REASON: module.SENTENCE
    for module in (empty, unchanged, untrainable, too_long, secret, missing_image, duplicate)
}


def apply(
    drafts: Sequence[Draft],
    settings: Settings,
    has_image: Callable[[str], bool],
    is_whole: Callable[[str], bool] = lambda sha: True,
) -> tuple[list[Draft], list[Dropped]]:
    """The drafts that pass every filter, and the feedback of which not a single draft did.

    The first filter that refuses a draft gives the reason; `duplicate` comes last, so that a copy of a good
    draft is never preferred to it.
    """
    filters: tuple[tuple[str, Find], ...] = (
        (empty.REASON, empty.find),
        (unchanged.REASON, unchanged.find),
        (untrainable.REASON, untrainable.find),
        (too_long.REASON, too_long.find),
        (secret.REASON, secret.find),
        (missing_image.REASON, missing_image.finder(has_image, is_whole)),
        (duplicate.REASON, duplicate.find),
    )
    kept = list(drafts)
    refused: dict[str, Dropped] = {}
    for reason, find in filters:
        out = dict(find(kept, settings))
        for index, detail in out.items():
            for feedback in kept[index].sample.feedback:
                refused.setdefault(feedback, Dropped(feedback=feedback, reason=reason, detail=detail))
        kept = [draft for index, draft in enumerate(kept) if index not in out]
    used = {feedback for draft in kept for feedback in draft.sample.feedback}
    return kept, [dropped for feedback, dropped in refused.items() if feedback not in used]
