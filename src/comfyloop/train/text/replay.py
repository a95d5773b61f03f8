"""Replay of general questions: keeps the model close to its base model's distribution.

A style that is learned from a few edits leaks into everything else. Beside the edits go general questions with the
base model's answers; at each of their tokens the divergence from the base model's own next-token distribution is
added to the loss, KL(base || model), over its likeliest tokens (distillation: Hinton et al. 2015; as a guard against
forgetting: Li and Hoiem 2016). Unlike learning those answers as text it asks for hardly anything new where the model
still is what it was. Leaving the unlikely rest out sharpens the model a little.

How much replay there is matters: of the likelihood of general answers, 8 to 13% was lost with 6 rows an epoch beside 15
new ones, about 1% with 12. So does its weight: after two turns of a brand's captions the chance of right answers on 72
questions had fallen by 2.9 points at 2, by 1.6 at 4 and by 1.0 at 8, and the corrections held out were likelier by
4.19, 4.13 and 4.03 nats per token. With short given answers as half of the replay and a weight of 4 it fell by 0.2
(standard error 1.5), at 4.12.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from comfyloop.train.data.batches import in_groups
from comfyloop.train.data.examples import Example
from comfyloop.train.kernels.losses import Targets, likely_tokens
from comfyloop.train.run.control import Control
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.answers import EVALUATION_TOKENS
from comfyloop.train.text.feature_cache import FeatureCache, tower_hash
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.forward import answer_states
from comfyloop.train.text.models import Loaded

LIKELIEST = 32
"""Tokens of the base model's distribution that are kept at each place."""


@torch.no_grad()
def hold_to_base(
    model: Loaded,
    features: ImageFeatures,
    examples: Sequence[Example],
    spec: TrainSpec,
    log: RunLog,
    control: Control,
) -> list[Example]:
    """The same samples; those for replay get the base model's distribution as their targets.

    General questions recur in every turn, so the distributions are cached on disk, beside image features. Call it
    before the first step: under full training, the weights are the base model's only until then.
    """
    targeted = list(examples)
    places = [place for place, example in enumerate(examples) if example.part == "replay"]
    if not places:
        return targeted
    log.phase("asking the base model")
    cache = _cache(model, features, spec) if spec.feature_cache_dir else None
    places_to_ask = []
    for place in places:
        if (cached_targets := _cached(cache, examples[place])) is not None:
            targeted[place] = replace(examples[place], targets=cached_targets)
        else:
            places_to_ask.append(place)
    model.eval()
    with model.peft.disable_adapter() if model.peft is not None else contextlib.nullcontext():
        for group in in_groups([examples[place] for place in places_to_ask], EVALUATION_TOKENS):
            control.check()
            some = [places_to_ask[index] for index in group]
            states, _ = answer_states(model, features, [examples[place] for place in some])
            likely = likely_tokens(states, model.head, LIKELIEST)
            start = 0
            for place in some:
                rows = slice(start, start := start + examples[place].answer.numel())
                ids, shares = likely.rows(rows)
                assert shares is not None
                targets = Targets(ids.cpu(), shares.cpu())
                targeted[place] = replace(examples[place], targets=targets)
                if cache is not None:
                    cache.put(_key(examples[place]), {"ids": targets.ids.int(), "shares": shares})
    log.say(f"general questions: {len(places_to_ask)} asked, {len(places) - len(places_to_ask)} remembered")
    return targeted


def _cache(model: Loaded, features: ImageFeatures, spec: TrainSpec) -> FeatureCache:
    """The cache, keyed by all weights of the base model, regardless of the LoRA and the parameter names that it
    causes."""

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in model.whole.named_parameters():
            if "lora_" not in name and ".modules_to_save." not in name:
                yield name.replace(".base_layer", "").replace(".original_module", ""), weight

    setting = f"likeliest {LIKELIEST} {features.setting()} {model.rope_scaling} {model.alone}"
    limit = int(spec.feature_cache_gb * 2**30)
    return FeatureCache(Path(str(spec.feature_cache_dir)), tower_hash(weights(), setting), limit)


def _key(example: Example) -> bytes:
    digest = hashlib.blake2b(digest_size=20)
    for tensor in (example.input_ids, example.positions, example.answer):
        digest.update(f"{tuple(tensor.shape)} ".encode() + tensor.contiguous().numpy().tobytes())
    digest.update(example.pixels.digest if example.pixels is not None else b"")
    return digest.digest()


def _cached(cache: FeatureCache | None, example: Example) -> Targets | None:
    tensors = cache.get(_key(example)) if cache is not None else None
    if tensors is None or len(tensors["ids"]) != example.answer.numel():
        return None
    return Targets(tensors["ids"].long(), tensors["shares"])


def entropy(example: Example) -> float:
    """The entropy in nats over all tokens of a sample: the part of its cross-entropy that training cannot
    reduce."""
    if example.targets is None or example.targets.shares is None:
        return 0.0
    return float(torch.special.entr(example.targets.shares).sum())
