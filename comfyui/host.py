"""What the pack needs of the ComfyUI that it runs in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .graph import OURS, Kind, KindOf, unknown
from .hear import Hearing, listen
from .roles import Heard
from .wiring import Define


@dataclass(frozen=True)
class Host:
    history: Callable[[str], dict[str, Any] | None]  # prompt id -> its history entry, when it has ended
    queued: Callable[[str], bool]
    running: Callable[[], bool]  # whether a prompt is being executed
    image_path: Callable[[dict[str, str]], Path | None]
    kind_of: KindOf
    define: Define = unknown
    define_now: Define = unknown  # the same with the choices of this moment: files that there are
    heard: Callable[[str], Heard] = lambda _: {}  # prompt id -> what its encoders heard
    clients: Callable[[], Collection[str]] = tuple  # that are connected now
    coming: Callable[[], list[tuple[str, dict[str, Any]]]] = list  # prompts that run or are next: id, graph
    memory: Callable[[], tuple[int, int]] = lambda: (0, 0)  # of the device: bytes needed, bytes had or free
    free_bytes: Callable[[], int] = lambda: 0  # of the device
    idle: Callable[[], bool] = lambda: True  # whether nothing runs, and nothing waits in the queue
    unload: Callable[[], None] = lambda: None  # ComfyUI's models, as its /free does


def of_server(server: Any) -> Host:
    """The host behind ComfyUI's `PromptServer`."""
    import folder_paths

    queue = server.prompt_queue

    def history(prompt_id: str) -> dict[str, Any] | None:
        ended: dict[str, Any] | None = queue.get_history(prompt_id=prompt_id).get(prompt_id)
        return ended

    def queued(prompt_id: str) -> bool:
        running, waiting = queue.get_current_queue_volatile()
        return any(entry[1] == prompt_id for entry in (*running, *waiting))

    def image_path(name: dict[str, str]) -> Path | None:
        root = folder_paths.get_directory_by_type(name.get("type", ""))
        return Path(root, name.get("subfolder", ""), name["filename"]) if root and name.get("filename") else None

    def graph_of(prompt_id: str) -> dict[str, Any] | None:
        running = list(queue.currently_running.values())
        return next((entry[2] for entry in running if entry[1] == prompt_id), None)

    hearing = Hearing(graph_of)
    listen(hearing)

    def clients() -> list[str]:
        return list(server.sockets)

    def running() -> bool:
        return bool(queue.currently_running)

    def coming() -> list[tuple[str, dict[str, Any]]]:
        now, waiting = queue.get_current_queue_volatile()
        following = [min(waiting, key=lambda entry: entry[0])] if waiting else []
        return [(entry[1], entry[2]) for entry in (*now, *following)]

    def idle() -> bool:
        now, waiting = queue.get_current_queue_volatile()
        return not now and not waiting

    def unload() -> None:
        queue.set_flag("unload_models", True)
        queue.set_flag("free_memory", True)

    return Host(
        history, queued, running, image_path, kind_of, define, define_now, hearing.of, clients, coming, memory,
        free_bytes, idle, unload,
    )  # fmt: skip


def memory() -> tuple[int, int]:
    """What the models that ComfyUI has loaded need of its device, with room to compute; what of it they have or could
    have. A model that was loaded in part, for want of room, needs the rest."""
    import comfy.model_management as management

    loaded = list(management.current_loaded_models)
    needed = sum(model.model_memory() for model in loaded) + management.minimum_inference_memory()
    return int(needed), int(sum(model.model_loaded_memory() for model in loaded)) + free_bytes()


def free_bytes() -> int:
    import comfy.model_management as management

    return int(management.get_free_memory(management.get_torch_device()))


def define_now(class_type: str) -> dict[str, Any] | None:
    """What ``/object_info`` says of a class, as far as the roles of its inputs and outputs need it."""
    import nodes

    known = nodes.NODE_CLASS_MAPPINGS.get(class_type)
    if known is None:
        return None
    outputs = list(known.RETURN_TYPES)
    return {
        "input": known.INPUT_TYPES(),
        "output": outputs,
        "output_name": list(getattr(known, "RETURN_NAMES", None) or outputs),
    }


@functools.lru_cache(maxsize=4096)
def define(class_type: str) -> dict[str, Any] | None:
    return define_now(class_type)


def kind_of(class_type: str, input: str) -> Kind:
    """What an input of a node is for."""
    return _kinds(class_type).get(input, "value")


@functools.lru_cache(maxsize=4096)
def _kinds(class_type: str) -> dict[str, Kind]:
    found: dict[str, Kind] = {}
    for part in (define(class_type) or {"input": {}})["input"].values():
        for name, spec in part.items() if isinstance(part, dict) else ():
            options = spec[1] if isinstance(spec, (tuple, list)) and len(spec) > 1 else None
            if not isinstance(options, dict):
                continue
            if options.get("multiline"):
                found[name] = "data" if class_type.startswith(OURS) else "prompt"
            elif any(option.endswith("_upload") for option in options) or name == "filename_prefix":
                found[name] = "data"
    return found
