"""Save Sample: image and text straight into the project's data, for people who curate by hand."""

from __future__ import annotations

import asyncio
from typing import Any

from comfy_api.latest import io

from .. import images as pictures
from .. import pack
from ..feedback import item
from .shared import CATEGORY


class SaveSample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ComfyLoopSaveSample",
            display_name="Save Sample (ComfyLoop)",
            category=CATEGORY,
            description="Saves question, answer and images as a training example of the project.",
            inputs=[
                io.String.Input("question", multiline=True, default="What is in this picture?"),
                io.String.Input("answer", multiline=True, default=""),
                io.String.Input("project", default="", tooltip="Empty: the project of the sidebar."),
                io.Image.Input("images", optional=True),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The images are cropped to the box around it; nothing painted: whole.",
                ),
            ],
            outputs=[io.Image.Output(display_name="cropped")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    async def execute(
        cls, question: str, answer: str, project: str, images: Any = None, mask: Any = None
    ) -> io.NodeOutput:
        if not question.strip() or not answer.strip():
            raise ValueError("A sample has a question and an answer. Write both into the node.")
        work = pack.get()
        if images is not None and mask is not None:
            images = crop(images, mask)
        files = {pictures.sha256(d): d for d in pictures.from_tensor(images)} if images is not None else {}
        content = [{"type": "image", "sha256": sha} for sha in files]
        messages = [
            {"role": "user", "content": [*content, {"type": "text", "text": question.strip()}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]},
        ]
        sample = item("sample_uploaded", project.strip() or work.config.project, messages=messages)
        await asyncio.to_thread(work.keep, [sample], files)
        return io.NodeOutput(images, ui={"comfyloop_note": [f"saved for {sample['project']}: {sample['id']}"]})


def crop(images: Any, mask: Any) -> Any:
    """Images [B, H, W, C] cut to the box around what is set in any of the masks [B, H, W]; whole where nothing is."""
    set_ = (mask if mask.ndim == 3 else mask[None]).amax(dim=0) > 0.5
    if not set_.any():  # Load Image gives an empty mask, of any size, where nothing was painted
        return images
    if set_.shape != images.shape[1:3]:
        raise ValueError(
            f"The mask is {tuple(set_.shape)} and the images are {tuple(images.shape[1:3])}. Give both the same size."
        )
    rows, columns = set_.any(dim=1).nonzero().flatten(), set_.any(dim=0).nonzero().flatten()
    return images[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


NODE = SaveSample
