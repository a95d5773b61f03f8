"""Ask: a question about images (or none), answered by the project's model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .shared import CATEGORY, GenerationIO, ask, live_fingerprint, sampling_inputs, who_answered


class Ask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ComfyLoopAsk",
            display_name="Ask (ComfyLoop)",
            category=CATEGORY,
            description="Asks the project's model about images. The answer appears as it is written.",
            inputs=[
                io.String.Input("question", multiline=True, default="What is in this picture?"),
                io.String.Input(
                    "model",
                    default="",
                    tooltip="acme: the live version; acme@17; acme@base. Empty: the project of the sidebar.",
                ),
                *sampling_inputs(max_tokens=96),
                io.Image.Input("images", optional=True, tooltip="All images of the batch belong to one question."),
            ],
            outputs=[io.String.Output(display_name="answer"), GenerationIO.Output(display_name="generation")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    async def fingerprint_inputs(cls, model: str | None = None, **_: Any) -> str:
        return await live_fingerprint(model)

    @classmethod
    async def execute(
        cls, question: str, model: str, temperature: float, max_tokens: int, seed: int, images: Any = None
    ) -> io.NodeOutput:
        if not question.strip():
            raise ValueError("The question is empty. Write one into the node.")
        sampling = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        answer, handle = await ask(cls.hidden.unique_id, model, question, images, sampling, "answer")
        return io.NodeOutput(
            answer.text, handle, ui={"comfyloop_text": [answer.text], "comfyloop_version": [who_answered(answer)]}
        )


NODE = Ask
