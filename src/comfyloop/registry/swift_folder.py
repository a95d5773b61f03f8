"""The text adapter as `swift infer --adapters DIR` and `swift sft --adapters DIR` of ms-swift take it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfyloop.registry.base_model import PUBLIC

ARGUMENTS = "args.json"
_QUANTISED = {
    "quant_method": "bnb",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}


def complete(folder: Path, model: str, spec: Mapping[str, Any], target: Path) -> str:
    """Write the arguments that ms-swift loads with an adapter: the base model, and its quantisation.

    Args:
        folder: A PEFT directory.
        model: The base model as the project has it.
        spec: How the adapter was trained.
        target: Where the folder will be.

    Returns:
        The command that runs it.
    """
    name = model.removeprefix("hf:").removeprefix("ms:")
    on_hub = "/" in name and PUBLIC.match(name) is not None
    arguments: dict[str, Any] = {"tuner_type": "lora", "task_type": "causal_lm"}
    if on_hub:
        arguments["model"] = name
    if spec.get("quant_method") == "bnb":
        arguments |= {**_QUANTISED, "quant_bits": int(spec.get("quant_bits", 4))}
    (folder / ARGUMENTS).write_text(json.dumps(arguments, indent=2) + "\n", "utf-8")
    words = [f"swift infer --adapters {target}"]
    if not on_hub:
        words.append(f"--model {model}")
    elif not model.startswith("ms:"):
        words.append("--use_hf true")
    return " ".join(words)
