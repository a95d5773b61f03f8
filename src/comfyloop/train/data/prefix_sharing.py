"""Computes common prefixes of samples only once.

Under causal attention a token depends only on the tokens before it, so samples with a common prefix (a system
prompt, an image, the conversation before two answers) have the same states up to where they diverge. Samples become
a tree of segments: a segment is computed once, and its gradient is that of all samples that go through it. The loss
is the same; the tokens are fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from comfyloop.train.data.examples import Example

LEAST = 8
"""Tokens that are worth a segment of their own."""


@dataclass(eq=False)
class Segment:
    """Tokens `begin` to `end` of `example`, shared by every sample that contains this prefix."""

    example: Example
    begin: int
    end: int
    before: Segment | None = None
    after: list[Segment] = field(default_factory=list)

    def __len__(self) -> int:
        return self.end - self.begin

    @property
    def path(self) -> list[Segment]:
        """The segments from the beginning of its samples to this one."""
        return [*(self.before.path if self.before is not None else []), self]

    @property
    def all(self) -> list[Segment]:
        """This segment and its descendants, each after its predecessor."""
        return [self, *(segment for branch in self.after for segment in branch.all)]

    @property
    def has_images(self) -> bool:
        """Whether it contains its samples' image tokens; a segment contains all of a sample's or none."""
        start, stop = self.example.image_span
        return self.begin <= start < stop <= self.end


def in_segments(examples: Sequence[Example], *, share: bool) -> tuple[list[Segment], list[list[Segment]]]:
    """Split samples into segments: all segments, and each sample's path through them.

    Args:
        share: Samples that begin alike have segments in common; otherwise each sample is one.
    """
    roots: list[Segment] = []
    ends: list[Segment] = []
    for example in examples:
        at, before, branches = 0, None, roots
        while at < len(example):
            branch, common = _branch(branches, example, at) if share else (None, 0)
            if branch is None:
                branch = Segment(example, at, len(example), before)
                branches.append(branch)
            elif common < len(branch):
                branch = _cut(branch, branch.begin + common, branches)
            at, before, branches = branch.end, branch, branch.after
        assert before is not None
        ends.append(before)
    return [segment for root in roots for segment in root.all], [end.path for end in ends]


def _branch(branches: Sequence[Segment], example: Example, at: int) -> tuple[Segment | None, int]:
    """The segment that matches a sample from its token `at`, and the number of matching tokens."""
    for segment in branches:
        if (common := _common(segment, example, at)) >= min(LEAST, len(segment)):
            return segment, common
    return None, 0


def _common(segment: Segment, example: Example, at: int) -> int:
    """The number of leading tokens of a segment that a sample has from `at` on: equal ids, positions and images."""
    other = segment.example
    length = min(len(segment), len(example) - at)
    here = slice(at, at + length)
    same = (other.input_ids[here] == example.input_ids[here]) & (
        other.positions[..., here] == example.positions[..., here]
    ).reshape(-1, length).all(0)
    common = length if bool(same.all()) else int(same.int().argmin())
    digests = {sample.pixels.digest for sample in (other, example) if sample.pixels is not None}
    for start, stop in (other.image_span, example.image_span):
        if at <= start < at + common and (len(digests) > 1 or at + common < stop):
            common = start - at  # not another sample's images, nor some of them
    return common


def _cut(segment: Segment, at: int, branches: list[Segment]) -> Segment:
    """Split a segment in two; returns the first part, which replaces it in `branches`."""
    first = Segment(segment.example, segment.begin, at, segment.before, [segment])
    branches[branches.index(segment)] = first
    segment.begin, segment.before = at, first
    return first
