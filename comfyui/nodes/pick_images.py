"""Pick Images: a grid from which a person picks and rates; what was picked goes on."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from server import PromptServer

from .. import graph, images, pack
from ..redact import redact
from .shared import CATEGORY, PAUSE_NOTE, GenerationIO, mode_inputs, wait_for_person


class PickImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ComfyLoopPickImages",
            display_name="Pick Images (ComfyLoop)",
            category=CATEGORY,
            description=f"Shows images to pick from and to rate. Those picked go on. {PAUSE_NOTE}",
            inputs=[
                io.Image.Input("images"),
                *mode_inputs(),
                io.String.Input(
                    "prompt",
                    optional=True,
                    force_input=True,
                    tooltip="What the images were made from. Not connected: found in the workflow.",
                ),
                GenerationIO.Input("generation", optional=True, tooltip="Of the prompt, where a model wrote it."),
            ],
            outputs=[io.Image.Output(display_name="picked")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    async def execute(
        cls,
        images: Any,
        mode: str,
        timeout: int,
        prompt: str | None = None,
        generation: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        work, handle = pack.get(), generation or {}
        names, files = _save(images)
        hashes = [name["sha256"] for name in names]
        shown = {
            "images": names,
            "shown": hashes,
            "prompt": prompt or _found_prompt(cls.hidden.prompt, cls.hidden.unique_id),
            "generation": handle.get("id", ""),
            "project": handle.get("project", "") or work.config.project,
            "prompt_id": PromptServer.instance.last_prompt_id or "",
        }
        work.show_grid(shown, files, redact(cls.hidden.prompt or {}, work.config.excluded))
        if mode == "pass":
            return io.NodeOutput(images, ui={"comfyloop_pick": [shown]})
        answer = await wait_for_person(cls.hidden, "comfyloop.pick", shown, timeout)
        picked = set((answer or {}).get("picked") or hashes)  # nothing picked, or no time: all go on
        kept = [place for place, sha in enumerate(hashes) if sha in picked]
        return io.NodeOutput(
            images[kept],
            ui={
                "comfyloop_pick": [
                    {
                        **shown,
                        "note": "done" if answer else "timeout",
                        "picked": sorted(picked) if answer else [],
                        "ratings": (answer or {}).get("ratings") or {},
                        "reason": (answer or {}).get("reason", ""),
                    }
                ]
            },
        )


def _save(batch: Any) -> tuple[list[dict[str, str]], dict[str, Path]]:
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    names, files = [], {}
    for place, data in enumerate(images.from_tensor(batch)):
        sha = images.sha256(data)
        path = folder / f"comfyloop_{secrets.token_hex(6)}_{place}.png"
        path.write_bytes(data)
        names.append({"sha256": sha, "filename": path.name, "subfolder": "", "type": "temp"})
        files[sha] = path
    return names, files


def _found_prompt(workflow: Any, node: str) -> str:
    work = pack.get()
    plain = redact(workflow or {}, work.config.excluded)
    return graph.prompt_of_images(plain, str(node), "images", work.host.kind_of)
