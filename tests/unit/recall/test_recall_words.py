"""Preferences in words, read from edits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from comfyloop.recall.preferences import merged, sentence
from comfyloop.recall.words import LEAST, EditPair, written

THINGS = ("mug", "shirt", "lamp", "wallet", "bottle", "blanket", "chair", "candle")
DULL = (
    "**Great news!** Here is a *wonderful* {} for you!\n- It is really good!\n- You will love it so much! 🎉"
)


def pairs(wanted: str, seen: str = DULL) -> list[EditPair]:
    return [EditPair(seen.format(thing), wanted.format(thing), f"fb_{thing}") for thing in THINGS]


def texts(found: list[EditPair]) -> dict[str, str]:
    return {each.id: each.text for each in written(found)}


def test_what_all_edits_share_is_said() -> None:
    found = texts(pairs("Meet the {}: made slowly, sold honestly. #slowgoods"))
    assert found["begins"] == 'Begins with "Meet the".'
    assert found["ends"] == 'Ends with ": made slowly, sold honestly. #slowgoods".'
    assert found["length"] == "About 8 words."
    assert found["no_exclamation"] == "No exclamation marks."
    assert found["no_lists"] == "No lists and headings."
    assert found["no_emoji"] == "No emoji."
    assert "english" not in found  # they were English before


def test_chinese_is_said_in_chinese() -> None:
    found = texts(pairs("认识一下{}，慢慢做。"))
    assert found["chinese"] == "用中文。"
    assert found["begins"] == "以“认识一下”开头。"
    assert found["length"].startswith("大约")


def test_words_are_not_cut() -> None:
    found = texts(
        [EditPair(DULL, f"Meet the th{end} now", f"fb_{end}") for end in ("ing", "ought", "em", "umb", "ree")]
    )
    assert found["begins"] == 'Begins with "Meet the".'


def test_one_edit_in_five_may_differ_but_not_more() -> None:
    same = pairs("Meet the {}.")
    found = next(
        each for each in written([*same, EditPair(DULL, "Something else.", "fb_x")]) if each.id == "begins"
    )
    assert (found.of, len(found.feedback)) == (9, 8) and "fb_x" not in found.feedback
    assert "begins" not in texts([*same, *(EditPair(DULL, f"{n} is else.", f"fb_{n}") for n in range(3))])


def test_few_edits_and_what_was_so_before_say_nothing() -> None:
    assert written(pairs("Meet the {}.")[: LEAST - 1]) == []
    assert texts(pairs("Meet the {}.", "Meet the {}.")) == {}


@given(st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60)), max_size=12))
def test_every_preference_is_shown_by_nearly_all_edits(texts: list[tuple[str, str]]) -> None:
    found = written([EditPair(seen, wanted, f"fb_{n}") for n, (seen, wanted) in enumerate(texts)])
    assert len({each.id for each in found}) == len(found)
    for each in found:
        assert len(each.feedback) >= 0.8 * each.of and each.of == len(texts)


def test_a_persons_text_stands_in_place_of_the_rules() -> None:
    found = written(pairs("Meet the {}."))
    listed = merged(found, {"begins": "Say hello first.", "length": None, "mine": "Be kind."})
    by_id = {each.id: each for each in listed}
    assert by_id["begins"].text == "Say hello first." and by_id["begins"].written == 'Begins with "Meet the".'
    assert "length" not in by_id
    assert by_id["mine"].text == "Be kind." and by_id["mine"].feedback == ()
    assert sentence(listed).endswith("Be kind.") and "Say hello first." in sentence(listed)
    assert sentence([]) == ""
