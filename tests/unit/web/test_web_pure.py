"""What the pages are computed from: word differences, lines of descent, effort, drawn measures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.records import AnswerAccepted, AnswerEdited, AnswerRated, Dropped, Feedback, Measure
from comfyloop.web import lineage
from comfyloop.web.copies import clusters
from comfyloop.web.diff import words_apart
from comfyloop.web.effort import effort
from comfyloop.web.runs import Points, curve, spikes
from comfyloop.web.versions import scales

TEXT = st.text(alphabet="ab é猫.,'\n ", max_size=30)


@given(TEXT, TEXT)
def test_a_difference_holds_both_texts(before: str, after: str) -> None:
    pieces = words_apart(before, after)
    assert "".join(p.text for p in pieces if p.kind != "in") == before
    assert "".join(p.text for p in pieces if p.kind != "out") == after


def test_words_are_whole_and_chinese_goes_by_characters() -> None:
    shown = [tuple(piece) for piece in words_apart("The dog is brown.", "The cat is brown.")]
    assert shown == [("same", "The "), ("out", "dog"), ("in", "cat"), ("same", " is brown.")]
    shown = [tuple(piece) for piece in words_apart("一只棕色的狗", "一只黑色的狗")]
    assert shown == [("same", "一只"), ("out", "棕"), ("in", "黑"), ("same", "色的狗")]
    long = " ".join(map(str, range(5000)))
    assert [piece.kind for piece in words_apart(long, long + " x")] == ["out", "in"]


def test_lines_lead_from_each_version_to_the_one_it_hangs_on() -> None:
    found = lineage.rows([(5, 4), (4, 3), (3, 1), (2, 1), (1, 0), (0, 0)])
    lanes = {row.number: row.lane for row in found}
    assert lanes[5] == lanes[4] == lanes[3] and lanes[2] != lanes[3] and lanes[1] == lanes[3]
    one = next(row for row in found if row.number == 1)
    assert sorted(strand.begin for strand in one.above) == [0, 1] and {
        strand.end for strand in one.above
    } == {0}
    assert found[-1].below == () and {row.width for row in found} == {2}
    # whose parent is not in the list ends where it stands
    assert lineage.rows([(7, 3), (6, 0), (0, 0)])[0].below == ()


def said(kind: str, place: int, at: datetime, **more: object) -> Feedback:
    about = {"project": "acme", "generation": f"gen_{place}", "created_at": at, **more}
    match kind:
        case "edited":
            return AnswerEdited(edited="x", **about)
        case "accepted":
            return AnswerAccepted(**about)
        case _:
            return AnswerRated(**about)


def test_effort_is_the_share_of_answers_whose_last_word_was_an_edit() -> None:
    begin = datetime(2026, 3, 2, 9, tzinfo=UTC)  # a Monday
    items = [said("edited", n, begin) for n in range(4)]
    items += [said("accepted", n, begin + timedelta(weeks=3)) for n in range(10, 13)]
    items += [said("edited", 13, begin + timedelta(weeks=3))]
    items += [said("accepted", 0, begin - timedelta(hours=1))]  # it was edited later
    items += [said("rated", 14, begin, rating=2)]  # neither changed nor used
    found = effort(items)
    assert found.unit == "week" and found.judged == 8
    assert found.first and found.last
    assert (found.first.share, found.last.share) == (1.0, 0.25)
    assert effort([]).stretches == () and effort(items[:4]).last is None


@pytest.mark.parametrize(("span", "unit"), [(timedelta(hours=5), "hour"), (timedelta(days=4), "day")])
def test_effort_is_told_by_what_there_is(span: timedelta, unit: str) -> None:
    begin = datetime(2026, 3, 2, 9, tzinfo=UTC)
    found = effort([said("edited", 1, begin), said("accepted", 2, begin + span)])
    assert found.unit == unit and len(found.stretches) == 2


def test_a_drawn_measure_has_better_on_the_right_whatever_way_it_goes() -> None:
    def measure(metric: str, low: float, high: float, higher: bool) -> Measure:
        middle = (low + high) / 2
        return Measure(
            metric=metric,
            slice="all",
            items=8,
            live=1,
            candidate=1 + middle,
            low=low,
            high=high,
            higher_is_better=higher,
        )

    better, worse, unclear = (
        measure("edit_distance", -0.4, -0.2, False),
        measure("edit_distance", 0.1, 0.2, False),
        measure("edit_distance", -0.1, 0.1, False),
    )
    (scale, other) = scales([better, worse, unclear, measure("log_likelihood", 0.5, 1.0, True)])
    assert [bar.sense for bar in scale.bars] == ["better", "worse", "open"]
    assert scale.bars[0].high == 1.0 and 0 < scale.bars[0].low < scale.bars[0].middle
    assert other.bars[0].sense == "better" and other.bars[0].high == 1.0
    assert scales([measure("of_another_release", 0, 0, True)])[0].bars[0].middle == 0


def test_a_small_curve_keeps_within_its_box() -> None:
    assert curve([1.0]) == ""
    points = [tuple(map(float, pair.split(","))) for pair in curve([5, 4, 3, 2, 1] * 100).split()]
    assert len(points) == 60 and points[0][0] == 0 and points[-1][0] == 100
    assert all(0 <= y <= 24 for _, y in points)


def test_a_spike_stands_out_from_the_steps_around_it() -> None:
    falling = [3.0 * 0.9**n for n in range(12)]
    assert spikes(Points("", tuple(range(1, 13)), tuple(falling))) == []
    spiked = [*falling[:6], 4.0, *falling[7:]]
    assert spikes(Points("", tuple(range(1, 13)), tuple(spiked))) == [(7, 4.0)]
    assert spikes(Points("", (1, 2), (1.0, 9.0))) == []


def test_near_copies_are_gathered_around_what_stayed() -> None:
    found = clusters(
        [
            Dropped(feedback="b", reason="duplicate", detail="same as a"),
            Dropped(feedback="x", reason="secret", detail="same as a key"),
            Dropped(feedback="d", reason="image_deduplicator", detail="the same picture and words as e, f"),
            Dropped(feedback="c", reason="document_minhash_deduplicator", detail="91% the same as b"),
        ]
    )
    assert [(cluster.kept, [one.feedback for one in cluster.copies]) for cluster in found] == [
        (("a",), ["b", "c"]),
        (("e", "f"), ["d"]),
    ]
