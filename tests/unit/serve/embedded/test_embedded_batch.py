"""An answer is the same in a batch, alone, and from transformers' own `generate`."""

from __future__ import annotations

import base64
import io
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from comfyloop.errors import Conflict, InvalidInput, NotFound
from comfyloop.serve.embedded.decoders import make_decoder
from comfyloop.serve.embedded.loading import LoadedModel
from comfyloop.serve.embedded.lora import LoraRows
from comfyloop.serve.embedded.prompts import Prompt
from comfyloop.serve.embedded.protocol import EngineMessage
from comfyloop.serve.embedded.sequence import DecodeSequence
from comfyloop.serve.embedded.solo import SoloDecoder
from tests.unit.serve.embedded.families import with_a_sliding_window, with_positions_in_two_dimensions

pytestmark = pytest.mark.slow

QUESTIONS = [
    "What is the capital of France?",
    "Write a caption for a mug.",
    "hi",
    "the quick brown fox " * 12,
    "What would the cat do on holiday in Hawaii? " * 4,
    "0 1 2 3",
    "brown dog " * 31,
    "é漢😀",
    "user user user",
    "The capital of France is Paris. " * 9,
]


def picture(colour: str, size: tuple[int, int] = (40, 30)) -> str:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def about(text: str, *colours: str) -> list[EngineMessage]:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": picture(c)}} for c in colours]
    return [
        EngineMessage.model_validate({"role": "user", "content": [*parts, {"type": "text", "text": text}]})
    ]


def greedy(client: Any, messages: Any, tokens: int = 24) -> list[int]:
    """What transformers' own generate answers."""
    loaded = client.engine.loaded
    if isinstance(messages, str):
        messages = [EngineMessage(role="user", content=messages)]
    prompt = client.engine.prompts.make(messages, add_generation_prompt=True, continue_final_message=False)
    ids = torch.tensor([prompt.ids])
    with torch.inference_mode():
        out = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            **prompt.inputs,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=list(loaded.eos),
        )
    return out[0, len(prompt.ids) :].tolist()


def test_alone_it_answers_as_generate_does(text_engine: Any) -> None:
    for question in QUESTIONS:
        assert text_engine.tokens(question) == greedy(text_engine, question)


def test_together_as_alone(start_engine: Callable[..., Any], tiny_llm: Path) -> None:
    alone = start_engine(tiny_llm, max_batch=1, prefix_mb=0)
    together = start_engine(tiny_llm, max_batch=6, prefix_mb=0)
    expected = [alone.tokens(q, max_tokens=10 + 7 * i) for i, q in enumerate(QUESTIONS)]
    asked = [together.send(q, max_tokens=10 + 7 * i) for i, q in enumerate(QUESTIONS)]
    assert [a.result()[0] for a in asked] == expected
    assert together.engine.load == {"running": 0, "waiting": 0}


def test_versions_in_one_batch_as_alone(
    start_engine: Callable[..., Any], tiny_llm: Path, adapters: list[Path]
) -> None:
    client = start_engine(tiny_llm, max_batch=8)
    names = ["base", "a-v1", "a-v2", "a-v3"]
    for name, path in zip(names[1:], adapters, strict=True):
        client.load(name, path)
    expected = {(n, q): client.tokens(q, n) for n in names for q in QUESTIONS}
    assert len({tuple(expected[n, QUESTIONS[0]]) for n in names}) == 4
    cases = [(n, q) for n in names for q in QUESTIONS]
    random.Random(5).shuffle(cases)
    asked = [(n, q, client.send(q, n)) for n, q in cases]
    for n, q, a in asked:
        assert a.result()[0] == expected[n, q], (n, q)


def test_the_same_bits_after_another_version_came_and_went(
    start_engine: Callable[..., Any], tiny_llm: Path, adapters: list[Path]
) -> None:
    client = start_engine(tiny_llm, dtype="bfloat16")
    client.load("a-v1", adapters[0])

    def said(model: str) -> list[Any]:
        asked = client.send("the quick brown fox " * 30, model, logprobs=3, max_tokens=40)
        asked.result()
        return [p for piece in asked.pieces for p in piece.logprobs]

    before = {model: said(model) for model in ("base", "a-v1")}
    client.load("a-v2", adapters[1])
    others = [client.send(q, m) for q in QUESTIONS for m in ("a-v2", "a-v1", "base")]
    for other in others:
        other.result()
    client.engine.remove_adapter("a-v2")
    assert {model: said(model) for model in ("base", "a-v1")} == before  # floats and all
    client.engine.remove_adapter("a-v1")
    assert said("base") == before["base"]
    client.load("a-v1", adapters[0])
    assert said("a-v1") == before["a-v1"]


def test_a_prompt_seen_before_is_not_computed_again_and_changes_no_bit(
    start_engine: Callable[..., Any], tiny_llm: Path
) -> None:
    client, fresh = (start_engine(tiny_llm, dtype="bfloat16", prefix_mb=mb) for mb in (64, 0))
    opening = [EngineMessage(role="user", content="the quick brown fox " * 25)]
    answer = client.ask(opening)
    longer = [
        *opening,
        EngineMessage(role="assistant", content=answer),
        EngineMessage(role="user", content="and then?"),
    ]
    for messages in (opening, longer):
        one, other = client.send(messages, logprobs=2), fresh.send(messages, logprobs=2)
        tokens, _, end = one.result()
        assert end.cached_tokens >= 64
        assert end.cached_tokens % 64 == 0
        expected, _, computed = other.result()
        assert computed.cached_tokens == 0
        assert tokens == expected
        assert [p.logprobs for p in one.pieces] == [p.logprobs for p in other.pieces]


def test_prefixes_are_kept_by_version(text_engine: Any, adapters: list[Path]) -> None:
    text_engine.load("p-v1", adapters[0])
    question = "brown fox jumps " * 30
    text_engine.ask(question)
    assert text_engine.send(question).result()[2].cached_tokens > 0
    assert text_engine.send(question, "p-v1").result()[2].cached_tokens == 0
    assert text_engine.send(question, "p-v1").result()[2].cached_tokens > 0
    text_engine.engine.remove_adapter("p-v1")
    assert not any(key[0] == "p-v1" for key in text_engine.engine._decoder.prefixes._chunks)


def test_images_as_generate_sees_them(vision_engine: Any) -> None:
    for messages in (
        about("what is it?", "red"),
        about("brown dog " * 40, "blue"),
        about("compare", "red", "blue"),
        about("no picture"),
    ):
        assert vision_engine.tokens(messages) == greedy(vision_engine, messages)


def test_images_together_as_alone_and_each_computed_once(
    start_engine: Callable[..., Any], tiny_vlm: Path
) -> None:
    alone, together = start_engine(tiny_vlm, max_batch=1), start_engine(tiny_vlm, max_batch=8)
    cases = [
        about(f"{word} " * n, c) for n, word in ((1, "a"), (40, "cat")) for c in ("red", "blue", "green")
    ]
    cases += [about("no picture"), about("brown " * 90)]
    expected = [alone.tokens(messages) for messages in cases]
    assert len({tuple(e) for e in expected}) > 4
    asked = [together.send(messages) for messages in cases]
    assert [a.result()[0] for a in asked] == expected
    assert together.engine._decoder.vision.computed == 3


def decoder_of(loaded: LoadedModel, prefix_bytes: int = 1 << 20) -> Any:
    return make_decoder(loaded, LoraRows(loaded.model), prefix_bytes, 1 << 20)


def run(decoder: Any, prompt: Prompt, tokens: int) -> list[int]:
    sequence = DecodeSequence(prompt, None, 10_000)
    decoder.admit(sequence)
    while not sequence.ready:
        logits = decoder.prefill(sequence)[-1]
    sequence.answer.append(int(logits.argmax()))
    while len(sequence.answer) < tokens:
        sequence.answer.append(int(decoder.step([sequence])[0].argmax()))
    decoder.release(sequence)
    return sequence.answer


@given(st.lists(st.tuples(st.sampled_from("aafsr"), st.integers(0, 99)), max_size=60))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_and_go_in_any_order(text_engine: Any, moves: list[tuple[str, int]]) -> None:
    """a: admit, f: fill a chunk, s: step, r: release; in any order each row says what it says alone."""
    loaded = text_engine.engine.loaded
    prompts = [Prompt([5 + (i * 7 + j) % 500 for j in range(n)]) for i, n in enumerate((3, 64, 70, 130, 200))]
    with torch.inference_mode():
        alone = decoder_of(loaded)
        expected = {id(p): run(alone, p, 80) for p in prompts}
        decoder, live = decoder_of(loaded), []
        for move, number in moves:
            filling = [s for s in live if not s.ready]
            filled = [s for s in live if s.ready]
            if move == "a" and len(live) < 5:
                sequence = DecodeSequence(prompts[number % len(prompts)], None, 10_000)
                decoder.admit(sequence)
                live.append(sequence)
            elif move == "f" and filling:
                sequence = filling[number % len(filling)]
                logits = decoder.prefill(sequence)
                if sequence.ready:
                    sequence.answer.append(int(logits[-1].argmax()))
            elif move == "s" and filled:
                for sequence, logits in zip(filled, decoder.step(filled), strict=True):
                    sequence.answer.append(int(logits.argmax()))
            elif move == "r" and live:
                decoder.release(live.pop(number % len(live)))
            for sequence in live:
                assert sequence.answer == expected[id(sequence.prompt)][: len(sequence.answer)]


def loaded_of(model: Any) -> LoadedModel:
    return LoadedModel(model.eval(), None, object(), 512, frozenset())


def test_a_model_with_a_sliding_window_decodes_by_itself() -> None:
    model = with_a_sliding_window()
    decoder = decoder_of(loaded_of(model))
    assert isinstance(decoder, SoloDecoder)
    for length in (5, 90, 150):
        ids = torch.randint(3, 99, (1, length))
        expected = model.generate(ids, max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)
        with torch.inference_mode():
            assert run(decoder, Prompt(ids[0].tolist()), 30) == expected[0, length:].tolist()


def test_a_model_with_positions_in_two_dimensions() -> None:
    """Qwen2-VL: an image takes fewer positions than places."""
    model, ids, inputs = with_positions_in_two_dimensions()
    expected = model.generate(
        torch.tensor([ids]), **inputs, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, len(ids) :].tolist()
    decoder = decoder_of(loaded_of(model))
    text = Prompt(list(range(3, 90)))
    with torch.inference_mode():
        assert run(decoder, Prompt(ids, ("hash",), inputs), 20) == expected
        picture_row, text_row = (
            DecodeSequence(Prompt(ids, ("hash",), inputs), None, 999),
            DecodeSequence(text, None, 999),
        )
        for sequence in (text_row, picture_row):
            decoder.admit(sequence)
            while not sequence.ready:
                logits = decoder.prefill(sequence)
            sequence.answer.append(int(logits[-1].argmax()))
        for _ in range(15):
            for sequence, row in zip(
                (picture_row, text_row), decoder.step([picture_row, text_row]), strict=True
            ):
                sequence.answer.append(int(row.argmax()))
        assert picture_row.answer == expected[:16]
        assert text_row.answer == run(decoder_of(loaded_of(model)), text, 16)


def test_scores_are_those_of_one_plain_forward(text_engine: Any) -> None:
    messages = [
        EngineMessage(role="user", content="brown fox " * 60),
        EngineMessage(role="assistant", content="A dog."),
    ]
    engine = text_engine.engine
    prompt = engine.prompts.make(messages, add_generation_prompt=False, continue_final_message=False)
    for _ in range(2):
        asked = text_engine.send(messages, prompt_logprobs=2, max_tokens=1)
        prompt = asked.job.prompt
        scored = asked.result()[2].prompt_logprobs
        with torch.inference_mode():
            expected = engine.loaded.model(torch.tensor([prompt.ids])).logits[0].log_softmax(-1)
        assert len(scored) == len(prompt.ids)
        assert scored[0] is None
        for place, told in enumerate(scored[1:], 1):
            assert told.token == prompt.ids[place]
            assert abs(told.logprob - float(expected[place - 1, told.token])) < 1e-4
            assert len(told.top) == 2


def test_what_does_not_fit_is_refused(text_engine: Any) -> None:
    with pytest.raises(InvalidInput, match="reads at most 512"):
        text_engine.send("brown fox " * 600)
    with pytest.raises(InvalidInput, match="together they may be at most 512"):
        text_engine.send("hi", max_tokens=512)
    with pytest.raises(InvalidInput, match="cannot see images"):
        text_engine.send(about("what?", "red"))
    with pytest.raises(NotFound, match="there are: base"):
        text_engine.send("hi", "nobody")
    size = text_engine.send("hi", max_tokens=None).result()[2]
    assert size.prompt_tokens + size.answer_tokens <= 512


def test_a_name_never_means_two_things(text_engine: Any, adapters: list[Path]) -> None:
    text_engine.load("n-v1", adapters[0])
    with pytest.raises(Conflict, match="loaded already"):
        text_engine.load("n-v1", adapters[0])
    running = text_engine.send("hi", "n-v1", max_tokens=400)
    with pytest.raises(Conflict, match="still being answered"):
        text_engine.engine.remove_adapter("n-v1")
    text_engine.engine.cancel(running.job)
    while any(text_engine.engine.load.values()):
        time.sleep(0.01)
    text_engine.engine.remove_adapter("n-v1")
    with pytest.raises(Conflict, match="other weights before"):
        text_engine.load("n-v1", adapters[1])
    with pytest.raises(NotFound):
        text_engine.send("hi", "n-v1")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_who_asks_for_it_gets_the_same_bits_alone_and_in_a_crowd(
    start_engine: Callable[..., Any], tiny_llm: Path, adapters: list[Path], dtype: str
) -> None:
    """In one pass rows are rounded by how many there are: at temperature 0, too, answers then differ now and again."""
    client = start_engine(tiny_llm, dtype=dtype, max_batch=8)
    client.load("a-v1", adapters[0])

    def send(question: str, model: str) -> Any:
        return client.send(question, model, logprobs=3, max_tokens=30, alone=True)

    def bits(asked: Any) -> list[Any]:
        asked.result()
        return [p for piece in asked.pieces for p in piece.logprobs]

    cases = [(q, m) for q in QUESTIONS for m in ("base", "a-v1")]
    quiet = [bits(send(*case)) for case in cases]
    crowd = []
    for place, case in enumerate(cases):
        if place % 2:
            client.send(f"Another asks {place}.", "base", max_tokens=20 + place)
        crowd.append(send(*case))
    assert [bits(asked) for asked in crowd] == quiet
