"""Review: a person edits, accepts, rejects or rates an answer or prompt, in the node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from .shared import CATEGORY, PAUSE_NOTE, GenerationIO, mode_inputs, wait_for_person


class Review(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ComfyLoopReview",
            display_name="Review (ComfyLoop)",
            category=CATEGORY,
            description=f"Shows a text to be edited, accepted, rejected or rated. {PAUSE_NOTE}",
            inputs=[
                io.String.Input("text", force_input=True),
                *mode_inputs(),
                GenerationIO.Input(
                    "generation",
                    optional=True,
                    tooltip="From Ask or Write Prompt: what the judgement is about.",
                ),
            ],
            outputs=[io.String.Output(display_name="text")],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    async def execute(
        cls, text: str, mode: str, timeout: int, generation: dict[str, Any] | None = None
    ) -> io.NodeOutput:
        handle = generation or {}
        shown = {
            "text": text,
            "original": text,
            "generation": handle.get("id", ""),
            "project": handle.get("project", ""),
            "about": handle.get("about", "prompt"),
            "version": handle.get("version", ""),
        }
        if mode == "pass":
            return io.NodeOutput(text, ui={"comfyloop_review": [shown]})
        answer, note = await wait_for_person(cls.hidden, "comfyloop.review", shown, timeout)
        if answer is None:
            return io.NodeOutput(text, ui={"comfyloop_review": [{**shown, "note": note}]})
        shown |= {"text": answer["text"], "rating": answer.get("rating") or 0}
        if answer.get("action") == "reject":  # what comes after is not run; it is no error either
            return io.NodeOutput(ExecutionBlocker(None), ui={"comfyloop_review": [{**shown, "note": "rejected"}]})
        return io.NodeOutput(answer["text"], ui={"comfyloop_review": [{**shown, "note": "done"}]})


NODE = Review
