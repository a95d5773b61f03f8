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
from ..roles import PictureText
from ..service import ServiceError
from .shared import CATEGORY, PAUSE_NOTE, GenerationIO, mode_inputs, stop_if_interrupted, wait_for_person


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
                io.Boolean.Input(
                    "best_first",
                    optional=True,
                    default=False,
                    tooltip="Order the grid by what you picked and rated so far, once your taste is known. The images "
                    "are sent to your service for it.",
                ),
            ],
            outputs=[io.Image.Output(display_name="picked", is_output_list=True)],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    async def execute(
        cls,
        images: list[Any],
        mode: list[str],
        timeout: list[int],
        prompt: list[str] | None = None,
        generation: list[dict[str, Any]] | None = None,
        best_first: list[bool] | None = None,
    ) -> io.NodeOutput:
        """Lists, since pictures of unequal sizes come as several batches and are still one choice."""
        work, handle = pack.get(), _only(generation) or {}
        names, files = _save(images)
        hashes = [name["sha256"] for name in names]
        prompt_id = PromptServer.instance.last_prompt_id or ""
        plain = redact(cls.hidden.prompt or {}, work.config.excluded)
        text = _text(prompt) if prompt else _found(cls.hidden.prompt or {}, plain, cls.hidden.unique_id, prompt_id)
        project = handle.get("project", "") or work.config.project
        ordered, taste = names, ""
        if best_first and best_first[0]:
            ordered, taste = await _best_first(names, files, project)
        shown = {
            "images": ordered,
            "shown": hashes,
            "prompt": text.text or "",
            "why": text.why if text.text is None else "",
            "taste": taste,
            "generation": handle.get("id", ""),
            "project": project,
            "prompt_id": prompt_id,
        }
        work.show_grid(shown, files, plain)
        if mode[0] == "pass":
            return io.NodeOutput(images, ui={"comfyloop_pick": [shown]})
        answer, note = await wait_for_person(cls.hidden, "comfyloop.pick", shown, timeout[0])
        picked = set((answer or {}).get("picked") or hashes)  # nothing picked, or no time: all go on
        return io.NodeOutput(
            _kept(images, hashes, picked),
            ui={
                "comfyloop_pick": [
                    {
                        **shown,
                        "note": note or "done",
                        "picked": sorted(picked) if answer else [],
                        "ratings": (answer or {}).get("ratings") or {},
                        "reason": (answer or {}).get("reason", ""),
                    }
                ]
            },
        )


async def _best_first(
    names: list[dict[str, str]], files: dict[str, Path], project: str
) -> tuple[list[dict[str, str]], str]:
    """The images in the order of the project's taste and what is known of it; as they are where that fails."""
    work = pack.get()
    try:
        asked = work.service().rank(project, [files[name["sha256"]].read_bytes() for name in names])
        ranking = await work.apart(asked, stop_if_interrupted)
    except ServiceError as error:
        return names, f"Not ordered: {error}"
    places = {image["sha256"]: place for place, image in enumerate(ranking["images"])}
    return sorted(names, key=lambda name: places[name["sha256"]]), ranking["taste"]["sentence"]


def _only(values: list[Any] | None) -> Any:
    """The one value of a list; None where there are several different ones."""
    return values[0] if values and all(value == values[0] for value in values) else None


def _text(prompts: list[str]) -> PictureText:
    one = _only(prompts)
    return PictureText(None, "The pictures were made from several texts.") if one is None else PictureText(one)


def _kept(images: list[Any], hashes: list[str], picked: set[str]) -> list[Any]:
    """The batches less what was not picked; batches of which nothing is left are left out."""
    kept, start = [], 0
    for batch in images:
        end = start + int(batch.shape[0])
        places = [place for place, sha in enumerate(hashes[start:end]) if sha in picked]
        if places:
            kept.append(batch[places])
        start = end
    return kept


def _save(batches: list[Any]) -> tuple[list[dict[str, str]], dict[str, Path]]:
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    names, files = [], {}
    for place, data in enumerate(data for batch in batches for data in images.from_tensor(batch)):
        sha = images.sha256(data)
        path = folder / f"comfyloop_{secrets.token_hex(6)}_{place}.png"
        path.write_bytes(data)
        names.append({"sha256": sha, "filename": path.name, "subfolder": "", "type": "temp"})
        files[sha] = path
    return names, files


def _found(workflow: dict[str, Any], plain: dict[str, Any], node: str, prompt_id: str) -> PictureText:
    host = pack.get().host
    return graph.text_of_images(workflow, plain, str(node), "images", host.define, host.heard(prompt_id))


NODE = PickImages
