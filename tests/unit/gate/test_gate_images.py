"""The verdict on pictures, and on the two sides of a version together: what they must never do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from comfyloop.gate import decide_images, evidence, gate_items, held_out, to_draw, together
from comfyloop.gate.images import ImageEvidence
from comfyloop.records import GateReport, Measure, Message, Sample, Scores, Verdict
from comfyloop.settings import Settings

SFT, DPO = Settings(image_recipe="image_sft"), Settings(image_recipe="image_dpo")


def sample(number: int, group: int | None = None, *, over: bool = False) -> Sample:
    return Sample(
        id=f"s{number}",
        project="acme",
        kind="image_pair" if over else "captioned_image",
        messages=(Message.of("user", f"brief {number}"), Message.of("assistant", f"thing {number}")),
        picked=f"{number:064x}",
        over=f"{number + 500:064x}" if over else None,
        group=f"g{number if group is None else group}",
    )


def losses(live: float, candidate: float, high: float | None = None) -> Scores:
    """As the comparison writes them; the candidate's loss at high noise may be another."""
    bands = {"low": candidate, "middle": candidate, "high": candidate if high is None else high}
    return {
        f"denoising_loss/{prompt}/{band}": (live, value)
        for prompt in ("own", "written")
        for band, value in bands.items()
    }


def margins(live: float, candidate: float) -> Scores:
    def right(margin: float) -> float:
        return 0.5 if margin == 0 else float(margin > 0)

    return {"pick_margin": (live, candidate), "pick_accuracy": (right(live), right(candidate))}


def seen(*items: Scores) -> ImageEvidence:
    return evidence(
        [sample(number) for number in range(len(items))], {f"s{n}": of for n, of in enumerate(items)}
    )


BETTER = [losses(0.30 + n / 100, 0.27 + n / 100) for n in range(6)]


def test_a_side_that_draws_better_what_was_kept_is_promoted_in_words() -> None:
    decision = decide_images(seen(*BETTER), SFT)
    assert decision.verdict is Verdict.PROMOTE
    assert decision.reasons[0] == "The image side is better at drawing what you kept."
    assert (
        "On 6 questions with held-out pictures that you kept, the denoising loss falls by 9.23%"
        in decision.reasons[1]
    )
    assert "at high noise" in decision.reasons[1] and "prompts that were written" in decision.reasons[1]


def test_few_pictures_are_no_evidence_however_good() -> None:
    decision = decide_images(seen(*BETTER[:4]), SFT)
    assert decision.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert decision.reasons[0].startswith("Only 4 held-out pictures that you kept are there to judge")
    assert decide_images(seen(), DPO).reasons[0].startswith("No held-out pair of pictures is there")


def test_several_pictures_of_one_question_count_once() -> None:
    rows = [sample(number, group=number % 3) for number in range(12)]
    found = evidence(rows, {f"s{n}": losses(0.3, 0.2) for n in range(12)})
    assert decide_images(found, SFT).verdict is Verdict.NOT_ENOUGH_EVIDENCE


def test_what_is_lost_in_one_band_of_noise_is_seen() -> None:
    items = [losses(0.30 + n / 100, 0.20 + n / 100, high=0.35 + n / 100) for n in range(6)]
    decision = decide_images(seen(*items), SFT)
    assert decision.verdict is Verdict.REJECT and "where there is high noise" in decision.reasons[0]


def test_learning_picks_may_cost_a_little_of_the_loss_and_no_more() -> None:
    for rise, verdict in ((0.01, Verdict.PROMOTE), (0.2, Verdict.REJECT)):
        items = [
            {**losses(0.3 + n / 100, (0.3 + n / 100) * (1 + rise)), **margins(0, 0.01 + n / 999)}
            for n in range(6)
        ]
        decision = decide_images(seen(*items), DPO)
        assert decision.verdict is verdict, decision.reasons
    assert decide_images(seen(*items), SFT).verdict is Verdict.REJECT


def test_drawings_that_miss_the_prompt_are_shown_to_a_person() -> None:
    items = [{**item, "text_similarity": (-2.0, -3.0 - n / 10)} for n, item in enumerate(BETTER)]
    decision = decide_images(seen(*items), SFT)
    assert decision.verdict is Verdict.ASK
    assert "farther from your prompts: look at the contact sheet" in decision.reasons[0]


values = st.floats(0.01, 1)
items_of = st.lists(
    st.tuples(values, values, st.floats(-0.1, 0.1), st.floats(-0.1, 0.1)), min_size=1, max_size=9
)


def both(item: tuple[float, float, float, float]) -> Scores:
    return {**losses(item[0], item[1]), **margins(item[2], item[3])}


@hypothesis_settings(max_examples=25)
@given(items_of, st.sampled_from([SFT, DPO]))
def test_equal_sides_are_never_promoted(
    items: list[tuple[float, float, float, float]], settings: Settings
) -> None:
    same = [both((a, a, m, m)) for a, _, m, _ in items]
    assert decide_images(seen(*same), settings).verdict is not Verdict.PROMOTE


@hypothesis_settings(max_examples=25)
@given(items_of, st.sampled_from([SFT, DPO]))
def test_no_two_sides_are_each_better_than_the_other(
    items: list[tuple[float, float, float, float]], settings: Settings
) -> None:
    verdicts = {
        decide_images(seen(*map(both, items)), settings).verdict,
        decide_images(
            seen(*(both((b, a, after, before)) for a, b, before, after in items)), settings
        ).verdict,
    }
    assert verdicts != {Verdict.PROMOTE}
    if Verdict.PROMOTE in verdicts:
        assert verdicts == {Verdict.PROMOTE, Verdict.REJECT}


@hypothesis_settings(max_examples=25)
@given(items_of, st.randoms())
def test_the_order_of_the_items_changes_nothing(
    items: list[tuple[float, float, float, float]], chance: object
) -> None:
    shuffled = list(items)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (decide_images(seen(*map(both, order)), SFT) for order in (items, shuffled))
    assert (one.verdict, one.reasons) == (other.verdict, other.reasons)


def test_the_newest_are_asked_about_and_each_question_is_drawn_once() -> None:
    settings = Settings(gate_max_pictures=5, gate_max_drawn=2)
    rows = [sample(n, group=n // 2) for n in range(8)] + [sample(n, over=True) for n in range(20, 28)]
    kept, pairs = held_out(rows, settings)
    assert [s.id for s in kept] == ["s7", "s6", "s5", "s4", "s3"] and len(pairs) == 5
    assert [s.id for s in to_draw(kept, settings)] == ["s7", "s5"]


def test_an_item_shows_what_was_written_for_it() -> None:
    [item] = gate_items([sample(1), sample(2)], {"s1": losses(0.3, 0.2)}, {"s1": ("a", "b")})
    assert (item.question, item.reference, item.live_answer, item.candidate_answer) == (
        "brief 1",
        "thing 1",
        "a",
        "b",
    )
    assert item.scores["denoising_loss"] == pytest.approx((0.3, 0.2))


# --- both sides together


def report(verdict: Verdict, *measures: Measure) -> GateReport:
    return GateReport(
        project="acme", live=1, candidate=2, verdict=verdict, reasons=("so",), measures=measures
    )


def measured(low: float, high: float, slice: str = "all", items: int = 9) -> Measure:
    return Measure(metric="log_likelihood", slice=slice, items=items, live=0, candidate=0, low=low, high=high)


UNSURE = report(Verdict.NOT_ENOUGH_EVIDENCE, measured(-0.1, 0.2))
PROMOTE, REJECT = report(Verdict.PROMOTE, measured(0.1, 0.2)), report(Verdict.REJECT, measured(-0.2, -0.1))


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        (PROMOTE, PROMOTE, Verdict.PROMOTE),
        (PROMOTE, UNSURE, Verdict.PROMOTE),
        (PROMOTE, REJECT, Verdict.REJECT),
        (UNSURE, REJECT, Verdict.REJECT),
        (UNSURE, UNSURE, Verdict.NOT_ENOUGH_EVIDENCE),
        (PROMOTE, report(Verdict.NOT_ENOUGH_EVIDENCE), Verdict.NOT_ENOUGH_EVIDENCE),
        (
            PROMOTE,
            report(Verdict.NOT_ENOUGH_EVIDENCE, measured(-0.1, 0.2, items=4)),
            Verdict.NOT_ENOUGH_EVIDENCE,
        ),
        (
            PROMOTE,
            report(Verdict.NOT_ENOUGH_EVIDENCE, measured(-0.1, 0.2), measured(-0.3, -0.1, "accepted")),
            Verdict.NOT_ENOUGH_EVIDENCE,
        ),
        (
            PROMOTE,
            report(Verdict.NOT_ENOUGH_EVIDENCE, measured(-0.1, 0.2), measured(-0.003, -0.001, "general")),
            Verdict.PROMOTE,
        ),
    ],
)
def test_a_version_is_promoted_whole_or_not_at_all(
    one: GateReport, other: GateReport, verdict: Verdict, swap: bool
) -> None:
    text, image = (other, one) if swap else (one, other)
    judged = together(text, image.model_copy(update={"sheet": "a" * 64}), SFT)
    assert judged.verdict is verdict and judged.reasons[1:] == ("so", "so")
    assert judged.sheet == "a" * 64 and len(judged.measures) == len(one.measures) + len(other.measures)


@pytest.mark.parametrize("liked", [(0.1, -3.0), (-3.0, 0.1)])
def test_taste_is_told_and_decides_nothing(liked: tuple[float, float]) -> None:
    """Neither a version that is no better is promoted by it, nor one that is better kept back."""
    for items in (BETTER, [losses(0.3, 0.3) for _ in range(6)]):
        plain = decide_images(seen(*items), SFT)
        told = decide_images(seen(*({**item, "taste": liked} for item in items)), SFT)
        assert told.verdict is plain.verdict and told.reasons[0] == plain.reasons[0]
        assert ("taste", "all") in {(m.metric, m.slice) for m in told.measures}
        better = "better" if liked[1] > liked[0] else "less"
        assert any(f"is liked {better}" in reason and "decides nothing" in reason for reason in told.reasons)
