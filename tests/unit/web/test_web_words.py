"""Both languages say everything, and sentences of the stages are found again by their form."""

from __future__ import annotations

import json
import re
import string

import pytest

from comfyloop.web import sentences
from comfyloop.web.language import FOLDER, LANGUAGES, Words, catalogue, preferred
from tests.conftest import REPOSITORY

WEB = REPOSITORY / "src" / "comfyloop" / "web"


def fields(said: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(said) if name}


def test_the_catalogues_have_the_same_keys_and_places() -> None:
    english, chinese = catalogue("en"), catalogue("zh")
    assert set(english) == set(chinese)
    for key, said in english.items():
        # of one thing a language need not say the number
        spared = {"n"} if key.endswith(".one") else set()
        assert fields(said) - spared == fields(chinese[key]) - spared, key
        assert chinese[key] == said == "" or chinese[key].strip(), key
    for path in FOLDER.glob("*.json"):
        pairs = json.loads(path.read_text("utf-8"), object_pairs_hook=list)
        assert len(pairs) == len(dict(pairs)), f"{path.name} says a key twice"


def test_no_page_says_what_no_catalogue_has() -> None:
    """Keys that are put together from parts are known by their beginning."""
    known = catalogue("en")
    for path in [*WEB.rglob("*.html"), *WEB.glob("*.py")]:
        source = path.read_text("utf-8")
        for begin, rest in re.findall(r"""\bt(?:\.known)?\(f?["']([a-z_.]+)(["'{])""", source):
            assert begin in known or any(key.startswith(begin) for key in known), (
                f"{path.name}: {begin}{rest}"
            )
        if path.suffix == ".html":
            shown = re.sub(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}", " ", source, flags=re.DOTALL)
            shown = re.sub(r"<[^>]*>", " ", shown)
            plain = re.sub(r"ComfyLoop|comfyloop[^\n]*", "", shown)
            assert not re.search(r"[A-Za-z]{3,}", plain), (
                f"{path.name} has words of its own: {plain.split()[:9]}"
            )


@pytest.mark.parametrize(
    ("chosen", "accepted", "language"),
    [
        ("zh", "en", "zh"),
        ("xx", "en-GB,en;q=0.9,zh-CN;q=0.8", "en"),
        ("", "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("", "fr,zh-TW;q=0.4,en;q=0.5", "en"),
        ("", "en;q=high,zh;q=0.1", "zh"),
        ("", "", "en"),
    ],
)
def test_the_language_is_the_chosen_one_or_the_browsers(chosen: str, accepted: str, language: str) -> None:
    assert preferred(chosen, accepted) == language and language in LANGUAGES


def test_one_thing_and_several_are_said_differently() -> None:
    words = Words("en")
    assert words("home.next.missing", n=1) == "One more correction starts the next run."
    assert words("home.next.missing", n=5).startswith("5 more")


def test_known_forms_of_sentences_are_said_in_chinese_with_their_values() -> None:
    forms: dict[str, str] = json.loads((FOLDER / "sentences.zh.json").read_text("utf-8"))
    for form, other in forms.items():
        assert fields(form) >= fields(other), form
        for plural in ("", "s"):
            values = {name: f"<{place}>" for place, name in enumerate(sorted(fields(form)), 1)} | {
                "s": plural
            }
            said = sentences.say(form.format(**values), "zh")
            assert said == other.format(**values), form
    assert sentences.say("Nobody ever said this.", "zh") == "Nobody ever said this."
    known = "The candidate does exactly what the live version does: nothing was learnt."
    assert sentences.say(known, "en") == known


def test_a_text_of_several_sentences_is_said_sentence_by_sentence() -> None:
    known = "The candidate does exactly what the live version does: nothing was learnt."
    said = sentences.say(f"{known} Nobody ever said this. {known}", "zh")
    assert said.count("什么都没学到") == 2 and "Nobody ever said this." in said


def test_what_the_gate_says_is_said_in_chinese() -> None:
    """Sentences as the stages make them, not as the catalogue has them."""
    from comfyloop.gate import findings
    from comfyloop.gate.pairs import Pairs

    part = Pairs("edit_distance", "all", (0.8, 0.7, 0.9, 0.8, 0.6, 0.7), (0.5, 0.6, 0.4, 0.6, 0.5, 0.2))
    found = [
        findings.too_few(0, 6), findings.too_few(1, 6), findings.too_few(5, 6),
        findings.nothing_learnt(), findings.worse(part),
        findings.worse_part(Pairs("log_likelihood", "about mug, cup", part.live, part.candidate)),
        findings.too_small(0.001), findings.farther(), findings.loses_accepted(),
        findings.unclear(part, 0.02, 1.0, "the two versions cannot be told apart"),
        findings.unclear(part, 0.02, 2.0, "it is not yet clear that its answers come closer to yours"),
    ]  # fmt: skip
    told = [text for one in found for text in (one.reason, one.next_step)]
    told += [findings._distance_sentence(part, 0.95), findings._likelihood_sentence(part)]
    for text in told:
        said = sentences.say(text, "zh")
        assert not re.search(r"[a-z]{4,} [a-z]{2,} [a-z]{2,}", said), (text, said)
