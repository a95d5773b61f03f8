"""What must stay on one side of the split: near copies of one question, or of one picture.

A text is known by its first question, whatever its case, spaces, punctuation at the ends, Unicode form and greeting
before it. A picture is known by what it shows: saved again, in another format or size, it is the same one, whether it
is asked about or was drawn.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from comfyloop.curate.seen import Look
from comfyloop.records import Dropped, Message, Sample

REASON = "shared_picture"
SENTENCE = "it shows a picture of the other side of the hold-out"

BITS_APART = 6
"""Of 64 in the perceptual hash: saved again a picture differs in 0 to 2, other pictures in 14 and more."""
BANDS, BAND = 4, 16
"""Into how many parts of how many bits a hash is divided to look up those near it."""
COLOURS_APART = 10.0
"""Mean difference of 8 x 8 colours, of 255: what tells flat pictures apart, whose hashes are all alike."""

_GREETING = re.compile(
    r"(?:(?:hello|hi|hey|greetings|good (?:morning|afternoon|evening|day)|hallo|guten (?:tag|morgen|abend)|bonjour|"
    r"bonsoir|salut|hola|buenos d[ií]as|ciao|ol[aá]|привет|здравствуйте)(?: there| again| all| everyone)?"
    r"|你好|您好|嗨|早上好|下午好|晚上好|こんにちは|안녕하세요)(?:[\s,.!;:~，。！；：～、]+|$)"
)


def group_of(prompt: Sequence[Message], same: Callable[[str], str] = lambda sha: sha) -> str:
    """The name of a conversation's group.

    Later turns repeat the first one in their history, so a whole conversation is one group. The system prompt
    does not count: it may change while the questions stay.

    Args:
        same: From a picture to the first one that shows the same.
    """
    asked = [message for message in prompt if message.role == "user"]
    opening = next((m for m in asked if m.images or question_of(m.text)), asked[0] if asked else None)
    if opening is None:
        content = [""]
    elif opening.images:
        content = ["picture", same(opening.images[0])]
    else:
        content = [question_of(opening.text) or _plain(opening.text)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def question_of(text: str) -> str:
    """What a text asks, without what does not count; empty for a greeting alone."""
    plain = _plain(text)
    greeting = _GREETING.match(plain)
    return plain[greeting.end() :] if greeting else plain


def _plain(text: str) -> str:
    if text.isascii():  # the same, in a tenth of the time
        seen = " ".join(text.casefold().split())
        return seen.strip(_ASCII_EDGES) or seen
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    seen = " ".join("".join(char for char in folded if unicodedata.category(char) != "Cf").split())
    first, last = 0, len(seen)
    while first < last and _is_edge(seen[first]):
        first += 1
    while last > first and _is_edge(seen[last - 1]):
        last -= 1
    return seen[first:last] or seen


_ASCII_EDGES = " " + "".join(
    char for char in map(chr, range(128)) if unicodedata.category(char).startswith("P")
)


def _is_edge(char: str) -> bool:
    return char.isspace() or unicodedata.category(char).startswith("P")


def _of_band(bits: int, band: int) -> int:
    return bits >> band * BAND & ((1 << BAND) - 1)


def _near(bits: int) -> Iterator[tuple[int, int]]:
    """Where a hash that is at most `BITS_APART` from this one is found: in one band at least they differ in one bit at
    most, so that not all hashes there are need be compared."""
    for band in range(BANDS):
        own = _of_band(bits, band)
        yield band, own
        yield from ((band, own ^ (1 << bit)) for bit in range(BAND))


class _Regrouped(NamedTuple):
    """A sample that is asked about pictures, in the group of its first one."""

    before: Sample
    after: Sample
    pictures: frozenset[str]  # the first ones that show the same


@dataclass
class PictureGroups:
    """The pictures of a project, in the order in which they came up.

    Args:
        look: From the hash of a picture to what is seen of it; None where it cannot be read.
    """

    look: Callable[[str], Look | None]
    _firsts: list[str] = field(default_factory=list)
    _seen: list[Look] = field(default_factory=list)
    _by_bits: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    _known: dict[str, str] = field(default_factory=dict)
    _about: dict[str, _Regrouped] = field(default_factory=dict)  # by the ids of samples about pictures

    def same(self, sha: str) -> str:
        """The first picture that shows the same as this one."""
        if sha not in self._known:
            self._known[sha] = self._find(sha)
        return self._known[sha]

    def _find(self, sha: str) -> str:
        seen = self.look(sha)
        if seen is None:
            return sha
        near = {place for key in _near(seen.bits) for place in self._by_bits.get(key, ())}
        for place in sorted(near):
            first = self._seen[place]
            if (first.bits ^ seen.bits).bit_count() > BITS_APART:
                continue
            if float(np.abs(first.colours - seen.colours).mean()) <= COLOURS_APART:
                return self._firsts[place]
        for band in range(BANDS):
            self._by_bits.setdefault((band, _of_band(seen.bits, band)), []).append(len(self._firsts))
        self._firsts.append(sha)
        self._seen.append(seen)
        return sha

    def regroup(self, samples: Sequence[Sample]) -> list[Sample]:
        """The same samples, in order of arrival: those about one picture in one group, and those that draw one.

        A drawing belongs to its prompt's group; to that of its picture, where that one came up first.
        """
        groups: dict[str, str] = {}  # of prompts and drawn pictures
        found = []
        for sample in samples:
            if sample.replay:
                found.append(sample)
                continue
            sample = self._regrouped(sample)
            if drawn := self._drawn(sample):
                keys = (sample.group, *drawn)
                group = next((groups[key] for key in keys if key in groups), sample.group)
                for key in keys:
                    groups.setdefault(key, group)
                if group != sample.group:
                    sample = sample.model_copy(update={"group": group})
            found.append(sample)
        return found

    def _regrouped(self, sample: Sample) -> Sample:
        """In the group of the picture that it asks about: found once, since the first to show a picture stays it."""
        known = self._about.get(sample.id)
        if known is None or known.before is not sample:
            images = sample.images
            if not images:
                return sample
            group = group_of(sample.prompt or sample.messages, self.same)
            after = sample if group == sample.group else sample.model_copy(update={"group": group})
            known = self._about[sample.id] = _Regrouped(sample, after, frozenset(map(self.same, images)))
        return known.after

    def _shown(self, sample: Sample) -> frozenset[str]:
        known = self._about.get(sample.id)
        if known is not None and known.after is sample:
            return known.pictures
        return frozenset(map(self.same, sample.images))

    def _drawn(self, sample: Sample) -> set[str]:
        """The pictures that a sample has the image model draw, or not draw; apart from those that are asked about."""
        if sample.picked is None and sample.over is None:
            return set()
        return {f"drawn {self.same(sha)}" for sha in (sample.picked, sample.over) if sha is not None}

    def apart(
        self, train: Sequence[Sample], holdout: Sequence[Sample], arrived: Sequence[Sample]
    ) -> tuple[tuple[Sample, ...], tuple[Sample, ...], list[Dropped]]:
        """Both sides without the samples that show a picture of the other one besides their own.

        A picture belongs to the side on which it came up first.
        """
        held = {id(sample) for sample in holdout}
        side: dict[str, bool] = {}
        out: set[int] = set()
        for sample in arrived:
            here = id(sample) in held
            pictures = self._shown(sample) | self._drawn(sample)
            if any(side.get(sha, here) is not here for sha in pictures):
                out.add(id(sample))
            else:
                side.update(dict.fromkeys(pictures, here))
        lost = dict.fromkeys(f for sample in arrived if id(sample) in out for f in sample.feedback)
        used = {f for sample in arrived if id(sample) not in out for f in sample.feedback}
        dropped = [Dropped(feedback=f, reason=REASON) for f in lost if f not in used]
        kept_train = tuple(sample for sample in train if id(sample) not in out)
        return kept_train, tuple(sample for sample in holdout if id(sample) not in out), dropped
