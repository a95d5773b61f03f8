"""What past edits add to a question on its way to the engine: examples, and preferences in words.

The question itself is recorded as the person sent it: what is added here is never trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool

from comfyloop import recall
from comfyloop.errors import ComfyLoopError
from comfyloop.media import data_urls
from comfyloop.records import Message
from comfyloop.serve.api.chat_request import ChatRequest
from comfyloop.serve.api.services import Services
from comfyloop.serve.routing.names import ModelName
from comfyloop.store import preferences
from comfyloop.wire import wire_message

log = logging.getLogger(__name__)

Wire = list[dict[str, Any]]


class RecalledMessages(NamedTuple):
    """The conversation as the engine gets it, and the feedback that the added examples come from."""

    wire: Wire
    feedback: tuple[str, ...] = ()

    @property
    def headers(self) -> dict[str, str]:
        return {"X-ComfyLoop-Examples": ",".join(self.feedback)} if self.feedback else {}


async def recalled(
    services: Services, body: ChatRequest, version: int, messages: Sequence[Message], wire: Wire
) -> RecalledMessages:
    """A question for the live version with what its project's edits add; any other as it is.

    A question is never refused for this: where the edits cannot be read, it goes without.
    """
    name = ModelName.parse(body.model)
    settings = services.settings
    if name.which != "live" or body.examples is False:
        return RecalledMessages(wire)
    if settings.examples == "off" and not settings.preferences_in_prompt:
        return RecalledMessages(wire)
    try:
        return await run_in_threadpool(_recalled, services, name.project, version, messages, wire)
    except ComfyLoopError as error:
        log.warning("Edits of %s could not be recalled: %s", name.project, error)
        return RecalledMessages(wire)


def _recalled(
    services: Services, project: str, version: int, messages: Sequence[Message], wire: Wire
) -> RecalledMessages:
    settings = services.settings
    examples: list[recall.PromptExample] = []
    if settings.examples != "off":
        careful = settings.examples == "auto"
        examples = services.recall.examples(project, version, messages, careful=careful)
    told = wire
    if settings.preferences_in_prompt:
        told = _told(recall.sentence(listed(services, project)), wire)
    if not examples:
        return RecalledMessages(told)

    def url(sha256: str) -> str:
        return data_urls.encode(services.store.blobs.get(sha256))

    turns = [wire_message(turn, url) for each in examples for turn in (each.question, each.answer)]
    first = next(place for place, message in enumerate(told) if message["role"] != "system")
    return RecalledMessages(
        [*told[:first], *turns, *told[first:]], tuple(dict.fromkeys(each.feedback for each in examples))
    )


def listed(services: Services, project: str) -> list[recall.Preference]:
    """The preferences of a project in words. Blocks; raises StorageError."""
    found = services.recall.words(project)
    with services.store.read() as conn:
        return recall.merged(found, preferences.by_id(conn, project))


def _told(sentence: str, wire: Wire) -> Wire:
    """The conversation with a sentence at the end of its system prompt."""
    if not sentence:
        return wire
    if wire[0]["role"] == "system":
        before = wire[0]["content"]
        if isinstance(before, str):
            return [{"role": "system", "content": f"{before}\n{sentence}"}, *wire[1:]]
        return [
            {"role": "system", "content": [*before, {"type": "text", "text": f"\n{sentence}"}]},
            *wire[1:],
        ]
    return [{"role": "system", "content": sentence}, *wire]
