"""An answer that goes round in a circle ends; one that is only long, or alike from line to line, does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from comfyloop.client.calls import CIRCLE
from comfyloop.serve.embedded.repetition import Circle, Repetition
from tests.unit.serve.embedded.test_embedded_answers import chat, post

RULE = Repetition(**CIRCLE)
PICTURE = "There is a cat on the table, and a second one that looks at the first. "
HONEST = {
    "a list": "".join(f"{n}. A red fox in the snow, number {n}\n" for n in range(1, 40)),
    "like lines": "".join(f"- a cat\n- a dog\n- item {n}\n" for n in range(20)),
    "a table": "| name | price | size |\n| --- | --- | --- |\n" + "| mug | 4 | |\n| cup | 4 | |\n" * 5,
    "code": "grid = [\n" + "    [0, 0, 0, 0, 0, 0, 0, 0],\n" * 8 + "]\n" + "    pass\n" * 4,
    "HTML": "<tr>" + "<td></td>\n" * 8 + "</tr>\n",
    "a line": "-" * 20 + "\n",
    "a chorus": ("Row, row, row your boat\nGently down the stream\nMerrily, merrily, merrily, merrily\n") * 3,
    "laughter": "Ha ha ha ha ha ha ha ha!",
}


def pieces(text: str) -> list[str]:
    """About what a tokenizer makes of it: words with their space, and signs."""
    return re.findall(r" ?\w+|\s+|[^\w\s]", text)


def read_until_closed(rule: Repetition, text: str) -> int | None:
    """After how many tokens it is found to go round; None: it does not."""
    circle, said = Circle(rule), list[Any]()
    for piece in pieces(text):
        said.append(piece)
        if circle.closed(said):
            return len(said)
    return None


@pytest.mark.parametrize("loop", ["a cat, ", "cat ", "the same sentence once more. ", "a\n", "是一只猫，"])
def test_a_loop_ends_soon_after_it_began(loop: str) -> None:
    before = len(pieces(PICTURE))
    found = read_until_closed(RULE, PICTURE + loop * 400)
    assert found is not None and found - before <= 13 * max(2, len(pieces(loop)) + 1)


@pytest.mark.parametrize("kind", HONEST)
def test_what_people_want_to_read_is_no_loop(kind: str) -> None:
    assert read_until_closed(RULE, PICTURE + HONEST[kind] + PICTURE) is None


def test_a_pattern_counts_from_its_smallest_to_its_largest_size() -> None:
    assert read_until_closed(Repetition(2, 1, 3), "b a a a a") == 4
    assert read_until_closed(Repetition(2, 2, 3), "b a a a a a a a") == 7
    assert read_until_closed(Repetition(2, 2, 3), "x y z x y z x y z x y z") is None
    assert read_until_closed(Repetition(3, 2, 3), "q x y z x y z x y z") == 10


@pytest.fixture(scope="module")
def round_and_round(start_engine: Any, tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An engine whose model knows the last token alone, so that it comes back to where it was; it never stops."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path_factory.mktemp("round")
    model = AutoModelForCausalLM.from_pretrained(tiny_llm)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    after = torch.zeros_like(model.lm_head.weight)
    after[[41, 42, 40]] = model.model.embed_tokens.weight.data[[40, 41, 42]]  # 40 -> 41 -> 42 -> 40 -> ...
    model.lm_head.weight = torch.nn.Parameter(after)
    model.config.tie_word_embeddings = False
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_llm).save_pretrained(path)
    return start_engine(path)


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_says_that_it_ended_for_that(round_and_round: Any, stream: bool) -> None:
    asked = {"type": "text", "text": "Once upon a time"}
    plain = post(round_and_round, chat(asked, max_tokens=200)).json()["choices"][0]
    assert plain["finish_reason"] == "length"
    more = {"max_tokens": 200, "stream": stream, "repetition_detection": CIRCLE}
    answer = post(round_and_round, chat(asked, **more))
    if stream:
        assert '"finish_reason":"repetition"' in answer.text
        return
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "repetition"
    assert plain["message"]["content"].startswith(choice["message"]["content"])
    assert len(choice["message"]["content"]) < len(plain["message"]["content"])


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ({"max_pattern_size": 4, "min_count": 1}, "repetition_detection.min_count"),
        ({"max_pattern_size": 2, "min_pattern_size": 3, "min_count": 4}, "min_pattern_size"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(text_engine: Any, rule: dict[str, int], named: str) -> None:
    answer = post(text_engine, chat({"type": "text", "text": "Hi"}, repetition_detection=rule))
    assert answer.status_code == 400 and named in answer.json()["error"]["message"]
