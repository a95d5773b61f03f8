"""Which edits noticed between two runs are corrections: near their original in meaning, and not taken back.

Nobody was asked about such an edit, so what is not sure is not learnt; it stays stored, and the report names it. An
edit that a person made in a review is theirs and always counts.

- A prompt is corrected where at least half of the words that carry its meaning are still there. "portrait of an old
  man" to "spaceship over Tokyo" is another picture; "... in oil, soft light" is a correction. Of a text without
  spaces between words, pairs of characters are counted.
- A change and its undo cancel each other, whatever the same person did in between.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from comfyloop.records import Dropped, Feedback, GraphEdited, PromptEdited

KEPT = 0.5
"""The share of the original's words that a correction keeps."""

_SMALL = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at by to for with and or from into over under near is are be as it its his her their"
        " this that very some",
    )
)
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def is_correction(before: str, after: str) -> bool:
    """Whether `after` says what `before` did, in a better way, rather than something else."""
    was, now = words(before), words(after)
    return bool(was) and len(was & now) >= KEPT * len(was)


def words(text: str) -> set[str]:
    """What carries a text's meaning: its words but the small ones; of unspaced writing, pairs of characters."""
    return set(words_in_order(text))


def words_in_order(text: str) -> list[str]:
    """The same in the order of the text, the unspaced ones last."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    pairs = [
        run[place : place + 2] for run in _UNSPACED.findall(plain) for place in range(max(1, len(run) - 1))
    ]
    spaced = re.findall(r"[^\W_]+", _UNSPACED.sub(" ", plain))
    return ([word for word in spaced if word not in _SMALL] or spaced) + pairs


def unsure(items: Sequence[Feedback]) -> list[Dropped]:
    """Of feedback in the order in which it arrived: the captured edits that are no corrections, with the reason."""
    dropped = [
        Dropped(feedback=item.id, reason="another_subject", detail="it keeps less than half of the words")
        for item in items
        if isinstance(item, PromptEdited) and is_captured(item) and not is_correction(item.before, item.after)
    ]
    waiting: dict[object, list[Feedback]] = {}
    for item in items:
        if not isinstance(item, PromptEdited | GraphEdited) or not is_captured(item):
            continue
        who = (item.author, item.kind)
        undone = waiting.get((*who, repr(item.after), repr(item.before)))
        if undone:
            earlier = undone.pop()
            dropped += [
                Dropped(feedback=earlier.id, reason="undone", detail=f"by {item.id}"),
                Dropped(feedback=item.id, reason="undone", detail=f"it takes {earlier.id} back"),
            ]
        else:
            waiting.setdefault((*who, repr(item.before), repr(item.after)), []).append(item)
    return list({lost.feedback: lost for lost in dropped}.values())


def is_captured(item: PromptEdited | GraphEdited) -> bool:
    """Noticed between two runs: it names the node; one from a review does not."""
    return isinstance(item, GraphEdited) or (bool(item.node) and item.generation is None)
