"""Write Prompt: a short brief becomes the positive prompt of the image model, in the project's learned style."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..feedback import WRITE_PROMPT
from .shared import CATEGORY, GenerationIO, ask, live_fingerprint, sampling_inputs, who_answered


class WritePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ComfyLoopWritePrompt",
            display_name="Write Prompt (ComfyLoop)",
            category=CATEGORY,
            description="Writes the prompt for the image model from a short brief, as this project likes it.",
            inputs=[
                io.String.Input("brief", multiline=True, default="", tooltip="A product's name, a subject, a mood."),
                io.String.Input(
                    "model",
                    default="",
                    tooltip="acme: the live version; acme@17; acme@base. Empty: the project of the sidebar.",
                ),
                *sampling_inputs(max_tokens=96),
                io.Image.Input("image", optional=True, tooltip="What the picture should start from."),
            ],
            outputs=[io.String.Output(display_name="prompt"), GenerationIO.Output(display_name="generation")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    async def fingerprint_inputs(cls, model: str | None = None, **_: Any) -> str:
        return await live_fingerprint(model)

    @classmethod
    async def execute(
        cls, brief: str, model: str, temperature: float, max_tokens: int, seed: int, image: Any = None
    ) -> io.NodeOutput:
        if not brief.strip() and image is None:
            raise ValueError("The brief is empty. Write a few words, or connect an image.")
        sampling = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        question = WRITE_PROMPT.format(brief=brief.strip())
        answer, handle = await ask(cls.hidden.unique_id, model, question, image, sampling, "prompt")
        prompt = answer.text.strip()
        return io.NodeOutput(
            prompt, handle, ui={"comfyloop_text": [prompt], "comfyloop_version": [who_answered(answer)]}
        )


NODE = WritePrompt
