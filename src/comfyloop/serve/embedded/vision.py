"""Images as the language model sees them: features by content, and the embedded prompt they are put into."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_PLAIN = {"input_ids", "inputs_embeds", "position_ids", "past_key_values", "use_cache", "return_dict"}


@dataclass(frozen=True)
class Embedded:
    """A prompt with images, ready for the language model.

    `whole` holds the model's own inputs when the model does more with images than put their features between
    the words (masks of its own, features for deeper layers): such a prompt is filled in one piece.
    """

    embeds: Tensor  # (1, tokens, hidden)
    positions: Tensor | None  # (..., 1, tokens), or None: 0, 1, 2, ...
    whole: dict[str, Any] | None

    @property
    def shift(self) -> int:
        """Position of a later token minus its place (models with positions in two dimensions)."""
        return 0 if self.positions is None else int(self.positions.max()) + 1 - self.positions.shape[-1]


class Vision:
    """The vision side of one model, with the features of images seen before, bounded in memory."""

    def __init__(self, model: Any, limit: int) -> None:
        self._model = model
        self._inner = model.base_model
        self.dtype = model.dtype
        self._limit = limit
        self._cache: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self._by_features = "mm_encoder_outputs" in inspect.signature(type(self._inner).forward).parameters
        self.bytes = 0
        self.computed = 0  # images that went through the vision tower

    def embed(
        self, ids: Tensor, inputs: dict[str, Tensor], images: tuple[str, ...], adapter: str
    ) -> Embedded:
        """Put the features of `images` (named by hash) into the prompt `ids` (1, tokens).

        Args:
            inputs: What the processor made of the images and the text.
            adapter: Name of the adapter when it changes how images are seen, else empty.
        """
        given: dict[str, Any] = dict(inputs)
        if self._by_features and hasattr(self._inner, "get_image_features"):
            taken = inspect.signature(self._inner.get_image_features).parameters
            pixels = {k: v for k, v in inputs.items() if k in taken}
            given = {k: v for k, v in inputs.items() if not k.startswith("pixel_values")}
            given["mm_encoder_outputs"] = {"image": self._features(pixels, (adapter, *images))}
        else:
            self.computed += len(images)
        seen = _capture(self._model, input_ids=ids, use_cache=False, **given)
        entwined = any(_is_data(v) for k, v in seen.items() if k not in _PLAIN)
        return Embedded(seen["inputs_embeds"], seen.get("position_ids"), given if entwined else None)

    def _features(self, pixels: dict[str, Tensor], key: tuple[str, ...]) -> Any:
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        output = self._inner.get_image_features(**pixels, return_dict=True)
        output.hidden_states = output.attentions = output.last_hidden_state = None
        self.computed += len(key) - 1
        size = _bytes(output)
        if size <= self._limit:
            self._cache[key] = output
            self.bytes += size
            while self.bytes > self._limit:
                self.bytes -= _bytes(self._cache.popitem(last=False)[1])
        return output

    def forget(self, adapter: str) -> None:
        for key in [k for k in self._cache if k[0] == adapter]:
            self.bytes -= _bytes(self._cache.pop(key))


class _Reached(Exception):
    pass


def _capture(model: Any, **inputs: Any) -> dict[str, Any]:
    """What `model` hands to its language model for `inputs`, without running that."""
    seen: dict[str, Any] = {}

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)
        raise _Reached

    hook = model.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs)
    except _Reached:
        return seen
    finally:
        hook.remove()
    raise RuntimeError(f"{type(model).__name__} does not call its decoder.")


def _is_data(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_is_data(v) for v in value.values())
    if isinstance(value, list | tuple):
        return any(_is_data(v) for v in value)
    return isinstance(value, Tensor)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_bytes(v) for v in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes(v) for v in value)
    return 0
