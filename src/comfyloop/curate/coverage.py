"""What a set has much and little of, in words: subjects, lengths, languages, and how pictures are framed.

Only what can be counted: of framings what answers say ("from behind", "close-up", 背面), and the pictures' own shapes.
Where nothing is said of framings, nothing is known of them, and no advice is given.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from comfyloop.curate.corrections import words
from comfyloop.curate.filters import _pictures, _texts, language_id_score
from comfyloop.curate.rulings import Ground
from comfyloop.curate.samples import Draft

NEWEST = 5000
"""Samples that are looked at."""
FEWEST = 12
"""Samples of which a set has much and little: less is only a beginning."""
MUCH, LITTLE = 0.5, 0.05

FRAMINGS: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "from the front": r"from the front|front view|facing (?:us|forward|the (?:camera|viewer))|正面|正视",
        "from the side": r"from the (?:left |right )?side|side view|in profile|侧面|侧视",
        "from behind": r"from behind|from the back|rear view|back view|背面|背影|后视",
        "from above": r"from above|top view|top-down|bird['’]s[- ]eye|flat lay|俯视|俯拍|鸟瞰",
        "from below": r"from below|low angle|worm['’]s[- ]eye|仰视|仰拍",
        "close up": r"close[- ]?up|macro|detail shot|特写|微距|近景",
        "from afar": r"from afar|from a distance|long shot|wide shot|远景|全景",
    }.items()
}
_LANGUAGES = {"zh": "Chinese", "ja": "Japanese", "ko": "Korean", "": "in Latin or other letters"}


def coverage(drafts: Sequence[Draft], ground: Ground) -> list[str]:
    """Sentences, what is missing first; none of a set that only begins."""
    once = {
        draft.sample.feedback: draft for draft in drafts if not draft.sample.replay
    }  # an edit is two samples
    looked_at = list(once.values())[-NEWEST:]
    if len(looked_at) < FEWEST:
        return []
    told = [_told(draft) for draft in looked_at]
    answers = [draft.sample.answer for draft in looked_at]
    pictured = [draft for draft in looked_at if draft.pictures]
    return [
        *_framings(pictured),
        *_shapes(pictured, ground),
        *_subjects(answers),
        *_lengths([one.words for one in told]),
        *_languages([one.script for one in told]),
    ]


class _Told(NamedTuple):
    """What is counted of a sample: looked for once."""

    framings: tuple[str, ...]
    words: int
    script: str


def _told(draft: Draft) -> _Told:
    told: _Told | None = draft.noted.get("coverage")
    if told is None:
        text = " ".join(message.text for message in draft.sample.messages) if draft.pictures else ""
        framings = tuple(name for name, pattern in FRAMINGS.items() if pattern.search(text))
        answer = draft.sample.answer
        told = draft.noted["coverage"] = _Told(framings, len(_texts.words(answer)), _script(answer))
    return told


def _framings(pictured: Sequence[Draft]) -> Iterator[str]:
    framings = [_told(draft).framings for draft in pictured]
    told = {name: sum(name in found for found in framings) for name in FRAMINGS}
    if sum(told.values()) < FEWEST // 2:
        return
    for name, count in told.items():
        if not count:
            yield f"No picture is said to be {name}."
    name, most = max(told.items(), key=lambda pair: pair[1])
    if most > MUCH * sum(told.values()):
        yield f"Of {sum(told.values())} pictures whose framing is told {most} are {name}."


def _shapes(pictured: Sequence[Draft], ground: Ground) -> Iterator[str]:
    if len(pictured) < FEWEST:
        return
    shapes: Counter[str] = Counter()
    small = 0
    for counts in _pictures.counted(ground, pictured).values():
        if counts is not None:
            ratio = counts.width / counts.height
            shapes["upright" if ratio < 0.9 else "wide" if ratio > 1.1 else "square"] += 1
            small += min(counts.width, counts.height) < 256
    total = shapes.total()
    for shape in ("upright", "wide", "square"):
        if total and not shapes[shape]:
            yield f"No picture is {shape}."
    if small > MUCH * total:
        yield f"{small} of {total} pictures are smaller than 256 pixels."


def _subjects(answers: Sequence[str]) -> Iterator[str]:
    """By the words of the answers. A word that most have is the house's style, not a subject."""
    counted = Counter(
        word for answer in answers for word in words(answer) if len(word) > 1 and not word.isdigit()
    )
    subjects = [(word, n) for word, n in counted.most_common() if n <= MUCH * len(answers) and n > 1]
    much = [f"{word} ({n})" for word, n in subjects[:5] if n >= 3]
    if much:
        yield f"Much is about {', '.join(much)}, of {len(answers)}."
    once = [word for word, n in counted.items() if n == 1]
    if much and once:
        some = ", ".join(once[-5:])
        yield f"{len(once)} words come once only, as {some}."


def _lengths(numbers: Sequence[int]) -> Iterator[str]:
    low, middle, high = (int(number) for number in np.quantile(numbers, (0.05, 0.5, 0.95)))
    if high <= 1.5 * max(low, 1):
        yield f"All answers are about as long: {low} to {high} words."
    else:
        yield f"Answers have {low} to {high} words, half of them up to {middle}."


def _languages(scripts: Sequence[str]) -> Iterator[str]:
    found = Counter(scripts)
    total = found.total()
    if len(found) > 1:
        for code, count in found.most_common()[1:]:
            if count < LITTLE * total:
                yield f"Only {count} of {total} answers are {_LANGUAGES.get(code, code)}."


def _script(text: str) -> str:
    code = language_id_score.script_of(text)
    return code if code in _LANGUAGES else ""
