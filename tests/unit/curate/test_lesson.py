"""What a turn learns: all that is new, and a bounded, mixed part of what was learned."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from comfyloop.curate.lesson import DEV_LEAST, choose, epochs_of, in_practice
from comfyloop.curate.samples import Source, make
from comfyloop.records import Message, Sample
from comfyloop.settings import Settings


def sample(number: int, *, author: str = "ann", slice: str = "text") -> Sample:
    turns = (Message.of("user", f"What is {number}?"), Message.of("assistant", f"It is {number}."))
    return make("sft", turns, Source("acme", (f"fb_{number}",), "answer_edited", author), slice=slice)


def ids(samples: Sequence[Sample]) -> list[str]:
    return [id for each in samples for id in each.feedback]


@given(new=st.integers(0, 60), old=st.integers(0, 300), rehearsal=st.integers(0, 50))
def test_a_turn_costs_what_is_new(new: int, old: int, rehearsal: int) -> None:
    every = [sample(number) for number in range(old + new)]
    learned = frozenset(f"fb_{number}" for number in range(old))
    lesson = choose(every, learned, rehearsal=rehearsal)
    assert len(lesson.new) + len(lesson.dev) == new  # nothing that is new is left out
    assert len(lesson.rehearsal) == min(old, rehearsal)
    assert not learned & set(ids([*lesson.new, *lesson.dev])) and learned >= set(ids(lesson.rehearsal))
    assert not {s.group for s in lesson.new} & {s.group for s in lesson.dev}
    assert len(lesson.dev) == 0 or len(lesson.dev) >= DEV_LEAST


def test_from_the_base_models_everything_is_new() -> None:
    every = [sample(number) for number in range(40)]
    learned = frozenset(f"fb_{number}" for number in range(30))
    assert choose(every, learned, afresh=True, rehearsal=10).new == tuple(every)
    assert len(choose(every, learned, afresh=True, rehearsal=10, most=25).new) == 25


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    share=st.floats(0.05, 1),
    least=st.integers(0, 15),
    afresh=st.booleans(),
)
def test_nobody_makes_up_more_than_a_share_of_what_is_new(
    counts: list[int], share: float, least: int, afresh: bool
) -> None:
    """But one who is alone, and the first few of each; nothing is lost, and what waits is each one's newest."""
    every = [
        sample(100 * who + number, author=f"author {who}")
        for who, count in enumerate(counts)
        for number in range(count)
    ]
    lesson = choose(every, frozenset(), rehearsal=5, afresh=afresh, share=share, least=least)
    taken, waiting = [*lesson.new, *lesson.dev], list(lesson.waiting)
    assert sorted(ids([*taken, *waiting])) == sorted(ids(every))
    fair = max(share, 1 / len(counts))
    for who in range(len(counts)):
        theirs = [number for number, s in enumerate(every) if s in taken and s.author == f"author {who}"]
        assert len(theirs) <= max(fair * len(taken) + 1e-6, least)
        first = counts[0:who]
        assert theirs == list(range(sum(first), sum(first) + len(theirs)))
    if len(counts) == 1 or share == 1:
        assert not waiting


def test_what_was_learned_already_is_over_no_cap() -> None:
    every = [sample(n, author="ann") for n in range(50)] + [sample(n, author="bob") for n in range(50, 60)]
    learned = frozenset(f"fb_{n}" for n in range(40))
    for afresh in (False, True):
        lesson = choose(every, learned, rehearsal=40, afresh=afresh, share=0.5, least=0)
        assert not lesson.waiting  # ten new ones of each


def test_what_is_rehearsed_has_every_author_slice_and_age() -> None:
    every = [
        sample(n, author="bob" if n % 25 == 3 else "ann", slice="vision" if n % 20 == 7 else "text")
        for n in range(200)
    ]
    some = in_practice(every, 24, {})
    assert {s.author for s in some} == {"ann", "bob"} and {s.slice for s in some} == {"text", "vision"}
    arrived = [every.index(s) for s in some]
    assert arrived == sorted(arrived)
    for quarter in range(4):
        assert sum(quarter * 50 <= place < (quarter + 1) * 50 for place in arrived) >= 3


def test_what_is_still_hard_is_rehearsed_first() -> None:
    every = [sample(n) for n in range(100)]
    hard = {every[n].id: 2.0 + n / 100 for n in (5, 30, 55, 80)}
    some = in_practice(every, 4, hard | {every[9].id: 0.1})
    assert [s.id for s in some] == list(hard)


def test_what_is_not_known_to_be_hard_stays_the_same_when_more_arrives() -> None:
    every = [sample(n) for n in range(40)]
    assert in_practice(every, 8, {}) == in_practice(every, 8, {})
    assert len(set(ids(in_practice(every, 8, {}))) & set(ids(in_practice([*every, sample(99)], 8, {})))) >= 6


def test_many_samples_are_passed_fewer_times() -> None:
    passes = [epochs_of(n, Settings()) for n in (1, 20, 30, 60, 1000)]
    assert passes == [20, 6, 4, 2, 2]
    assert epochs_of(1000, Settings(epochs=3)) == 3
