"""What programs import of the package: docs/stability.md promises to keep it."""

from __future__ import annotations

import inspect
import subprocess
import sys

import comfyloop
from comfyloop import errors

CALLS = {
    "answer_flag",
    "ask",
    "call",
    "decide",
    "default_project",
    "flags",
    "forget",
    "gate",
    "gate_report",
    "generation",
    "image_adapter",
    "is_sleeping",
    "loop",
    "pages",
    "preferences",
    "promote",
    "put_bytes",
    "queue",
    "ready",
    "rollback",
    "run_log",
    "send_feedback",
    "sheet",
    "snapshot",
    "start_turn",
    "upload_image",
    "versions",
}
RAISED = {
    "ComfyLoopError",
    "Conflict",
    "DamagedBlob",
    "DamagedVersion",
    "DataError",
    "EngineUnavailable",
    "InvalidInput",
    "ModelError",
    "NotFound",
    "QueueFull",
    "RunFailed",
    "StarterError",
    "StorageError",
    "TooLarge",
    "UnusableEnvironment",
}


def public(owner: object) -> set[str]:
    return {name for name in vars(owner) if not name.startswith("_")}


def test_what_is_public() -> None:
    assert comfyloop.__all__ == ["Answer", "AsyncClient", "Client", "__version__", "errors", "records"]
    assert all(getattr(comfyloop, name) is not None for name in comfyloop.__all__)
    assert public(comfyloop.Client) == CALLS | {"close"}
    assert public(comfyloop.AsyncClient) == CALLS | {"aclose"}
    assert {name for name, found in vars(errors).items() if inspect.isclass(found)} == RAISED
    assert comfyloop.Answer._fields == ("text", "generation", "version", "examples")


def test_both_clients_take_the_same_and_say_so() -> None:
    for name in CALLS:
        at_once, awaited = getattr(comfyloop.Client, name), getattr(comfyloop.AsyncClient, name)
        assert inspect.signature(at_once).parameters == inspect.signature(awaited).parameters, name
        assert at_once.__doc__ == awaited.__doc__ and at_once.__doc__, name
    assert inspect.signature(comfyloop.AsyncClient.generation).return_annotation == "Generation"


def test_importing_it_alone_loads_little_and_the_rest_comes_when_it_is_asked_for() -> None:
    program = (
        "import sys, comfyloop; early = set(sys.modules); "
        "assert not early & {'httpx', 'pydantic', 'torch'}, early; "
        "comfyloop.AsyncClient, comfyloop.Client, comfyloop.records.Feedback, comfyloop.errors.NotFound; "
        "assert 'torch' not in sys.modules and not hasattr(comfyloop, 'Clients')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
