"""The gate's decision on the image side: promote, reject, or not enough evidence. Pure; no torch.

The rule, in this order; what the recipe learns is how to draw kept pictures (`image_sft`) or to prefer picked ones
(`image_dpo`):

1. Fewer held-out questions of that kind than settings.gate_min_items: not enough evidence.
2. The same numbers everywhere: reject, nothing was learnt.
3. Worse at what the recipe learns, overall or in one band of noise: reject.
4. Worse at the other thing: reject. Learning picks may cost settings.gate_image_loss of the denoising loss.
5. Better at what the recipe learns, and what it draws is not farther from prompts or kept pictures: promote.
6. Otherwise not enough evidence; where drawings are why, a person is asked.

The person's taste, where it is known, is reported for the drawings but decides nothing by itself.

"Worse" is that of `decision`, "better" its "proven". Losses are means over the person's own prompt and the prompt
that the version's own text side wrote, so that the pair is judged by what it will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from comfyloop.gate import looks
from comfyloop.gate.decision import Decision, measure, proven, worse
from comfyloop.gate.findings import LOOK_AT_IT
from comfyloop.gate.judging import ALL, by_groups
from comfyloop.gate.metrics import (
    DENOISING_LOSS,
    KEPT_SIMILARITY,
    PICK_ACCURACY,
    PICK_MARGIN,
    TASTE,
    TEXT_SIMILARITY,
)
from comfyloop.gate.pairs import Pairs, mean, things
from comfyloop.gate.statistics import reduction
from comfyloop.recipes import RECIPES
from comfyloop.records import GateItem, Sample, Scores, Verdict
from comfyloop.settings import Settings

SMALLEST_SHARE = 0.001
"""Of the denoising loss. Less is no reason to change what people are used to."""

_NEXT = {
    Verdict.ASK: f"Look at the contact sheet. {LOOK_AT_IT}",
    Verdict.NOT_ENOUGH_EVIDENCE: "Go on picking pictures: a part of the questions is kept for judging.",
    Verdict.REJECT: "The live version stays.",
}

PROMPTS, BANDS = ("own", "written"), ("low", "middle", "high")


@dataclass(frozen=True)
class ImageEvidence:
    """`losses` covers all measurements of kept pictures; `prompts` and `bands` split them."""

    losses: Pairs | None = None
    prompts: tuple[Pairs, ...] = ()
    bands: tuple[Pairs, ...] = ()
    margins: Pairs | None = None
    accuracy: Pairs | None = None
    drawn: tuple[Pairs, ...] = ()
    taste: Pairs | None = None

    @property
    def pairs(self) -> tuple[Pairs, ...]:
        every = (
            self.losses,
            *self.prompts,
            *self.bands,
            self.margins,
            self.accuracy,
            *self.drawn,
            self.taste,
        )
        return tuple(pairs for pairs in every if pairs is not None)


def held_out(holdout: Sequence[Sample], settings: Settings) -> tuple[list[Sample], list[Sample]]:
    """Kept pictures and pairs, newest first, each at most settings.gate_max_pictures."""
    pictures, pairs = (
        [sample for sample in reversed(holdout) if sample.kind == kind]
        for kind in ("captioned_image", "image_pair")
    )
    return pictures[: settings.gate_max_pictures], pairs[: settings.gate_max_pictures]


def to_draw(pictures: Sequence[Sample], settings: Settings) -> list[Sample]:
    """The newest kept picture of each question, at most settings.gate_max_drawn."""
    return list({sample.group: sample for sample in reversed(pictures)}.values())[::-1][
        : settings.gate_max_drawn
    ]


def evidence(samples: Iterable[Sample], scores: Mapping[str, Scores]) -> ImageEvidence:
    """The measurements, one pair per question.

    Args:
        scores: By a sample's id. Losses are called "denoising_loss/PROMPT/BAND".
    """
    scored = [(sample.group, scores[sample.id]) for sample in samples if sample.id in scores]

    def pairs_of(metric: str, slice: str, wanted: Callable[[str], bool]) -> Pairs | None:
        return by_groups(
            metric,
            slice,
            (
                (group, _mean_pair([pair for name, pair in of_item.items() if wanted(name)]))
                for group, of_item in scored
                if any(map(wanted, of_item))
            ),
        )

    def loss(slice: str, part: str = "") -> Pairs | None:
        return pairs_of(
            DENOISING_LOSS, slice, lambda name: name.startswith(f"{DENOISING_LOSS}/") and part in name
        )

    def one(metric: str) -> Pairs | None:
        return pairs_of(metric, ALL, lambda name: name == metric)

    return ImageEvidence(
        losses=loss(ALL),
        prompts=_there(loss(prompt, f"/{prompt}/") for prompt in PROMPTS),
        bands=_there(loss(f"{band} noise", f"/{band}") for band in BANDS),
        margins=one(PICK_MARGIN),
        accuracy=one(PICK_ACCURACY),
        drawn=_there(one(metric) for metric in (TEXT_SIMILARITY, KEPT_SIMILARITY)),
        taste=one(TASTE),
    )


def decide_images(evidence: ImageEvidence, settings: Settings) -> Decision:
    """The verdict with its reasons as sentences, the deciding one first. Independent of the order of items."""
    measures = tuple(measure(pairs, settings.gate_confidence) for pairs in evidence.pairs)
    verdict, first = _verdict(evidence, settings)
    step = _NEXT.get(verdict, "")
    return Decision(verdict, (first, *_findings(evidence, settings)), measures, next_step=step)


def gate_items(
    samples: Iterable[Sample], scores: Mapping[str, Scores], written: Mapping[str, tuple[str, str]]
) -> list[GateItem]:
    """Each picture as both versions saw it; the answers are the prompts that they wrote for its brief."""
    items = []
    for sample in samples:
        if sample.id not in scores:
            continue
        of_item = scores[sample.id]
        losses = [pair for name, pair in of_item.items() if name.startswith(f"{DENOISING_LOSS}/")]
        live, candidate = written.get(sample.id, ("", ""))
        question = next((message.text for message in reversed(sample.prompt) if message.role == "user"), "")
        items.append(
            GateItem(
                sample=sample.id,
                slice="picture" if sample.kind == "captioned_image" else "pick",
                question=question or sample.answer,
                images=tuple(sha for sha in (sample.picked, sample.over) if sha),
                reference=sample.answer,
                live_answer=live,
                candidate_answer=candidate,
                scores={name: pair for name, pair in of_item.items() if "/" not in name}
                | ({DENOISING_LOSS: _mean_pair(losses)} if losses else {}),
            )
        )
    return items


def _verdict(evidence: ImageEvidence, settings: Settings) -> tuple[Verdict, str]:
    confidence, picks = settings.gate_confidence, RECIPES[settings.image_recipe].kind == "image_pair"
    learnt, other = (evidence.margins, evidence.losses) if picks else (evidence.losses, evidence.margins)
    items = len(learnt.live) if learnt else 0
    if learnt is None or items < settings.gate_min_items:
        kind = "pair of pictures" if picks else "picture that you kept"
        many = "pairs of pictures" if picks else "pictures that you kept"
        there = f"Only {items} held-out {kind if items == 1 else many} {'is' if items == 1 else 'are'} there"
        return (
            Verdict.NOT_ENOUGH_EVIDENCE,
            f"{there if items else f'No held-out {kind} is there'} to judge the image side by; "
            f"{settings.gate_min_items} are needed.",
        )
    if not any(gain for part in (learnt, other) if part for gain in part.gains):
        return Verdict.REJECT, "The image side draws exactly as the live one does: nothing was learnt."
    if worse(learnt, confidence):
        return Verdict.REJECT, f"The image side is worse at {_thing(learnt)}."
    for band in () if picks else evidence.bands:
        if worse(band, confidence):
            return Verdict.REJECT, f"The image side is worse at {_thing(band)} where there is {band.slice}."
    if other is not None and worse(other, confidence):
        lost = -share_gained(other) if picks else 1.0
        if lost > (settings.gate_image_loss if picks else 0.0):
            return Verdict.REJECT, f"The image side is worse at {_thing(other)}."
    level = looks.level(settings.gate_level, items, 1.0)
    if not proven(learnt.gains, level) or (not picks and share_gained(learnt) < SMALLEST_SHARE):
        return (
            Verdict.NOT_ENOUGH_EVIDENCE,
            f"By {things(items, 'held-out question')} the image sides cannot be told apart with confidence.",
        )
    for part in evidence.drawn:
        if worse(part, confidence):
            return (
                Verdict.ASK,
                f"The image side is better at {_thing(learnt)}, but what it draws is farther from "
                f"{_aim(part)}: look at the contact sheet.",
            )
    return Verdict.PROMOTE, f"The image side is better at {_thing(learnt)}."


def share_gained(losses: Pairs) -> float:
    """The relative reduction of the mean loss: 0.02 is 2%, negative is an increase."""
    live = mean(losses.live)
    return 1 - mean(losses.candidate) / live if live else 0.0


def _findings(evidence: ImageEvidence, settings: Settings) -> list[str]:
    confidence, sentences = settings.gate_confidence, []
    if (losses := evidence.losses) is not None:
        gained = share_gained(losses)
        ahead = sum(gain > 0 for gain in losses.gains)
        spread = ""
        if mean(losses.live) > 1e-6:
            interval = reduction(losses.live, losses.candidate, confidence)
            spread = (
                f" ({confidence:.0%} interval of the change {-interval.high:+.2%} to {-interval.low:+.2%})"
            )
        parts = [f"{-share_gained(part):+.2%} at {part.slice}" for part in evidence.bands]
        parts += [
            f"{-share_gained(part):+.2%} on prompts that were {part.slice}"
            for part in evidence.prompts
            if part.slice == "written"
        ]
        sentences.append(
            f"On {things(len(losses.live), 'question')} with held-out pictures that you kept, the denoising loss "
            f"{'falls' if gained >= 0 else 'rises'} by {abs(gained):.2%}{spread}; it is ahead on {ahead}. "
            f"By parts: {', '.join(parts)}."
        )
    if (accuracy := evidence.accuracy) is not None:
        sentences.append(
            f"Of {things(len(accuracy.live), 'question')} with held-out pairs it prefers what you picked in "
            f"{mean(accuracy.candidate):.0%}; the live version in {mean(accuracy.live):.0%}."
        )
    for part in evidence.drawn:
        sentences.append(
            f"What was drawn of {things(len(part.live), 'prompt')} comes "
            f"{'nearer to' if mean(part.gains) >= 0 else 'less near to'} {_aim(part)}: "
            f"{mean(part.live):.3f} before, {mean(part.candidate):.3f} now."
        )
    if (taste := evidence.taste) is not None:
        sentences.append(
            f"By your taste, as picks and ratings show it, what was drawn of {things(len(taste.live), 'prompt')} is "
            f"liked {'better' if mean(taste.gains) >= 0 else 'less'}: {mean(taste.live):+.2f} before, "
            f"{mean(taste.candidate):+.2f} now (log odds). This decides nothing by itself."
        )
    return sentences


def _thing(pairs: Pairs) -> str:
    return "drawing what you kept" if pairs.metric == DENOISING_LOSS else "telling what you picked"


def _aim(pairs: Pairs) -> str:
    return "your prompts" if pairs.metric == TEXT_SIMILARITY else "the pictures that you kept"


def _mean_pair(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    live, candidate = zip(*pairs, strict=True)
    return mean(live), mean(candidate)


def _there(pairs: Iterable[Pairs | None]) -> tuple[Pairs, ...]:
    return tuple(part for part in pairs if part is not None)
