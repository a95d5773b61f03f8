"""What the encoders of a run really heard: texts as they arrived, after wildcards, concatenations and language models.

Two functions of ComfyUI are listened to, and neither changes in what it does: the one that runs a node, for the texts
that arrive at its inputs; and the one that turns a text into tokens, for what a node made of its text inside. A node
whose result ComfyUI takes from its cache is not run: what it heard last, with the same inputs, is what it heard.
"""

from __future__ import annotations

import contextvars
import functools
import hashlib
import inspect
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger("comfyloop")

Heard = dict[tuple[str, str], "str | None"]
"""(node, input) -> the text that arrived there; None where it was not one text, or the node made another of it."""

LONGEST = 50_000
"""Characters of a text that is kept; a longer one is no prompt."""
MOST_PROMPTS = 16
MOST_NODES = 4096


@dataclass
class _Node:
    arrived: dict[str, str | None] = field(default_factory=dict)
    encoded: list[str] = field(default_factory=list)

    def heard(self) -> dict[str, str | None]:
        """What arrived, unless the node made another text of it before it was encoded: then that, if it is clear."""
        changed = [
            name
            for name, text in self.arrived.items()
            if text and self.encoded and not any(text in encoded for encoded in self.encoded)
        ]
        known = {text for text in self.arrived.values() if text}
        others = {text for text in self.encoded if text.strip() and text not in known}
        made = others.pop() if len(changed) == len(others) == 1 else None
        return {name: made if name in changed else text for name, text in self.arrived.items()}


class Hearing:
    """Safe for threads. `running` gives the graph of the prompt that is being executed, by its id."""

    def __init__(self, running: Callable[[str], Mapping[str, Any] | None]) -> None:
        self._running = running
        self._mutex = threading.Lock()
        self._prompts: OrderedDict[str, dict[str, _Node]] = OrderedDict()
        self._signatures: dict[str, dict[str, str]] = {}  # prompt id -> node -> signature
        self._nodes: OrderedDict[str, _Node] = OrderedDict()  # by signature: what a cached node heard when it ran
        self._now: contextvars.ContextVar[_Node | None] = contextvars.ContextVar("comfyloop_node", default=None)

    def of(self, prompt_id: str) -> Heard:
        """All that was heard in a run, by nodes that ran and by those that were cached."""
        with self._mutex:
            ran = self._prompts.get(prompt_id, {})
            names = self._signed(prompt_id)
            found = {node: self._nodes[name] for node, name in names.items() if name in self._nodes}
            found.update(ran)
            return {(node, name): text for node, told in found.items() for name, text in told.heard().items()}

    def begin(self, prompt_id: str, node: str, arrived: Mapping[str, Any]) -> contextvars.Token[_Node | None]:
        """A node is run with these inputs, a list of values each."""
        told = _Node({name: _one_text(values) for name, values in arrived.items() if _are_texts(values)})
        if told.arrived:
            with self._mutex:
                self._prompts.setdefault(prompt_id, {})[node] = told
                while len(self._prompts) > MOST_PROMPTS:
                    self._signatures.pop(self._prompts.popitem(last=False)[0], None)
                name = self._signed(prompt_id).get(node)
                if name is not None:
                    self._nodes[name] = told
                    self._nodes.move_to_end(name)
                    while len(self._nodes) > MOST_NODES:
                        self._nodes.popitem(last=False)
        return self._now.set(told)

    def end(self, token: contextvars.Token[_Node | None]) -> None:
        self._now.reset(token)

    def encoded(self, text: Any) -> None:
        """The node that runs now has a text turned into tokens."""
        told = self._now.get()
        if told is not None and isinstance(text, str) and len(text) <= LONGEST:
            told.encoded.append(text)

    def _signed(self, prompt_id: str) -> dict[str, str]:
        if prompt_id not in self._signatures:
            graph = self._running(prompt_id)
            if graph is None:
                return {}
            self._signatures[prompt_id] = signatures(graph)
            while len(self._signatures) > MOST_PROMPTS:
                self._signatures.pop(next(iter(self._signatures)))
        return self._signatures[prompt_id]


def signatures(graph: Mapping[str, Any]) -> dict[str, str]:
    """node -> a hash of its class, its values and all that comes before it; nodes in a circle have none."""
    done: dict[str, str] = {}
    waiting = [*graph]
    opened: set[str] = set()
    while waiting:
        key = waiting[-1]
        inputs = graph[key].get("inputs") or {}
        links = {n: v for n, v in inputs.items() if isinstance(v, list) and len(v) == 2 and str(v[0]) in graph}
        missing = [v[0] for v in links.values() if v[0] not in done and v[0] not in opened]
        if missing and key not in opened:
            opened.add(key)
            waiting += missing
            continue
        waiting.pop()
        if key not in done and all(v[0] in done for v in links.values()):
            plain = {n: [done[v[0]], v[1]] if n in links else v for n, v in inputs.items()}
            told = json.dumps([graph[key].get("class_type"), plain], sort_keys=True, default=str)
            done[key] = hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()
    return done


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) for value in values)


def _one_text(values: list[str]) -> str | None:
    return values[0] if len(set(values)) == 1 and len(values[0]) <= LONGEST else None


def listen(hearing: Hearing) -> None:
    """Hook it into the running ComfyUI. One whose functions have another form is left alone, with a line in the log."""
    import comfy.sd
    import execution

    run = execution.get_output_data
    if [*inspect.signature(run).parameters][:4] != ["prompt_id", "unique_id", "obj", "input_data_all"]:
        log.warning("ComfyLoop cannot hear what encoders receive in this ComfyUI; prompts are read from the workflow.")
        return

    @functools.wraps(run)
    async def get_output_data(
        prompt_id: Any, unique_id: Any, obj: Any, input_data_all: Any, *rest: Any, **more: Any
    ) -> Any:
        token = None
        try:
            token = hearing.begin(str(prompt_id), str(unique_id), input_data_all)
        except Exception:
            log.debug("ComfyLoop could not hear a node.", exc_info=True)
        try:
            return await run(prompt_id, unique_id, obj, input_data_all, *rest, **more)
        finally:
            if token is not None:
                hearing.end(token)

    tokenize = comfy.sd.CLIP.tokenize

    @functools.wraps(tokenize)
    def heard(self: Any, text: Any, *rest: Any, **more: Any) -> Any:
        hearing.encoded(text)
        return tokenize(self, text, *rest, **more)

    execution.get_output_data = get_output_data
    comfy.sd.CLIP.tokenize = heard
