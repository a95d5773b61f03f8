"""A directory or hub id becomes a model with its tokenizer and, where it sees images, its processor."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from comfyloop import platforms
from comfyloop.errors import ModelError
from comfyloop.models import devices
from comfyloop.models.counting import count
from comfyloop.models.memory import refuse_too_large
from comfyloop.models.processors import load_processor
from comfyloop.models.quantization import in_four_bits, keep_unpacked
from comfyloop.models.rope import RopeScaling, max_positions, scale
from comfyloop.serve.embedded.options import DType
from comfyloop.serve.embedded.weights import Weights


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to serve. `processor` is None for a model of text alone."""

    model: Any  # PreTrainedModel with a language-model head
    tokenizer: Any
    processor: Any | None
    context: int  # most tokens of prompt and answer together
    eos: frozenset[int]  # tokens that end an answer
    rope_scaling: RopeScaling | None = None
    weights: Weights | None = None  # by which its memory is given back; None: it is not

    @property
    def device(self) -> torch.device:
        return self.model.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype  # type: ignore[no-any-return]


def load(
    name: str,
    *,
    dtype: DType = "auto",
    quant_method: str = "",
    device: str = "auto",
    max_context: int = 0,
    rope_scaling: RopeScaling | None = None,
) -> LoadedModel:
    """Load `name`, a model directory or a hub id, onto one device.

    Raises:
        ModelError: it is not there, is not a model that chats, has no tokenizer, or does not fit.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    folder = Path(name)
    if folder.exists() and not (folder / "config.json").is_file():
        raise ModelError(f"{name} is not a model directory: it has no config.json.")
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{name} cannot be read as a model: {_first_line(error)}",
            "Give a directory with config.json, weights and tokenizer, or a hub id that can be reached.",
        ) from error

    sees = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if not sees and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"{name} is a {config.model_type} model, which does not write text.")
    if folder.exists() and not any(
        (folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    ):
        raise ModelError(
            f"{name} has no tokenizer.", "Copy tokenizer.json and tokenizer_config.json into the directory."
        )
    try:
        processor = load_processor(name, config) if sees else None
        tokenizer = processor.tokenizer if processor is not None else AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        raise ModelError(
            f"The tokenizer or processor of {name} cannot be loaded: {_first_line(error)}"
        ) from error

    if rope_scaling is not None and rope_scaling.rope_type == "dynamic":
        raise ModelError(
            "The embedded engine does not serve dynamic rope_scaling: a conversation's positions would depend on "
            "the longest one answered with it.",
            "Use linear or yarn.",
        )
    scale(config, rope_scaling)
    place = devices.choose(device)
    precision = _dtype(dtype, place, config)
    if quant_method and find_spec("bitsandbytes") is None:
        raise ModelError(
            "engine_quant_method = bnb needs bitsandbytes, which is not installed.",
            "pip install 'comfyloop[quant]'",
        )
    _refuse_too_large(folder, config, sees, precision, place, bool(quant_method))
    model = _weights(name, config, sees, precision, place, bool(quant_method))
    there = folder if folder.exists() else _downloaded(name)
    read = partial(_weights, str(there), config, sees, precision, place, bool(quant_method))
    return LoadedModel(
        model,
        tokenizer,
        processor,
        _context(config, max_context),
        _eos(model, tokenizer),
        rope_scaling,
        Weights(model, read, there) if there else None,
    )


def _refuse_too_large(
    folder: Path, config: Any, sees: bool, dtype: torch.dtype, device: torch.device, four_bits: bool
) -> None:
    """Raise ModelError for weights that the device has no room for: loading them would end in whatever it ends in."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    machine = devices.machine(device, dtype)
    if folder.is_dir() and sum(file.stat().st_size for file in folder.iterdir()) * 4 < machine.room:
        return  # however it is loaded; the others are counted, which takes a second
    figures = count(config, AutoModelForImageTextToText if sees else AutoModelForCausalLM)
    refuse_too_large(str(folder), figures, machine, four_bits)


def _weights(
    name: str, config: Any, sees: bool, dtype: torch.dtype, device: torch.device, four_bits: bool
) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    quantised = in_four_bits(auto, config, dtype, device) if four_bits else {}
    config = copy.deepcopy(config)  # it is told of what is loaded, and may be read again
    try:
        model, info = auto.from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, **quantised
        )
    except Exception as error:  # every reader of weights raises its own kind
        if devices.is_out_of_memory(error):
            raise ModelError(f"{name} does not fit into memory.") from error
        raise ModelError(f"The weights of {name} cannot be loaded: {_first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"The weights of {name} are incomplete: {len(missing)} tensors are missing, first {missing[0]}."
        )
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_close_up)
    if four_bits:
        keep_unpacked(model)  # what its adapters were trained on, and packed layers with a bias fail
    else:
        model.to(device)
    return model.eval().requires_grad_(False)


def _downloaded(name: str) -> Path | None:
    """Where the files of a hub id are on this machine; None: it is not known."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _close_up(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The head's input without gaps between its rows. For the last token of a prompt, which is a view into all of
    them, torch would otherwise copy the whole transposed head: half the time of reading a short prompt."""
    return (args[0].flatten().view(args[0].shape), *args[1:])


def _dtype(dtype: DType, device: torch.device, config: Any) -> torch.dtype:
    """`auto`: the best precision that the device has, but float32 for weights that were saved so."""
    saved = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return torch.float32 if dtype == "auto" and saved == torch.float32 else devices.precision(device, dtype)


def _context(config: Any, limit: int) -> int:
    longest = (
        max_positions(config) if getattr(config.get_text_config(), "max_position_embeddings", 0) else 4096
    )
    return min(longest, limit) if limit else longest


def _eos(model: Any, tokenizer: Any) -> frozenset[int]:
    ids: set[int] = set()
    for source in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        if source is not None:
            ids.update([source] if isinstance(source, int) else source)
    return frozenset(ids)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def set_threads(threads: int) -> None:
    """Give torch `threads` CPU threads (0: all cores that this process may use)."""
    torch.set_num_threads(threads or platforms.cores())
    with contextlib.suppress(RuntimeError):  # it can be set only once in a process
        torch.set_num_interop_threads(1)
