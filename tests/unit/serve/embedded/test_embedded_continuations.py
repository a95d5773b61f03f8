"""Several answers behind one prompt are scored as each would be by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.errors import InvalidInput
from comfyloop.serve.embedded.continuations import Scoring, passes_of
from comfyloop.serve.embedded.decoders import make_decoder
from comfyloop.serve.embedded.jobs import JobSampling
from comfyloop.serve.embedded.loading import LoadedModel
from comfyloop.serve.embedded.lora import LoraRows
from comfyloop.serve.embedded.prompts import Prompt
from comfyloop.serve.embedded.protocol import EngineMessage
from comfyloop.serve.embedded.sequence import DecodeSequence
from tests.unit.serve.embedded.conftest import Asked
from tests.unit.serve.embedded.families import with_a_sliding_window, with_positions_in_two_dimensions
from tests.unit.serve.embedded.test_embedded_batch import about

ANSWERS = ["A dog.", "A cat.", "no", "the quick brown fox " * 30, "the quick brown cat"]


def scores(client: Any, messages: list[EngineMessage], answers: list[str], model: str = "base") -> Any:
    import queue

    prompts = client.engine.prompts
    prompt = prompts.make(messages, add_generation_prompt=True, continue_final_message=False)
    continuations = prompts.continuations(messages, answers)
    events: Any = queue.SimpleQueue()
    job = client.engine.submit(model, prompt, JobSampling(), events.put, continuations=continuations)
    return Asked(job, events).result()[2].scores


def one_by_one(client: Any, messages: list[EngineMessage], answer: str, model: str = "base") -> list[float]:
    """The log-probabilities of an answer, of the whole conversation read as one prompt."""
    made = client.engine.prompts.make
    prompt = made(messages, add_generation_prompt=True, continue_final_message=False)
    whole = [*messages, EngineMessage(role="assistant", content=answer)]
    ids = made(whole, add_generation_prompt=False, continue_final_message=False).ids
    assert ids[: len(prompt.ids)] == prompt.ids
    asked = client.send(whole, model, prompt_logprobs=0, max_tokens=1)
    # sent with what begins an answer behind it
    return [told.logprob for told in asked.result()[2].prompt_logprobs[len(prompt.ids) : len(ids)]]


@pytest.mark.parametrize("question", ["What is it?", "What is it? " * 60])
@pytest.mark.parametrize("model", ["base", "s-v1"])
def test_as_each_by_itself(text_engine: Any, adapters: list[Path], question: str, model: str) -> None:
    if model != "base" and not any(a.name == model for a in text_engine.engine.adapters):
        text_engine.load(model, adapters[0])
    messages = [EngineMessage(role="user", content=question)]
    found = scores(text_engine, messages, ANSWERS, model)
    assert found == scores(text_engine, messages, ANSWERS, model)  # to the bit
    for answer, told in zip(ANSWERS, found, strict=True):
        assert told == pytest.approx(one_by_one(text_engine, messages, answer, model), abs=1e-4)
    assert text_engine.engine.load == {"running": 0, "waiting": 0}


def test_behind_pictures(vision_engine: Any) -> None:
    messages = about("What is it?", "red", "blue")
    for answer, told in zip(ANSWERS, scores(vision_engine, messages, ANSWERS), strict=True):
        assert told == pytest.approx(one_by_one(vision_engine, messages, answer), abs=1e-4)


def test_while_others_are_answered(text_engine: Any) -> None:
    expected = text_engine.tokens("What is the capital of France?", max_tokens=60)
    messages = [EngineMessage(role="user", content="What is it?")]
    alone = scores(text_engine, messages, ANSWERS)
    running = [text_engine.send("What is the capital of France?", max_tokens=60) for _ in range(3)]
    assert scores(text_engine, messages, ANSWERS) == alone
    assert [asked.result()[0] for asked in running] == [expected] * 3


def scored(model: Any, prompt: Prompt, continuations: list[list[int]], **inputs: Any) -> tuple[Any, Any]:
    """By the decoder, and by a plain forward pass of each."""
    loaded = LoadedModel(model.eval(), None, object(), 512, frozenset())
    decoder = make_decoder(loaded, LoraRows(model), 1 << 20, 1 << 20)
    with torch.inference_mode():
        sequence = DecodeSequence(prompt, None, 999, only_scored=True)
        decoder.admit(sequence)
        while not sequence.is_filled:
            logits = decoder.prefill(sequence)
        scoring = Scoring(continuations, 32)
        scoring.begin(logits[-1])
        while scoring.next is not None:
            scoring.take(decoder.read_on(sequence, scoring.next))
        decoder.release(sequence)
        expected = []
        for tokens in continuations:
            ids = torch.tensor([[*prompt.ids, *tokens]])
            if "mm_token_type_ids" in inputs:
                kinds = inputs["mm_token_type_ids"]
                inputs["mm_token_type_ids"] = torch.cat((kinds, kinds.new_zeros(1, len(tokens))), 1)
            told = model(ids, **inputs).logits[0].log_softmax(-1)[len(prompt.ids) - 1 : -1]
            expected.append([float(row[token]) for row, token in zip(told, tokens, strict=True)])
            if "mm_token_type_ids" in inputs:
                inputs["mm_token_type_ids"] = kinds
    return scoring.logprobs, expected


def test_models_of_other_kinds() -> None:
    continuations = [[7, 8, 9], [20], list(range(10, 90)), [7, 8, 40, 41]]
    cases = [(with_a_sliding_window(), Prompt(list(range(3, 70))), {})]
    model, ids, inputs = with_positions_in_two_dimensions()
    cases += [(model, Prompt(ids, ("hash",), inputs), inputs), (model, Prompt(list(range(3, 70))), {})]
    for model, prompt, given_inputs in cases:
        found, expected = scored(model, prompt, continuations, **given_inputs)
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-3)


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=40), min_size=1, max_size=12),
    st.integers(1, 16),
)
def test_every_token_is_read_once_and_in_order(continuations: list[list[int]], most: int) -> None:
    passes = passes_of(continuations, most)
    read: list[list[int]] = [[] for _ in continuations]
    for one in passes:
        assert 0 < len(one.tokens) <= most
        assert len(one.offsets) == len(one.tokens)
        assert len(one.parts) == 1 or one.behind == 0
        rest = list(one.tokens)
        for part in one.parts:
            assert part.start == len(read[part.continuation])
            length = part.stop - part.start
            read[part.continuation] += rest[:length]
            del rest[:length]
    assert read == [tokens[:-1] for tokens in continuations]


def test_what_does_not_fit_is_refused(text_engine: Any) -> None:
    messages = [EngineMessage(role="user", content="brown fox " * 100)]
    with pytest.raises(InvalidInput, match="together they may be at most 512"):
        scores(text_engine, messages, ["a", "brown fox " * 200])
    assert text_engine.engine.load == {"running": 0, "waiting": 0}
