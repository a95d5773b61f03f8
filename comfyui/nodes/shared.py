"""What several nodes need: asking the service while the page watches, and waiting for a person."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any

import comfy.model_management
from comfy_api.latest import io
from server import PromptServer

from .. import images, pack
from ..feedback import new_id
from ..service import Answer, ServiceError

CATEGORY = "ComfyLoop"
GenerationIO = io.Custom("COMFYLOOP_GENERATION")
"""A handle of an answer: {"id", "project", "version", "about": "answer" | "prompt"}; feedback refers to it."""

PATIENCE = 120.0
"""Seconds until a service that does not answer counts as away: it may wait for the same processor as ComfyUI."""
CIRCLE = {"max_pattern_size": 32, "min_pattern_size": 2, "min_count": 12}
"""When an answer goes round in a circle and is ended: "a cat, a cat, a cat, …", and no list, table or code."""
PAUSE_NOTE = "While it waits, the whole queue waits."


def to_page(event: str, data: dict[str, Any]) -> None:
    """To the page that queued this run; a script that queued it has none, and its text is no other page's."""
    server = PromptServer.instance
    if server.client_id is not None:
        server.send_sync(event, data, server.client_id)


def to_all(event: str, data: dict[str, Any]) -> None:
    """To every open page: any of them may be where the person is."""
    PromptServer.instance.send_sync(event, data)


def stop_if_interrupted() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def model_name(model: str | None) -> str:
    """None stands for a name that comes over a link, which is not known before the run."""
    return (model or "").strip() or pack.get().config.project


async def live_fingerprint(model: str | None) -> str:
    """Changes when the version that answers to this name does: a cached answer of an older version is stale."""
    name = model_name(model)
    if "@" in name and not name.endswith("@live"):
        return name
    work = pack.get()
    live = await work.apart(work.live.get(name.partition("@")[0]))
    return live.name if live else name


async def ask(
    node: str, model: str, text: str, pictures: Any, sampling: dict[str, Any], about: str
) -> tuple[Answer, dict[str, Any]]:
    """The answer, shown in the node as it is written, and its handle. Raises ServiceError with one sentence."""
    files = images.from_tensor(pictures) if pictures is not None else []
    parts: list[dict[str, Any]] = [
        {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + base64.b64encode(file).decode()},
        }
        for file in files
    ]
    content: Any = [*parts, {"type": "text", "text": text}] if parts else text
    body = {
        "model": model_name(model),
        "messages": [{"role": "user", "content": content}],
        "repetition_detection": CIRCLE,
        **sampling,
    }
    shown_at = 0.0

    def on_text(so_far: str) -> None:
        nonlocal shown_at
        stop_if_interrupted()
        if time.monotonic() - shown_at > 0.05:
            shown_at = time.monotonic()
            to_page("comfyloop.text", {"node": node, "text": so_far})

    work = pack.get()
    service = work.service(PATIENCE)
    await work.apart(service.check(), stop_if_interrupted)
    answer = await work.apart(service.chat(body, on_text), stop_if_interrupted)
    if not answer.text.strip():
        raise ServiceError("The model answered with nothing. Ask in other words, or allow more tokens.")
    to_page("comfyloop.text", {"node": node, "text": answer.text})
    handle = {
        "id": answer.generation,
        "project": answer.version.partition("@")[0],
        "version": answer.version,
        "about": about,
    }
    return answer, handle


def who_answered(answer: Answer) -> str:
    """The version, and how it ended where it did not end by itself."""
    ends = {"length": "ended at max_tokens", "repetition": "ended, since it repeated itself"}
    return " · ".join(filter(None, (answer.version, ends.get(answer.finish_reason, ""))))


def sampling_inputs(max_tokens: int) -> list[Any]:
    return [
        io.Float.Input(
            "temperature", default=0.0, min=0.0, max=2.0, step=0.05, tooltip="0: always the likeliest answer."
        ),
        io.Int.Input("max_tokens", default=max_tokens, min=1, max=8192, tooltip="Longest answer, in tokens."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,  # as ComfyUI's own: a seed that is shared by link may be any of them
            control_after_generate=True,
            tooltip="Chance, where temperature is not 0.",
        ),
    ]


async def wait_for_person(
    hidden: Any, event: str, shown: dict[str, Any], seconds: int
) -> tuple[dict[str, Any] | None, str]:
    """Show something in the node and wait: the answer, or None and why there is none: "timeout", or "gone".

    Interrupting the queue ends it with ComfyUI's own exception. A reloaded page finds the pause in its state, and
    shows it in the node if it is the same workflow, in the sidebar in any case. A pause that a page has shown, or
    of a run that was queued from one, ends soon after the last page is closed; a script's waits for its time.
    """
    work, node = pack.get(), hidden.unique_id
    workflow = ((hidden.extra_pnginfo or {}).get("workflow") or {}).get("id", "")
    pause = pack.Pause(new_id("pause"), node)
    pause.shown = {
        **shown,
        "event": event,
        "node": node,
        "workflow": workflow,
        "until": time.time() + seconds,
        "pause": pause.id,
    }
    work.pauses[pause.id] = pause
    try:
        to_all(event, pause.shown)
        end = time.monotonic() + seconds
        shown_at = time.monotonic() if work.is_page(PromptServer.instance.client_id) else None
        while pause.answer is None:
            stop_if_interrupted()
            now = time.monotonic()
            if work.watched:
                shown_at = now
            if now > end:
                return None, "timeout"
            if shown_at is not None and now - shown_at > pack.GONE:
                return None, "gone"
            await asyncio.sleep(0.05)
        return pause.answer, ""
    finally:
        work.pauses.pop(pause.id, None)
        to_all("comfyloop.resumed", {"node": node, "pause": pause.id})


def mode_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "mode",
            options=["pause", "pass"],
            default="pause",
            tooltip=f"pause: the workflow waits for you. {PAUSE_NOTE} pass: it runs on, and you can still judge.",
        ),
        io.Int.Input(
            "timeout",
            default=600,
            min=5,
            max=86400,
            tooltip="Seconds of a pause, after which the workflow goes on unchanged; "
            "also soon after the last page is closed.",
        ),
    ]
