from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from comfyloop.serve.embedded.sampling import _nucleus, pick, token_logprobs


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=600), st.floats(0.01, 1.0, exclude_max=True))
def test_the_nucleus_is_the_fewest_best_tokens_with_the_mass(scores: list[float], top_p: float) -> None:
    logits = torch.tensor(scores)
    kept, tokens = _nucleus(logits, top_p)
    probabilities = logits.softmax(-1)
    mass = float(probabilities[tokens].sum())
    assert torch.equal(kept, logits[tokens])
    assert mass >= top_p - 1e-4
    assert mass - float(probabilities[tokens[-1]]) < top_p + 1e-4
    left = set(range(len(scores))) - set(tokens.tolist())
    assert all(logits[i] <= kept[-1] for i in left)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    generator = torch.Generator().manual_seed(3)
    draws = Counter(pick(logits, 1.0, 1.0, generator) for _ in range(20_000))
    for token, probability in enumerate(logits.softmax(-1).tolist()):
        assert abs(draws[token] / 20_000 - probability) < 0.015


def test_a_seed_gives_the_same_draws_and_temperature_zero_the_best() -> None:
    logits = torch.randn(500, generator=torch.Generator().manual_seed(0))
    once = [pick(logits, 1.0, 0.9, torch.Generator().manual_seed(7)) for _ in range(3)]
    assert len(set(once)) == 1
    assert pick(logits, 0.0, 1.0, None) == int(logits.argmax())
    assert pick(torch.tensor([1.0, 3.0, 3.0]), 0.0, 1.0, None) == 1


def test_log_probabilities_and_ranks() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]])
    first, second = token_logprobs(logits, torch.tensor([2, 2]), 2)
    expected = logits.log_softmax(-1)
    assert abs(first.logprob - float(expected[0, 2])) < 1e-6
    assert (first.rank, second.rank) == (2, 1)
    assert [token for token, _ in first.top] == [1, 2]
    assert token_logprobs(logits, torch.tensor([0, 0]), 0)[0].top == ()
