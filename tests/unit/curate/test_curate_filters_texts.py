"""What the filters of texts say: what was uploaded may be left out, of what a person did a person is asked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from comfyloop.curate.filters import FILTERS, language_id_score
from comfyloop.curate.measurements import Measurements
from comfyloop.curate.rulings import Ground, Ruling
from comfyloop.curate.samples import Draft, Source, make
from comfyloop.records import Message
from comfyloop.settings import Settings


def draft(answer: str, origin: str = "sample_uploaded", question: str = "What is it?", **more: Any) -> Draft:
    messages = (Message.of("user", question), Message.of("assistant", answer))
    return Draft(make("sft", messages, Source("acme", ("fb_1",), origin, "ada"), **more))


def judge(name: str, drafts: Sequence[Draft], folder: Path | None = None, **options: Any) -> list[Ruling]:
    filter = FILTERS[name]
    nothing: Any = None
    ground = Ground(Settings(), nothing, Measurements(folder))
    return list(filter.judge(drafts, ground, filter.options(**options)))


def says(name: str, drafts: Sequence[Draft], **options: Any) -> list[str]:
    return [ruling.says for ruling in judge(name, drafts, **options)]


NOUNS = ("cat", "dog", "cow", "hen", "fox", "owl", "bee", "ant", "elk", "emu")
SENTENCES = [f"This is a drawing of a {noun}, on paper." for noun in NOUNS]
SPAM = "sunset, beach, best, hd, 4k, summer, sale, travel, wow, trending"

FAULTS = {
    "placeholder": [
        "TODO",
        "lorem ipsum dolor sit amet",
        "[insert caption here]",
        "{{ caption }}",
        "待补充",
        "???",
    ],
    "refusal": [
        "I'm sorry, but I can't help with that.",
        "As an AI language model, I have no eyes.",
        "I cannot identify people in pictures.",
        "I’m unable to view the image.",
        "抱歉，我无法识别图片中的人物。",
        "作为一个人工智能语言模型，我没有眼睛。",
    ],
    "keyword_spam": [SPAM, "日落，海滩，最好，高清，夏天，促销，旅行，热门，大海"],
    "word_repetition": ["the red cat sat on a mat and " * 5],
    "character_repetition": ["hahahahahahahahahahahahahahahahahahahahahahaha", "哈" * 40],
    "text_length": ["word " * 1500],
}
SOUND = [
    "A cat.",
    "红色的苹果。",
    "Meet the cotton pillow: soft cotton that never goes out. Made slowly, sold honestly. #slowgoods",
    "Sorry, we are closed on Sundays. Come in on Monday, and I will show you the new lamps.",
    "I can't help smiling at this cat: it helps itself to the fish, the milk, and the cake on the table.",
    "1. Preheat the oven.\n2. Beat the eggs.\n3. Fold in the flour.\n4. Bake it.\n5. Let it cool.",
    "It is a test of the new paint: description and colour are on the back.",
    "一只橙色的猫坐在窗边，看着外面的雨。",
]


@pytest.mark.parametrize("name", FAULTS)
def test_of_faulty_texts_uploads_are_left_out_and_a_person_is_asked_of_their_own(name: str) -> None:
    faulty = FAULTS[name]
    assert says(name, [draft(text) for text in faulty]) == ["drop"] * len(faulty)
    assert says(name, [draft(text, "answer_edited") for text in faulty]) == ["unsure"] * len(faulty)
    assert says(name, [draft(text) for text in SOUND]) == ["keep"] * len(SOUND)


def test_prompts_for_image_models_may_be_heaps_of_keywords() -> None:
    assert says("keyword_spam", [draft(SPAM, "prompt_edited", slice="prompt")]) == ["keep"]


def test_without_a_mark_only_where_the_others_have_one() -> None:
    cut = draft("This is a drawing of a gre")
    whole = [draft(text) for text in SENTENCES * 3]
    assert says("truncated", [*whole, cut])[-1] == "drop"
    assert says("truncated", [*(draft(text.rstrip(".")) for text in SENTENCES * 3), cut])[-1] == "keep"
    assert says("truncated", [*whole[:5], cut])[-1] == "keep"


@pytest.mark.parametrize(
    "text", ["This is a drawing of a", "It shows a house with", "一只猫坐在垫子上，旁边的"]
)
def test_what_ends_in_a_small_word_is_asked_about(text: str) -> None:
    """ "Turn it on" is whole: alone it says little, whoever sent it."""
    whole = [draft(text) for text in SENTENCES * 3]
    assert says("truncated", [draft(text), draft(text, "answer_edited")]) == ["unsure", "unsure"]
    assert says("truncated", [*whole, draft(text)])[-1] == "drop"
    assert says("truncated", [draft(text) for text in SOUND]) == ["keep"] * len(SOUND)


def test_wordiness_is_by_what_is_usual() -> None:
    page = "It goes on about the light and the paper and who has made it, and when, and why so. " * 4
    assert says("wordiness", [*(draft(text) for text in SENTENCES * 3), draft(page)])[-1] == "drop"
    assert says("wordiness", [draft(page) for _ in range(30)]) == ["keep"] * 30


def test_near_copies_of_uploaded_texts_are_left_out_and_a_house_style_is_not() -> None:
    text = "A small red lamp stands on the left of a wooden desk, and a brown cat sleeps below it in the sun today."
    near = text.replace("today", "now")
    other = (
        "A tall blue vase stands on the right of a stone floor, and two white birds drink from it at noon."
    )
    name = "document_minhash_deduplicator"
    rulings = judge(name, [draft(text), draft(other), draft(near)])
    assert [ruling.says for ruling in rulings] == ["keep", "keep", "drop"]
    assert "the same as fb_1" in rulings[2].reason
    assert says(name, [draft(text, "answer_edited"), draft(near, "answer_edited")]) == ["keep", "keep"]
    assert says(name, [draft(f"This is a {noun}.") for noun in ("cat", "dog")]) == ["keep", "keep"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("一只猫 (Felis catus) 坐在 iPhone 旁边", "zh"),
        ("猫が窓のそばに座っています", "ja"),
        ("고양이가 창가에 앉아 있다", "ko"),
        ("12 + 30", ""),
    ],
)
def test_the_script_tells_a_language(text: str, code: str) -> None:
    assert language_id_score.language_of(text) == code


def test_a_language_that_is_not_wanted_and_one_that_cannot_be_told() -> None:
    texts = [draft("一只猫坐在窗边"), draft("ok")]
    assert says("language_id_score", texts) == ["keep", "keep"]
    assert says("language_id_score", texts, languages=("en",)) == ["drop", "unmeasured"]
    assert says("language_id_score", texts, languages=("zh",)) == ["keep", "unmeasured"]


@pytest.mark.skipif(find_spec("lingua") is None, reason="lingua is not installed (comfyloop[languages])")
def test_lingua_tells_languages_of_one_script() -> None:
    texts = [draft("Die Katze schläft heute auf dem Fenster."), draft("The cat sleeps on the window today.")]
    assert says("language_id_score", texts, languages=("en",)) == ["drop", "keep"]


def test_without_lingua_a_latin_text_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_id_score, "_detector", lambda: None)
    texts = [draft("Die Katze schläft heute auf dem Fenster.")]
    assert says("language_id_score", texts, languages=("en",)) == ["unmeasured"]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Pay with 4111 1111 1111 1111 today.", "drop"),
        ("Pay with 4111 1111 1111 1112 today.", "keep"),
        ("To DE89 3704 0044 0532 0130 00, please.", "drop"),
        ("身份证 11010519491231002X", "drop"),
        ("Write to ada.lovelace@analytical.engine.org", "unsure"),
        ("Write to someone@example.com", "keep"),
        ("Call +49 30 901820 or come", "unsure"),
        ("电话 13800138000", "unsure"),
        ("In 1949 there were 1,234,567,890,123 of them, 3.14159265358979 each.", "keep"),
        ("seed 123456789012345, steps 20", "keep"),
    ],
)
def test_personal_data(text: str, verdict: str) -> None:
    (ruling,) = judge("personal_data", [draft(text, "answer_edited")])
    assert ruling.says == verdict
    assert not any(char.isdigit() for char in ruling.reason) and "@" not in ruling.reason


@pytest.mark.parametrize("name", ["personal_data", "placeholder", "refusal", "keyword_spam", "truncated"])
@pytest.mark.parametrize(
    "piece", ["1 ", "a@", "+1 (1", "A1", "i'm ", "[insert ", "{{ a", "lorem ", "抱歉，", ",-"]
)
def test_hostile_texts_take_time_in_proportion(name: str, piece: str) -> None:
    def seconds(length: int) -> float:
        text = draft((piece * length)[:length])
        began = time.process_time()
        judge(name, [text])
        return time.process_time() - began

    assert seconds(200_000) < 1.0 + 40 * seconds(10_000)


@pytest.mark.skipif(find_spec("detect_secrets") is None, reason="detect-secrets is not installed")
def test_detect_secrets_knows_keys_that_we_do_not() -> None:
    npm = "//registry.npmjs.org/:_authToken=743b294a-cd03-11ec-9d64-0242ac120002"
    found = judge("detect_secrets", [draft(f"It says {npm}"), draft("It is a small red lamp.")])
    assert [ruling.says for ruling in found] == ["drop", "keep"] and "743b" not in found[0].reason


@pytest.mark.skipif(find_spec("detect_secrets") is not None, reason="detect-secrets is installed")
def test_without_detect_secrets_nothing_is_measured() -> None:
    assert says("detect_secrets", [draft("It is a lamp.")]) == ["unmeasured"]


def test_answers_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyloop.curate.filters import _texts

    judge("word_repetition", [draft("A cat sat.")], tmp_path)
    monkeypatch.setattr(_texts, "counts", lambda text: pytest.fail("counted again"))
    assert judge("character_repetition", [draft("A cat sat.")], tmp_path)[0].says == "keep"
