"""Wake the model before it is asked: as soon as a graph with Ask or Write Prompt in it runs, or is the next one."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from .service import Service, ServiceError

ASKING = ("ComfyLoopAsk", "ComfyLoopWritePrompt")
LOOK = 0.2  # seconds between looks at the queue
MOST_SEEN = 256


def models_asked(graph: dict[str, Any], project: str) -> list[str]:
    """The models that the nodes of a graph in ComfyUI's API form ask; one that comes over a link is not known yet."""
    found: dict[str, None] = {}
    for node in graph.values():
        if node.get("class_type") in ASKING:
            named = node.get("inputs", {}).get("model")
            found[(named.strip() if isinstance(named, str) else "") or project] = None
    return list(found)


class WakeAhead:
    """`coming` has the prompts (id, graph) that run or are next; `connected` tells whether the service is there."""

    def __init__(
        self,
        service: Callable[[], Service],
        coming: Callable[[], list[tuple[str, dict[str, Any]]]],
        project: Callable[[], str],
        connected: Callable[[], bool],
    ) -> None:
        self._service, self._coming = service, coming
        self._project, self._connected = project, connected
        self._seen: OrderedDict[str, None] = OrderedDict()

    async def run(self) -> None:
        while True:
            if self._connected():
                for model in self._new():
                    with contextlib.suppress(ServiceError):  # the node will say why nobody answers
                        await self._service().wake(model)
            await asyncio.sleep(LOOK)

    def _new(self) -> Iterator[str]:
        for prompt_id, graph in self._coming():
            if prompt_id not in self._seen:
                self._seen[prompt_id] = None
                if len(self._seen) > MOST_SEEN:
                    self._seen.popitem(last=False)
                yield from models_asked(graph, self._project())
