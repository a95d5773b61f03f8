"""Langfuse's traces and observations with corrected outputs.

A correction is a score of the type CORRECTION: beside the trace or observation that it corrects, in its list of scores
(the API), or in a file of scores (exports to blob storage). What was corrected is learnt, and preferred to the output
that it replaces. Names are written in camel case by the API and with underscores in exports; both are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from comfyloop.formats import UnusableRow
from comfyloop.sources import rows
from comfyloop.sources.source import DataSource, SourceItem, SourceOptions
from comfyloop.sources.tree import Tree

_OF_TRACES = frozenset(
    ["traceId", "trace_id", "observations", "scores", "sessionId", "session_id", "projectId", "project_id"]
)
"""Keys of which every trace and observation has some."""


def _get(value: Mapping[str, Any], *names: str) -> Any:
    """What stands under one of these names, in either way of writing it."""
    for name in names:
        head, *rest = name.split("_")
        for key in (name, head + "".join(part.title() for part in rest)):
            if value.get(key) not in (None, ""):
                return value[key]
    return None


def _is_correction(value: Mapping[str, Any]) -> bool:
    return str(_get(value, "data_type") or "").upper() == "CORRECTION"


def _is_traced(value: Mapping[str, Any]) -> bool:
    return "input" in value and "output" in value and bool(_OF_TRACES & value.keys())


def fits(tree: Tree) -> bool:
    return any(_is_correction(v) or _is_score(v) or _is_traced(v) for _, v in tree.first_values)


def _is_score(value: Mapping[str, Any]) -> bool:
    return (
        _get(value, "data_type") is not None
        and _get(value, "trace_id", "observation_id") is not None
        and "name" in value
    )


def read(tree: Tree, options: SourceOptions) -> Iterator[SourceItem]:
    corrections = dict(_corrections(tree, options))
    for one in rows.read(tree, options):
        value = one.item.value
        if value is None:
            yield one
            continue
        if _is_score(value) and not _is_traced(value):
            continue
        for item in _traced(value):
            answer = _own_correction(item) or corrections.get(str(item.get("id")))
            if answer is None:
                continue
            try:
                row, problem = _row(item, answer), ""
            except UnusableRow as error:
                row, problem = None, str(error)
            yield replace(one, item=replace(one.item, value=row, problem=problem))


def _corrections(tree: Tree, options: SourceOptions) -> Iterator[tuple[str, Any]]:
    """What files of scores correct, by the observation or trace; of the same thing the last counts."""
    for one in rows.read(tree, options):
        value = one.item.value
        if value is not None and _is_score(value) and _is_correction(value):
            about, answer = _get(value, "observation_id", "trace_id"), _corrected(value)
            if about is not None and answer is not None:
                yield str(about), answer


def _traced(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A trace and the observations within it; a trace's scores on an observation are told to that."""
    inner = value.get("observations")
    observations = [dict(o) for o in inner if isinstance(o, dict)] if isinstance(inner, list) else []
    scores = [s for s in value.get("scores") or [] if isinstance(s, dict)]
    for observation in observations:
        mine = [s for s in scores if _get(s, "observation_id") == observation.get("id")]
        observation["scores"] = [*(observation.get("scores") or []), *mine]
    yield value | {"scores": [s for s in scores if _get(s, "observation_id") in (None, value.get("id"))]}
    yield from observations


def _own_correction(value: Mapping[str, Any]) -> Any:
    given = _get(value, "corrected_output", "correction")
    if given is not None:
        return given
    scores = [s for s in value.get("scores") or [] if isinstance(s, dict) and _is_correction(s)]
    return _corrected(scores[-1]) if scores else None


def _corrected(score: Mapping[str, Any]) -> Any:
    return _get(score, "long_string_value", "string_value", "value")


def _row(item: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    asked, output = _parsed(item.get("input")), _parsed(item.get("output"))
    row: dict[str, Any] = {"id": str(item.get("id", "")), **_question(asked)}
    text = _answer(_parsed(answer) if isinstance(answer, str) and answer.lstrip().startswith("{") else answer)
    if not text.strip():
        raise UnusableRow("its correction has no text")
    row["messages"] = [*row["messages"], {"role": "assistant", "content": [{"type": "text", "text": text}]}]
    before = _answer(output) if output is not None else ""
    if before.strip() and before.strip() != text.strip():
        row["rejected_response"] = [{"role": "assistant", "content": [{"type": "text", "text": before}]}]
    return row


def _question(asked: Any) -> dict[str, Any]:
    if isinstance(asked, dict):
        asked = next(
            (asked[k] for k in ("messages", "input", "prompt", "question", "query") if asked.get(k)), asked
        )
    if isinstance(asked, str) and asked.strip():
        return {"messages": [{"role": "user", "content": [{"type": "text", "text": asked}]}]}
    if isinstance(asked, list) and asked and all(isinstance(m, dict) and "role" in m for m in asked):
        return {"messages": [{"role": m["role"], "content": m.get("content")} for m in asked]}
    raise UnusableRow("its input is neither a text nor a list of messages")


def _answer(output: Any) -> str:
    """The text of an output: a text, a message, a list of messages or choices."""
    if isinstance(output, str):
        return output
    if isinstance(output, list) and output:
        return _answer(output[-1])
    if isinstance(output, dict):
        for key in ("content", "text", "output", "answer", "message", "choices", "completion"):
            if output.get(key):
                return _answer(output[key])
    raise UnusableRow("its output is no text")


def _parsed(value: Any) -> Any:
    """A value that exports write as JSON in a text."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[", '"')):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


SOURCE = DataSource("langfuse", "Langfuse's traces or observations with corrected outputs", fits, read)
