"""Computes the hidden states that predict answers, equal to those of the model's own code.

Samples are packed into one row. This is correct for causal attention, full or windowed; a model whose image tokens
attend forward, whose layers keep a state, or whose positions depend on the longest sample in a row gets its samples
one by one, with its own masks and positions. The choice does not rely on the configuration alone: before the first
step, samples of the run are computed both ways, and the results must agree with the model's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comfyloop.errors import ModelError
from comfyloop.models import devices
from comfyloop.models.quantization import four_bit_layers
from comfyloop.train.data.batches import pack
from comfyloop.train.data.examples import Example
from comfyloop.train.kernels.losses import answer_log_probs
from comfyloop.train.run.control import Control
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text import gradients
from comfyloop.train.text.feature_cache import FeatureCache, tower_hash
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.models import Loaded, unfuse

AGREEMENT = 2e-3
"""How far the log-probabilities of an answer's tokens may be apart on average, in nats, in float32."""
ROUGH_AGREEMENT = 0.5
"""The same in half precision, where two right orders of rounding have been seen 0.13 apart (the starter)."""
TESTED_ON = ("cpu",)
"""Kinds of devices on which our own passes are tested: what is wrong there is a fault to be told of."""
PACKED_AGREEMENT = 0.02
"""A sample in a packed row and in a row of its own, in half precision. As a rule the same bit for bit; but where a
processor's products of other shapes round otherwise (AMX), 0.08 apart: `_keep_apart` tells that from a leak."""


def prepare(
    model: Loaded, spec: TrainSpec, examples: Sequence[Example], log: RunLog, control: Control
) -> ImageFeatures:
    """Compute the image features of a run and verify its forward pass, before the first step.

    Raises:
        DataError, ModelError: as `ImageFeatures.of` and `prove`.
    """
    if spec.adapter.modules_to_save and spec.tuner_type == "lora":
        log.warn(
            f"modules_to_save ({', '.join(spec.adapter.modules_to_save)}): PEFT loads what comes of this run, but no "
            "engine of ours serves it (embedded, vLLM, LMDeploy)."
        )
    features = ImageFeatures(model)
    seeing = [example for example in examples if example.pixels is not None]
    if seeing:
        log.phase("looking at the images")
        if features.frozen and spec.feature_cache_dir:
            tower = tower_hash(features.parameters(), features.setting())
            limit = int(spec.feature_cache_gb * 2**30)
            features.cache = FeatureCache(Path(spec.feature_cache_dir), tower, limit)
        for example in seeing:
            features.of(example)
            control.check()
            if features.frozen and example.pixels is not None:
                example.pixels.let_go()
        log.say(f"images: {features.computed} samples' looked at, {features.read} remembered")
    if unfused := prove(model, features, examples):
        log.warn(f"The trainer's own passes are not right on this device, so they are left out: {unfused}")
    if model.alone:
        log.say(f"samples go through the model one by one: {model.alone}")
    return features


def answer_states(
    model: Loaded, features: ImageFeatures, examples: Sequence[Example]
) -> tuple[Tensor, Tensor]:
    """Hidden states [A, hidden] at the positions before each answer token, and those tokens [A], in order."""
    if model.alone:
        own = [_own_states(model, features, example) for example in examples]
        labels = torch.cat([example.input_ids[example.answer] for example in examples])
        return torch.cat(own), labels.to(model.device)
    row = pack(examples, model.device, share=model.shares_prefixes)
    states = model.hidden_states(
        row.predicting,
        input_ids=row.input_ids,
        position_ids=row.position_ids,
        spans=row.spans,
        **features.packed(row.showing),
    )
    return states, row.labels


def prove(model: Loaded, features: ImageFeatures, examples: Sequence[Example]) -> str:
    """Compare with the model's own code on samples of the run; fall back to single samples if packing differs, and
    to the original modules if the fused passes are wrong on a device that they were not tested on.

    Returns:
        Why our own passes were left out; empty: they were not.

    Raises:
        ModelError: Not even that gives the model's own logits, or the gradients of plain autograd.
    """
    try:
        _prove(model, features, examples)
    except (ModelError, RuntimeError) as error:
        if model.device.type in TESTED_ON or devices.is_out_of_memory(error) or not unfuse(model.module):
            raise
        why = str(error)
        model.go_alone("")
        _prove(model, features, examples)
        return why
    return ""


def _prove(model: Loaded, features: ImageFeatures, examples: Sequence[Example]) -> None:
    model.eval()
    some = _telling(examples)
    _prove_log_probs(model, features, some)
    wrong = _wrong_gradients(model, features, some)
    if wrong and not model.alone:
        model.go_alone(wrong)
        wrong = _wrong_gradients(model, features, some)
    if wrong:
        raise ModelError(
            f"The trainer's backward pass through {type(model.whole).__name__} is wrong on this machine: {wrong}. "
            "Nothing right would be learnt.",
            "Leave quant_method out, install another version of bitsandbytes, or train with another engine."
            if four_bit_layers(model.module)
            else "Set dtype = float32, use another model, or train this one with another engine.",
        )


def _wrong_gradients(model: Loaded, features: ImageFeatures, some: Sequence[Example]) -> str:
    def plain() -> Tensor:
        why = model.alone
        model.go_alone("its own code is asked")
        try:
            return torch.cat([_own_log_probs(model, features, example) for example in some])
        finally:
            model.go_alone(why)

    return gradients.disagreement(model, lambda: _log_probs(model, features, some), plain)


@torch.no_grad()
def _prove_log_probs(model: Loaded, features: ImageFeatures, some: Sequence[Example]) -> None:
    why = model.alone or own_code_only(model.whole)
    model.go_alone("its own code is asked")
    own = [_own_log_probs(model, features, example) for example in some]
    model.go_alone(why)
    wrong = _disagreement(model, features, some, own)
    if wrong and not why:
        model.go_alone(wrong)
        wrong = _disagreement(model, features, some, own)
    if wrong:
        raise ModelError(
            f"The trainer's loss is not what {type(model.whole).__name__} itself gives ({wrong}): it does "
            "something to its logits that is not known here.",
            "Use another model, or train this one with another engine.",
        )


def _disagreement(
    model: Loaded, features: ImageFeatures, examples: Sequence[Example], own: Sequence[Tensor]
) -> str:
    """How the answers' log-probabilities differ from the model's own; "" where they do not."""
    exact = model.dtype == torch.float32
    near = AGREEMENT if exact else PACKED_AGREEMENT
    packed = torch.split(_log_probs(model, features, examples), [part.numel() for part in own])
    if _apart(packed, own) <= near:
        return ""
    alone = [_log_probs(model, features, [example]) for example in examples]
    off = _apart(alone, own)
    if not (leak := _apart(packed, alone)) <= near:
        as_near = not exact and _apart(packed, own) <= 2 * off + PACKED_AGREEMENT
        if not (as_near and _keep_apart(model, features, examples, packed)):
            return f"samples in a packed row are {leak:.2g} nats a token off what they are alone"
    if not off <= (AGREEMENT if exact else ROUGH_AGREEMENT):
        return f"samples are {off:.2g} nats a token off what the model's own code makes of them"
    return ""


def _keep_apart(
    model: Loaded, features: ImageFeatures, examples: Sequence[Example], packed: Sequence[Tensor]
) -> bool:
    """Whether the result of each sample in a packed row is unchanged when the other samples' answers change.

    All shapes stay the same then, and so does the rounding.
    """
    for number, example in enumerate(examples):
        others = [e if e is example else _with_other_answer(e, example) for e in examples]
        now = torch.split(_log_probs(model, features, others), [part.numel() for part in packed])
        if not _apart([now[number]], [packed[number]]) <= PACKED_AGREEMENT:
            return False
    return True


def _with_other_answer(example: Example, neighbour: Example) -> Example:
    """A sample with another answer, which begins like its neighbour for as many tokens as before."""
    shorter = min(len(example), len(neighbour))
    same = example.input_ids[:shorter] == neighbour.input_ids[:shorter]
    alike = shorter if bool(same.all()) else int(same.int().argmin())
    ids = example.input_ids.clone()
    ids[example.answer[example.answer > alike]] = int(ids[example.answer[0] - 1])
    return replace(example, input_ids=ids)


def _apart(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest mean difference of answer tokens' log-probabilities over the samples."""
    return max(float((a - b).abs().mean()) for a, b in zip(some, others, strict=True))


def _log_probs(model: Loaded, features: ImageFeatures, examples: Sequence[Example]) -> Tensor:
    states, labels = answer_states(model, features, examples)
    return answer_log_probs(states, model.head, labels)[0]


def _own_log_probs(model: Loaded, features: ImageFeatures, example: Example) -> Tensor:
    """[A] log-probabilities of an answer's tokens by the unmodified model."""
    before = (example.answer - 1).to(model.device)
    inputs = _own_inputs(model, features, example)
    logits = model.whole(**inputs, use_cache=False, logits_to_keep=before).logits[0]
    labels = example.input_ids[example.answer].to(logits.device)
    return torch.log_softmax(logits.float(), -1).gather(-1, labels[:, None])[:, 0]


def _own_states(model: Loaded, features: ImageFeatures, example: Example) -> Tensor:
    predicting = (example.answer - 1).to(model.device)
    return model.hidden_states(predicting, **_own_inputs(model, features, example))


def _own_inputs(model: Loaded, features: ImageFeatures, example: Example) -> dict[str, Any]:
    """A sample's inputs from the processor, with its images as features: positions and masks are the model's
    own."""
    _forget_longer_rows(model.whole)
    fields = {k: v[None] for k, v in example.token_kinds.items()} | example.images
    return {
        "input_ids": example.input_ids[None].to(model.device),
        **{k: v.to(model.device) for k, v in fields.items()},
        **features.packed([example]),
    }


def own_code_only(whole: Any) -> str:
    """Why samples of this model cannot be packed, according to its configuration and class; "" if they can."""
    text = whole.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds)).replace('_', ' ')}"
    if getattr(whole, "_is_stateful", False):
        return "its layers keep a state"
    forward_parameters = inspect.signature(type(whole.base_model).forward).parameters
    if "token_type_ids" in forward_parameters or getattr(text, "use_bidirectional_attention", None):
        return "its image tokens see ahead"
    rope = getattr(text, "rope_parameters", None) or {}
    for parameters in [v for v in rope.values() if isinstance(v, dict)] or [rope]:
        if parameters.get("rope_type") in {"dynamic", "longrope"}:
            return "its positions depend on the longest sample in a row"
    if not whole._can_set_attn_implementation():
        return "its attention cannot be told where samples end"
    return ""


def _telling(examples: Sequence[Example]) -> list[Example]:
    """Two short samples that differ as much as possible: with images and without."""
    by_length = sorted(examples, key=len)
    seeing = [e for e in by_length if e.pixels]
    blind = [e for e in by_length if not e.pixels]
    return [seeing[0], blind[0]] if seeing and blind else by_length[:2]


def _forget_longer_rows(whole: Any) -> None:
    """Reset dynamic scaling, which keeps the frequencies of the longest row so far: a sample must not depend on
    it."""
    for module in whole.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.inv_freq = module.original_inv_freq.to(module.inv_freq.device)
            module.max_seq_len_cached = module.original_max_seq_len
