"""What each kind of feedback becomes, whose word counts, and what is left out with which reason."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.curate import filters
from comfyloop.curate.groups import group_of
from comfyloop.curate.pictures import picked_drafts, rated_drafts
from comfyloop.curate.prompts import prompt_drafts
from comfyloop.curate.rulings import Ground
from comfyloop.curate.samples import WRITE_PROMPT, Draft, drafts_of, newest
from comfyloop.records import (
    AnswerAccepted,
    AnswerEdited,
    AnswerRated,
    Feedback,
    Generation,
    GraphEdited,
    ImagePicked,
    ImageRated,
    Message,
    PromptEdited,
    SampleUploaded,
    now,
)
from comfyloop.settings import Settings

IMAGE, OTHER = "a" * 64, "b" * 64
ASKED = (Message.of("system", "Be kind."), Message.of("user", "What is it?", [IMAGE]))
GENERATION = Generation(id="gen_1", project="acme", version=0, model="acme", messages=ASKED, answer="A cat.")
MADE = {"gen_1": GENERATION}
START = now()


def said(kind: type, id: str, minute: int = 0, author: str = "ada", **more: Any) -> Any:
    at = START + timedelta(minutes=minute)
    if kind in (AnswerEdited, AnswerAccepted, AnswerRated):
        more.setdefault("generation", "gen_1")
    return kind(id=id, project="acme", author=author, created_at=at, **more)


class Stored:
    """Pictures of which all but OTHER are there and whole."""

    def exists(self, sha: str) -> bool:
        return sha != OTHER

    def is_whole(self, sha: str) -> bool:
        return True

    def read(self, sha: str) -> bytes:
        return sha.encode()

    def look(self, sha: str) -> None:
        return None


def drafts(item: Feedback) -> list[Draft]:
    found, dropped = drafts_of(item, MADE)
    assert dropped is None
    return found


def filtered(items: Sequence[Draft], **more: Any) -> tuple[list[Draft], dict[str, str]]:
    found = filters.apply(items, Ground(Settings(**more), Stored()))
    return found.kept, {item.feedback: item.reason for item in found.dropped}


def test_an_edit_is_an_answer_to_learn_and_a_preference_over_the_models() -> None:
    sft, preference = (draft.sample for draft in drafts(said(AnswerEdited, "fb_1", edited=" A tabby cat.\n")))
    assert (sft.kind, sft.answer, sft.prompt) == ("sft", "A tabby cat.", ASKED)
    assert (preference.kind, preference.answer, preference.rejected) == (
        "preference",
        "A tabby cat.",
        "A cat.",
    )
    assert sft.group == preference.group and sft.id != preference.id
    assert (sft.slice, sft.origin, sft.author, sft.feedback) == ("vision", "answer_edited", "ada", ("fb_1",))


def test_an_accepted_answer_is_learnt_as_it_was() -> None:
    (draft,) = drafts(said(AnswerAccepted, "fb_1"))
    assert (draft.sample.kind, draft.sample.answer, draft.sample.origin) == (
        "sft",
        "A cat.",
        "answer_accepted",
    )


@pytest.mark.parametrize(("rating", "label"), [(1, False), (2, False), (4, True), (5, True)])
def test_a_rating_labels_the_answer(rating: int, label: bool) -> None:
    (draft,) = drafts(said(AnswerRated, "fb_1", rating=rating))
    assert (draft.sample.kind, draft.sample.label, draft.sample.answer) == ("labelled", label, "A cat.")


def test_a_rating_of_three_is_left_out_as_neutral() -> None:
    assert [d.reason for d in [drafts_of(said(AnswerRated, "fb_1", rating=3), MADE)[1]] if d] == ["neutral"]


def test_a_prompt_edit_with_its_generation_teaches_whoever_wrote_the_prompt() -> None:
    item = said(PromptEdited, "fb_1", before="A cat, blurry.", after="A cat in ink.", generation="gen_1")
    sft, preference = (draft.sample for draft in drafts(item))
    assert (sft.prompt, sft.answer, sft.slice) == (ASKED, "A cat in ink.", "prompt")
    assert preference.rejected == "A cat."  # what the model wrote, not what it had become meanwhile


def test_a_prompt_edit_of_ones_own_text_asks_for_the_prompt_from_the_earlier_one() -> None:
    sft, preference = (d.sample for d in drafts(said(PromptEdited, "fb_1", before="cat", after="cat, ink")))
    assert sft.prompt[-1].text == WRITE_PROMPT.format(brief="cat")
    assert (sft.answer, preference.rejected) == ("cat, ink", "cat")


def test_a_graph_edit_is_the_workflow_and_the_aim_with_the_edit_as_answer() -> None:
    before = {"1": {"class_type": "KSampler", "inputs": {"cfg": 7, "seed": 1}}}
    after = {"9": {"class_type": "KSampler", "inputs": {"cfg": 5, "seed": 2}}}
    (draft,) = drafts(said(GraphEdited, "fb_1", before=before, after=after, aim="softer"))
    assert draft.sample.prompt[0].text == "Workflow:\n1 KSampler cfg=7\n\nAim: softer\n\nEdit:"
    assert (draft.sample.answer, draft.sample.slice) == ("set 1.cfg = 5", "graph")


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ({"4": {"class_type": "KSampler", "inputs": {"cfg": 7.0, "seed": 99}}}, "unchanged"),
        ({"4": {"inputs": {}}}, "broken_graph"),
    ],
)
def test_a_graph_edit_that_says_nothing_is_left_out(after: dict[str, Any], reason: str) -> None:
    before = {"1": {"class_type": "KSampler", "inputs": {"cfg": 7, "seed": 1}}}
    found, dropped = drafts_of(said(GraphEdited, "fb_1", before=before, after=after), MADE)
    assert not found and dropped is not None and dropped.reason == reason


@pytest.mark.parametrize(
    ("more", "kind"), [({}, "sft"), ({"rejected": "No."}, "preference"), ({"label": False}, "labelled")]
)
def test_an_uploaded_sample_is_taken_as_it_is(more: dict[str, Any], kind: str) -> None:
    messages = (Message.of("user", "Hi"), Message.of("assistant", " Hello \n"))
    (draft,) = drafts(said(SampleUploaded, "fb_1", messages=messages, **more))
    assert (draft.sample.kind, draft.sample.messages) == (kind, messages)


def test_feedback_about_an_answer_that_is_gone_is_named() -> None:
    found, dropped = drafts_of(said(AnswerAccepted, "fb_1", generation="gen_9"), MADE)
    assert (
        not found and dropped is not None and (dropped.reason, dropped.detail) == ("no_generation", "gen_9")
    )


@pytest.mark.parametrize("reason", ["repetition", "error", "cancelled"])
def test_an_answer_that_was_broken_off_is_not_learnt_as_it_stands(reason: str) -> None:
    circle = GENERATION.model_copy(update={"answer": "a cat, a cat, a cat", "finish_reason": reason})
    made = {"gen_1": circle}
    for item in (said(AnswerAccepted, "fb_1"), said(AnswerRated, "fb_1", rating=5)):
        found, dropped = drafts_of(item, made)
        assert not found and dropped is not None
        assert (dropped.feedback, dropped.reason, dropped.detail) == ("fb_1", "broken_off", reason)

    found, dropped = drafts_of(said(AnswerRated, "fb_1", rating=1), made)
    assert dropped is None and [draft.sample.label for draft in found] == [False]
    found, dropped = drafts_of(said(AnswerEdited, "fb_1", edited="a cat"), made)
    assert dropped is None and [draft.sample.rejected for draft in found] == [None, "a cat, a cat, a cat"]


def test_an_answer_at_its_limit_is_learnt_as_the_person_took_it() -> None:
    made = {"gen_1": GENERATION.model_copy(update={"finish_reason": "length"})}  # "Yes", of one token
    ((draft,), dropped) = drafts_of(said(AnswerAccepted, "fb_1"), made)
    assert dropped is None and draft.sample.answer == "A cat."


def test_a_prompt_that_went_in_a_circle_is_not_learnt_because_its_picture_was_picked() -> None:
    circle = GENERATION.model_copy(update={"answer": "a cat, a cat, a cat", "finish_reason": "repetition"})
    other = GENERATION.model_copy(update={"id": "gen_2", "answer": "a cat in ink"})
    made = {"gen_1": circle, "gen_2": other}
    picked = said(ImagePicked, "fb_1", picked=(IMAGE,), over=(), generation="gen_1")
    good = said(ImagePicked, "fb_2", picked=(IMAGE,), over=(), generation="gen_2")
    bad = said(ImageRated, "fb_3", image=OTHER, rating=1, generation="gen_1")
    assert prompt_drafts([picked], made) == []
    rewritten = picked.model_copy(update={"prompt": "a cat"})
    assert [draft.sample.answer for draft in prompt_drafts([rewritten], made)] == ["a cat"]
    written = prompt_drafts([good, bad], made)
    assert [(d.sample.kind, d.sample.rejected) for d in written] == [
        ("sft", None),
        ("preference", "a cat, a cat, a cat"),
    ]


# --- whose word counts


def standing(*items: Feedback) -> list[str]:
    return [item.id for item in newest(items)[0]]


def test_an_edit_after_an_accept_wins_and_the_other_way_round() -> None:
    edit, accept = said(AnswerEdited, "e", 1, edited="x"), said(AnswerAccepted, "a", 2)
    assert standing(edit, accept) == ["a"]
    assert standing(accept, edit) == ["a"]  # by when it was done, not by when it arrived
    assert newest([accept, edit])[1][0].detail == "by a"
    assert standing(accept, said(AnswerEdited, "e2", 3, edited="y")) == ["e2"]


def test_people_do_not_overrule_each_other() -> None:
    assert standing(said(AnswerAccepted, "a", 1), said(AnswerEdited, "b", 2, author="bob", edited="x")) == [
        "a",
        "b",
    ]


def test_a_rating_lives_beside_an_edit_unless_it_contradicts_it() -> None:
    edit = said(AnswerEdited, "e", 1, edited="x")
    assert standing(edit, said(AnswerRated, "r", 2, rating=1)) == ["e", "r"]
    assert standing(edit, said(AnswerRated, "r", 2, rating=5)) == ["e"]
    accept = said(AnswerAccepted, "a", 1)
    assert standing(accept, said(AnswerRated, "r", 2, rating=1)) == ["r"]
    assert standing(said(AnswerRated, "r", 0, rating=1), accept) == ["a"]
    assert standing(accept, said(AnswerRated, "r", 2, rating=5)) == ["a", "r"]
    assert standing(said(AnswerRated, "r", 0, rating=5), said(AnswerRated, "q", 3, rating=2)) == ["q"]


@given(
    st.lists(
        st.tuples(st.sampled_from("ear"), st.sampled_from(["ada", "bob"]), st.integers(0, 5)), max_size=12
    )
)
def test_of_one_person_about_one_answer_at_most_one_word_stands(acts: list[tuple[str, str, int]]) -> None:
    kinds: dict[str, tuple[type, dict[str, Any]]] = {
        "e": (AnswerEdited, {"edited": "x"}),
        "a": (AnswerAccepted, {}),
        "r": (AnswerRated, {"rating": 2}),
    }
    items = [said(kinds[k][0], f"fb_{i}", m, who, **kinds[k][1]) for i, (k, who, m) in enumerate(acts)]
    kept, dropped = newest(items)
    assert sorted([*(i.id for i in kept), *(d.feedback for d in dropped)]) == sorted(i.id for i in items)
    for who in {item.author for item in items}:
        answers = [i for i in kept if i.author == who and i.kind != "answer_rated"]
        ratings = [i for i in kept if i.author == who and i.kind == "answer_rated"]
        assert len(answers) <= 1 and len(ratings) <= 1 and len(answers) + len(ratings) >= 1
        assert not (ratings and answers and answers[0].kind == "answer_accepted")


# --- groups


def test_a_group_is_its_first_question_and_images_whatever_follows() -> None:
    first = group_of(ASKED)
    later = (
        Message.of("user", "what  IS it?", [IMAGE]),
        Message.of("assistant", "A cat."),
        Message.of("user", "?"),
    )
    assert group_of(later) == first
    assert group_of((Message.of("user", "What is it?"),)) != first
    assert group_of((Message.of("user", "What is it?", [OTHER]),)) != first


# --- images


def test_a_pick_is_a_kept_image_and_a_pair_with_each_it_was_chosen_over() -> None:
    third = "c" * 64
    item = said(ImagePicked, "fb_1", picked=(IMAGE,), over=(OTHER, third, IMAGE), prompt="a fox")
    found, dropped = picked_drafts(item, {})
    kinds = [(d.sample.kind, d.sample.picked, d.sample.over, d.sample.answer) for d in found]
    assert dropped is None
    assert kinds == [
        ("captioned_image", IMAGE, None, "a fox"),
        ("image_pair", IMAGE, OTHER, "a fox"),
        ("image_pair", IMAGE, third, "a fox"),
    ]


def test_of_two_picks_from_the_same_images_the_newer_counts() -> None:
    first = said(ImagePicked, "first", picked=(IMAGE,), over=(OTHER,), prompt="a fox")
    second = said(ImagePicked, "second", picked=(OTHER,), over=(IMAGE,), prompt="a fox")
    elsewhere = said(ImagePicked, "elsewhere", picked=(IMAGE,), over=("c" * 64,), prompt="a fox")
    kept, dropped = newest([first, second, elsewhere])
    assert [item.id for item in kept] == ["second", "elsewhere"]
    assert [(d.feedback, d.reason, d.detail) for d in dropped] == [("first", "superseded", "by second")]


def test_a_pick_takes_its_prompt_from_the_answer_that_wrote_it_or_is_left_out() -> None:
    item = said(ImagePicked, "fb_1", picked=(IMAGE,), generation="gen_1")
    assert picked_drafts(item, MADE)[0][0].sample.answer == "A cat."
    dropped = picked_drafts(said(ImagePicked, "fb_1", picked=(IMAGE,)), MADE)[1]
    assert dropped is not None and dropped.reason == "no_prompt"


def test_image_ratings_pair_up_within_a_prompt_and_a_person() -> None:
    ratings = [
        said(ImageRated, "good", image=IMAGE, rating=5, prompt="a fox"),
        said(ImageRated, "bad", image=OTHER, rating=1, prompt="a fox"),
        said(ImageRated, "so", image="c" * 64, rating=3, prompt="a fox"),
        said(ImageRated, "lone", image="d" * 64, rating=1, prompt="a dog"),
        said(ImageRated, "bobs", image="e" * 64, rating=1, prompt="a fox", author="bob"),
        said(ImageRated, "what", image="f" * 64, rating=5),
    ]
    found, dropped = rated_drafts(ratings, {})
    assert [(d.sample.kind, d.sample.feedback) for d in found] == [
        ("captioned_image", ("good",)),
        ("image_pair", ("good", "bad")),
    ]
    assert {d.feedback: d.reason for d in dropped} == {
        "so": "neutral",
        "lone": "no_pair",
        "bobs": "no_pair",
        "what": "no_prompt",
    }


@pytest.mark.parametrize("other", ["a  fox", " a fox\n", "a\u00a0fox", "a\tfox"])
def test_ratings_of_a_prompt_pair_up_however_it_is_spaced(other: str) -> None:
    ratings = [
        said(ImageRated, "good", image=IMAGE, rating=5, prompt="a fox"),
        said(ImageRated, "bad", image=OTHER, rating=1, prompt=other),
    ]
    found, _ = rated_drafts(ratings, {})
    assert [draft.sample.kind for draft in found] == ["captioned_image", "image_pair"]
    assert found[1].sample.answer == "a fox"
    ratings = [ratings[0], said(ImageRated, "bad", image=OTHER, rating=1, prompt="a fax")]
    assert [draft.sample.kind for draft in rated_drafts(ratings, {})[0]] == ["captioned_image"]


def test_a_prompt_is_judged_by_the_pictures_made_of_it() -> None:
    brief = (Message.of("user", "A poster for a cedar pillow"),)
    made = {
        f"gen_{n}": Generation(
            id=f"gen_{n}", project="acme", version=0, model="acme", messages=brief, answer=answer
        )
        for n, answer in enumerate(["a pillow, photo", "a pillow, ink", "a pillow, oil", "a pillow"])
    }
    judged = [
        said(ImagePicked, "kept", picked=(IMAGE,), over=(OTHER,), generation="gen_1"),
        said(ImageRated, "bad", image=OTHER, rating=1, generation="gen_0"),
        said(ImageRated, "one_bad_of_a_kept", image=OTHER, rating=2, generation="gen_1"),
        said(ImageRated, "so", image=OTHER, rating=3, generation="gen_2"),
        said(ImageRated, "bobs", image=OTHER, rating=1, generation="gen_3", author="bob"),
        said(ImageRated, "hers", image=OTHER, rating=5, generation="gen_2", prompt="a pillow, oil, cedar"),
        said(ImagePicked, "unwritten", picked=(IMAGE,), prompt="a fox"),
    ]
    found = [draft.sample for draft in prompt_drafts(judged, made)]
    assert [(s.kind, s.answer, s.rejected) for s in found] == [
        ("sft", "a pillow, ink", None),
        ("preference", "a pillow, ink", "a pillow, photo"),
        ("sft", "a pillow, oil, cedar", None),
        ("preference", "a pillow, oil, cedar", "a pillow, photo"),
    ]
    assert {s.slice for s in found} == {"prompt"}
    assert len({s.group for s in found}) == 1
    assert found[1].feedback == ("bad", "kept", "one_bad_of_a_kept")


# --- filters


@pytest.mark.parametrize(
    ("edited", "reason"),
    [
        ("  \n", "empty"),
        ("A cat. ", "unchanged"),
        ("A\u00a0cat.", "unchanged"),  # as text is pasted from a browser or Word
        ("\ufeffA cat.\u200b\u200e", "unchanged"),
        ("\u200b\u200d", "empty"),
        ("x" * 101, "too_long"),
        ("Use sk-abcdefghijklmnopqrstuvwx to log in.", "secret"),
        ("password: hunter2!", "secret"),
        ("密码:hunter2!", "secret"),
        ("A cat\0.", "untrainable"),
    ],
)
def test_an_edit_that_cannot_be_used_is_left_out_with_its_reason(edited: str, reason: str) -> None:
    kept, dropped = filtered(drafts(said(AnswerEdited, "fb_1", edited=edited)), max_answer_chars=100)
    assert (kept, dropped) == ([], {"fb_1": reason})


@pytest.mark.parametrize(
    "text",
    [
        "The secret: slow mornings and good bread.",
        "Forgot your password? Reset it.",
        "One token of love; key: C major.",
        "See https://example.org/a:b for more.",
        "A key lime pie at 7:30, pass: 12",
        "The password is hidden in the rhyme.",
    ],
)
def test_everyday_words_are_no_secrets(text: str) -> None:
    assert filtered(drafts(said(AnswerEdited, "fb_1", edited=text)))[1] == {}


def test_a_secret_in_the_question_counts_and_is_not_repeated_in_the_report() -> None:
    token = "ghp_" + "a1B2" * 9
    messages = (Message.of("user", f"Why does {token} fail?"), Message.of("assistant", "It expired."))
    found = filters.apply(
        drafts(said(SampleUploaded, "fb_1", messages=messages)), Ground(Settings(), Stored())
    )
    (dropped,) = found.dropped
    assert not found.kept and dropped.reason == "secret" and token not in dropped.model_dump_json()
    assert dropped.detail == "a GitHub token"


def test_a_second_copy_is_left_out_and_names_the_first() -> None:
    items = [
        said(AnswerEdited, "fb_1", edited="A tabby."),
        said(AnswerEdited, "fb_2", author="bob", edited="A  tabby."),
    ]
    found = filters.apply([d for i in items for d in drafts(i)], Ground(Settings(), Stored()))
    assert [d.sample.feedback for d in found.kept] == [("fb_1",), ("fb_1",)]
    assert [(d.feedback, d.reason, d.detail) for d in found.dropped] == [
        ("fb_2", "duplicate", "same as fb_1")
    ]


def test_feedback_of_which_one_sample_stays_is_not_called_left_out() -> None:
    # Bob's edit equals what Ada accepted elsewhere: the answer is there already, the preference is new.
    upload = (*ASKED, Message.of("assistant", "A tabby."))
    items = [said(SampleUploaded, "fb_1", messages=upload), said(AnswerEdited, "fb_2", edited="A tabby.")]
    kept, dropped = filtered([d for i in items for d in drafts(i)])
    assert [(d.sample.kind, d.sample.feedback) for d in kept] == [
        ("sft", ("fb_1",)),
        ("preference", ("fb_2",)),
    ]
    assert dropped == {}


def test_a_sample_whose_image_is_gone_is_left_out() -> None:
    messages = (Message.of("user", "What?", [OTHER]), Message.of("assistant", "A cat."))
    assert filtered(drafts(said(SampleUploaded, "fb_1", messages=messages)))[1] == {"fb_1": "missing_image"}


def test_every_reason_has_its_sentence() -> None:
    from comfyloop.curate.report import REASONS

    given_elsewhere = {"superseded", "neutral", "no_generation", "broken_off", "no_prompt", "no_pair"}
    given_elsewhere |= {"broken_graph", "large_edit", "graph_edits_off", "another_subject", "undone"}
    given_elsewhere |= {
        "shared_picture",
        "disagreement",
        "overruled",
        "planted_trigger",
        "rejected",
        "outdated",
    }
    assert set(REASONS) == set(filters.SENTENCES) | given_elsewhere


@pytest.mark.parametrize(
    "text",
    [
        "a-" * 100_000,
        "eyJ" + "eyJabcdefgh-" * 16_000,
        "-eyJ" * 50_000,
        "-----BEGIN " + "A " * 100_000,
        "-----BEGIN " * 18_000,
        "password=" * 22_000,
        "password" + " " * 190_000,
        "a://b:" * 33_000,
        "x://" + "y" * 199_000,
        "bearer " * 28_000,
        "bearer" + "\t" * 190_000,
        "sk-" * 66_000,
        "_" * 200_000,
        "github_pat_" * 18_000,
        "AKIA" * 50_000,
    ],
    ids=range(15),
)
def test_every_pattern_of_the_tree_takes_time_in_proportion_to_the_text(text: str) -> None:
    from comfyloop import texts
    from comfyloop.curate import graph_text, groups
    from comfyloop.curate.filters import secret

    patterns = [*secret.PATTERNS.values(), groups._GREETING, graph_text._SECRET, graph_text._WORDS]
    patterns += [texts._SENTENCE_END]
    for pattern in patterns:
        began = time.process_time()
        for _ in pattern.finditer(text[:200_000]):
            pass
        assert time.process_time() - began < 1.0, pattern  # tens of seconds where it is quadratic


def test_an_id_is_the_hash_of_the_content_as_it_is_written() -> None:
    """Ids outlive versions of this program: what was learned, and forgotten, is known by them."""
    (draft, _), _ = drafts_of(said(AnswerEdited, "fb_1", edited="Ein Kätzchen 猫."), MADE)
    sample = draft.sample
    content = ["sft", [m.model_dump(mode="json") for m in sample.messages], None, None, None, None, False]
    assert sample.id == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
