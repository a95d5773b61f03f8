"""Pictures drawn by a running ComfyUI, through its own queue: people's prompts there are never overtaken."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx

from comfyloop.comfyui.workflow import Classes, Graph, Unusable, ready
from comfyloop.errors import EngineUnavailable, RunFailed
from comfyloop.media.decoding import opened

LOOK_SECONDS = 0.2


class ComfyUI:
    """Args:
    url: Where it listens.
    seconds: The most that one picture may take, its time in the queue included.
    check_stop: Called while it draws; what it raises goes on.
    """

    def __init__(self, url: str, seconds: float, check_stop: Callable[[], None]) -> None:
        self._url = url.rstrip("/")
        self._seconds = seconds
        self._check_stop = check_stop
        self._http = httpx.Client(base_url=self._url, timeout=httpx.Timeout(60, connect=5), trust_env=False)
        self._classes: Classes | None = None

    def __enter__(self) -> ComfyUI:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def draw(self, workflow: Graph, prompt: str, seed: int, version: str) -> bytes:
        """The first picture that a workflow makes, as a PNG file; the arguments are those of `ready`.

        Raises:
            EngineUnavailable: Nothing answers, or not as ComfyUI does.
            RunFailed: The workflow cannot draw this, ended with an error, or took too long; says why.
        """
        if self._classes is None:
            self._classes = self._call("GET", "/object_info").json()
        try:
            graph, shown = ready(workflow, self._classes, prompt, seed, version)
        except Unusable as error:
            raise RunFailed(f"Your workflow cannot draw for the gate: {error}.") from None
        queued = self._call("POST", "/prompt", {"prompt": graph}).json()
        if wrong := queued.get("node_errors"):
            raise RunFailed(f"ComfyUI refused your workflow: {_first_problem(wrong)}.")
        images = self._ended(str(queued["prompt_id"]))["outputs"].get(shown, {}).get("images") or [{}]
        if "filename" not in images[0]:
            raise RunFailed("Your workflow ended in ComfyUI without a picture.")
        data = self._call("GET", "/view", query=images[0]).content
        try:
            with opened(data) as picture:
                picture.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise RunFailed(f"ComfyUI gave a picture that cannot be read ({error}).") from None
        return data

    def _ended(self, prompt_id: str) -> dict[str, Any]:
        """The history entry of a prompt that has succeeded."""
        deadline = time.monotonic() + self._seconds
        while True:
            self._check_stop()
            entry = self._call("GET", f"/history/{prompt_id}").json().get(prompt_id)
            if entry is not None:
                status = entry.get("status") or {}
                if status.get("status_str") == "success":
                    return dict(entry)
                raise RunFailed(f"Your workflow failed in ComfyUI: {_why(status)}.")
            if time.monotonic() > deadline:
                self._call("POST", "/queue", {"delete": [prompt_id]})
                raise RunFailed(f"ComfyUI took more than {self._seconds:g} seconds for a picture.")
            time.sleep(LOOK_SECONDS)

    def _call(
        self, method: str, path: str, body: Any = None, query: dict[str, str] | None = None
    ) -> httpx.Response:
        try:
            response = self._http.request(method, path, json=body, params=query)
        except httpx.HTTPError:
            raise EngineUnavailable(
                f"No ComfyUI answers at {self._url}.", "Start it, or set comfyui_url."
            ) from None
        if response.status_code == 400 and path == "/prompt":
            told = response.json()
            why = _first_problem(told.get("node_errors") or {}) or str(
                (told.get("error") or {}).get("message")
            )
            raise RunFailed(f"ComfyUI refused your workflow: {why}.")
        if response.status_code >= 400:
            raise EngineUnavailable(
                f"What answers at {self._url} is no ComfyUI: {response.status_code} for {path}."
            )
        return response


def _first_problem(errors: dict[str, Any]) -> str:
    for node in errors.values():
        for error in node.get("errors", ()):
            return f"{node.get('class_type')}: {error.get('message')} ({error.get('details')})"
    return ""


def _why(status: dict[str, Any]) -> str:
    for name, told in status.get("messages", ()):
        if name == "execution_error":
            return f"{told.get('node_type')}: {str(told.get('exception_message')).strip().rstrip('.')}"
    return "it was interrupted"
