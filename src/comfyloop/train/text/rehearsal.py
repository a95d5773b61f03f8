"""Measures the memory of a training step by executing one on torch's meta device, where tensors have sizes but no
content: the trained layers with LoRA and fused passes, forward and backward, counting all tensors that are alive at
the same time."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from comfyloop.train.kernels import last_layer, packing
from comfyloop.train.kernels.losses import answer_log_probs
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.models import Description, Loaded, fuse
from comfyloop.train.text.trainable import make_trainable

META = torch.device("meta")
FEW, MORE, LONGER = (256, 256), (256, 256, 256, 256), (512, 512)
"""Samples, in tokens, of steps: what one takes more than another is what tokens take, and what their attention does."""
ANSWER = 64
"""Tokens of a sample that are predicted."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a step takes at its peak, beside the model's weights.

    Attributes:
        fixed: However long the row is: logits, gradients of what is trained, and the like.
        token: Of each token of a micro-batch.
        pair: Of each pair of tokens of a sample of up to `packing.WRITTEN_OUT`; 0 where no scores are written out.
        trained: Numbers that are trained.
    """

    fixed: int
    token: int
    pair: float
    trained: int


def footprint(
    description: Description, spec: TrainSpec, dtype: torch.dtype, device: str, *, fused: bool
) -> Footprint:
    """The footprint of a step of the language model with the spec's LoRA, its weights not in four bits.

    Args:
        device: The kind of device that it is taken on: `cpu`, `cuda`, ...
        fused: With our own passes for the modules that are plain.
    """
    with META:
        base = description.auto.from_config(copy.deepcopy(description.config), dtype=dtype)
        peft = make_trainable(base, spec, None)
    if peft is not None and fused:
        fuse(peft)
    answers_only = last_layer.keep_answers_only(base)
    model = Loaded(base, peft, None, META, dtype, "sdpa", answers_only=answers_only)
    model.go_alone("")
    model.train()
    few, more, longer = (_peak_of_step(model, spans, device) for spans in (FEW, MORE, LONGER))
    pair = (longer - more) / (_pairs(LONGER) - _pairs(MORE)) if device == "cpu" else 0.0
    token = int((more - few - pair * (_pairs(MORE) - _pairs(FEW))) / (sum(MORE) - sum(FEW)))
    trained = sum(parameter.numel() for _, parameter in model.trainable)
    return Footprint(int(more - token * sum(MORE) - pair * _pairs(MORE)), token, pair, trained)


def peak_of_looking(description: Description, fields: Mapping[str, Tensor], dtype: torch.dtype) -> int:
    """Bytes that the vision tower takes at its peak for an image, beside its weights.

    Args:
        fields: What the model's processor made of the image.
    """
    with META:
        base = description.auto.from_config(copy.deepcopy(description.config), dtype=dtype).eval()
    heavy = {name: value.to(META, dtype) for name, value in fields.items() if value.is_floating_point()}
    with torch.no_grad(), _attention_as_kernels_do(), _Alive(base) as alive:
        base.get_image_features(**{**fields, **heavy}, return_dict=True)
    return int(alive.most)


def _pairs(lengths: Sequence[int]) -> int:
    return sum(length * length for length in lengths)


def _peak_of_step(model: Loaded, lengths: Sequence[int], device: str) -> int:
    for _, parameter in model.trainable:
        parameter.grad = None
    tokens, answers = sum(lengths), ANSWER * len(lengths)
    wide = model.whole.config.get_text_config().hidden_size
    states = torch.empty(1, tokens, wide, device=META, dtype=model.dtype)
    predicting = torch.empty(answers, device=META, dtype=torch.int64)
    labels = torch.empty(answers, device=META, dtype=torch.int64)
    more: dict[str, Any] = {"predicting": predicting} if model.answers_only else {}
    # one that is made already, or transformers looks into the positions for one
    mask = torch.empty(1, 1, 1, 1, device=META, dtype=model.dtype)
    with _attention_as_kernels_do(), _written_out_on(device), _Alive(model.module) as alive:
        out = model.whole.get_decoder()(
            inputs_embeds=states,
            attention_mask=mask,
            use_cache=False,
            spans=[packing.Span(length) for length in lengths],
            **more,
        ).last_hidden_state[0]
        answer_rows = out if model.answers_only else out[predicting]
        answer_log_probs(answer_rows, model.head, labels)[0].sum().backward()  # type: ignore[no-untyped-call]
    return int(alive.most)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors on the meta device that are alive at the same time, except a model's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.most = 0
        self._storages: weakref.WeakSet[Any] = weakref.WeakSet()
        for tensor in (*model.parameters(), *model.buffers()):
            self._storages.add(tensor.untyped_storage())

    def __torch_dispatch__(
        self, op: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        inputs = (args, kwargs or {})
        if any(map(_on_paper, tree_leaves(inputs))):
            # what a tower computes of an image's size has content, up to where it meets what has none
            inputs = tree_map_only(Tensor, lambda tensor: tensor.to(META), inputs)
        out = op(*inputs[0], **inputs[1])
        for tensor in filter(_on_paper, tree_leaves(out)):
            self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        if storage in self._storages:
            return
        self._storages.add(storage)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


def _on_paper(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device == META


class _Attention(torch.autograd.Function):
    """Saves what torch's kernels save: queries, keys, values, the output, and one number per token and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    out: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out


@contextlib.contextmanager
def _attention_as_kernels_do() -> Iterator[None]:
    """On the meta device torch writes attention's scores out, which no device does."""
    own = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = own


@contextlib.contextmanager
def _written_out_on(device: str) -> Iterator[None]:
    """Our own passes write short samples' scores out on a processor, and nowhere else."""
    own = packing.WRITTEN_OUT
    packing.WRITTEN_OUT = own if device == "cpu" else 0
    try:
        yield
    finally:
        packing.WRITTEN_OUT = own
