"""Live LoRA: the image LoRA of the project's live version. Runs again when that changes, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
import folder_paths
from comfy_api.latest import io

from .. import pack
from .shared import CATEGORY, model_name


class LiveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ComfyLoopLiveLora",
            display_name="Live LoRA (ComfyLoop)",
            category=CATEGORY,
            description="Applies the project's live image LoRA. Without one, the model goes through untouched.",
            inputs=[
                io.Model.Input("model"),
                io.String.Input(
                    "project",
                    default="",
                    tooltip="Empty: the project of the sidebar. acme@17: that version, live or not.",
                ),
                io.Float.Input("strength", default=1.0, min=-4.0, max=4.0, step=0.05),
                io.Clip.Input("clip", optional=True),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip"),
                io.String.Output(display_name="version"),
            ],
        )

    @classmethod
    async def fingerprint_inputs(cls, project: str | None = None, **_: Any) -> str:
        """The file that will be applied: fetched here, so that a failure is not cached as if it were the version."""
        file, _note = await _lora(model_name(project))
        return file.stem if file else "none"

    @classmethod
    async def execute(cls, model: Any, project: str, strength: float, clip: Any = None) -> io.NodeOutput:
        name = model_name(project)
        file, note = await _lora(name)
        if file is None:
            return io.NodeOutput(model, clip, "none", ui={"comfyloop_note": [note or f"{name}: no image LoRA yet"]})
        if note:
            note = f"{file.stem}. {note}"
        if strength == 0:
            return io.NodeOutput(model, clip, file.stem, ui={"comfyloop_note": [f"{file.stem}, strength 0"]})
        tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
        refused = _unknown_keys(tensors, model, clip)
        if refused:
            raise ValueError(
                f"{file.name} does not fit this model: {len(refused)} of {len(tensors)} tensors have no place in it "
                f"(the first is {refused[0]}). Load the base model for which project {name!r} is trained."
            )
        model, clip = comfy.sd.load_lora_for_models(model, clip, tensors, strength, strength)
        return io.NodeOutput(model, clip, file.stem, ui={"comfyloop_note": [note or file.stem]})


async def _lora(name: str) -> tuple[Path | None, str]:
    """The file that is applied for a name, and what there is to say of it. A version that is named must be had."""
    work = pack.get()
    live = work.live
    project, _, version = name.partition("@")
    if version in ("", "live"):
        return await work.apart(live.lora(project, _folder()))
    return await work.apart(live.lora_of(name, _folder())), ""


def _folder() -> Path:
    """Where ComfyUI's own LoraLoader sees the files as well."""
    return Path(folder_paths.get_folder_paths("loras")[0]) / "comfyloop"


def _unknown_keys(tensors: dict[str, Any], model: Any, clip: Any) -> list[str]:
    """The keys that ComfyUI would leave out with no more than a warning in its log."""
    places = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        places = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, places)
    converted = comfy.lora_convert.convert_lora(tensors)
    known = {
        f"{place}{end}"
        for place in places
        for end in (".lora_up.weight", ".lora_down.weight", ".lora_mid.weight", ".alpha")
    }
    text_side = () if clip is not None else ("lora_te",)
    return [key for key in converted if key not in known and not key.startswith(text_side or ("\0",))]


NODE = LiveLora
