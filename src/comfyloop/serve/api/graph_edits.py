"""POST /v1/graph-edits: the question that edits of workflows teach, asked about a workflow."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.concurrency import run_in_threadpool

from comfyloop.capture.feedback import too_deep
from comfyloop.client.calls import CIRCLE
from comfyloop.curate import graph, graph_read, graph_text
from comfyloop.curate.workflow import Workflow
from comfyloop.errors import InvalidInput, TooLarge
from comfyloop.serve.api.answering import Answering
from comfyloop.serve.api.chat import unless_gone
from comfyloop.serve.api.chat_request import ChatMessage, ChatRequest
from comfyloop.serve.api.services import Svc
from comfyloop.serve.chat_format import RepetitionDetection

router = APIRouter(tags=["chat"])

LONGEST_ANSWER = 512
"""Tokens of an edit."""
MOST_NODES = graph_text.LONGEST // 10
"""Whose shortest lines alone fill a question."""
DEEPEST = 32
"""How deep a workflow's values may be nested."""


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="`acme` (live version), `acme@17`, `acme@base`.", examples=["acme"])
    workflow: dict[str, Any] = Field(description="In ComfyUI's API form.")
    near: list[str] = Field(
        default_factory=list,
        max_length=1000,
        description="Ids of the nodes that the person is at; empty: all.",
    )
    aim: Annotated[str, StringConstraints(max_length=2000)] = Field(
        default="", description="What the person is after: a prompt, or in words."
    )


class EditStep(BaseModel):
    """One step. Nodes are called by the workflow's own ids, added ones by "+1", "+2", …"""

    do: Literal["remove", "add", "disconnect", "connect", "set", "unset"]
    node: str
    class_type: str | None = None
    values: dict[str, Any] | None = None
    input: str | None = None
    source: str | None = Field(default=None, description="Where a link comes from.")
    slot: int | None = None
    value: Any = None
    was: Any = None


class Suggestion(BaseModel):
    generation: str
    version: str
    text: str = Field(description="As the model wrote it.")
    steps: list[EditStep] | None = Field(description="null where the answer is no edit of this workflow.")
    problem: str = Field(default="", description="Why it is none.")
    learned: bool = Field(
        description="Whether this service trains on edits of workflows (learn_graph_edits)."
    )


@router.post(
    "/v1/graph-edits",
    summary="Suggest the next edit of a workflow",
    response_model=Suggestion,
    response_model_exclude_unset=True,
)
async def suggest_edit(body: Asked, request: Request, services: Svc) -> Suggestion | Response:
    """Asks a version what it would change. Nothing is applied; the answer is recorded as a generation."""
    shown, question = await run_in_threadpool(_question, body)
    asked = ChatRequest(
        model=body.model,
        messages=[ChatMessage(role="user", content=question)],
        temperature=0,
        max_tokens=LONGEST_ANSWER,
        examples=False,  # edits of answers teach nothing about workflows
        repetition_detection=RepetitionDetection(**CIRCLE),
    )
    answering = await Answering.begin(services, asked)
    try:
        answer = await unless_gone(answering.whole(), request)
    finally:
        answering.close()
    if answer is None:
        return Response(status_code=499)
    text = str(answer["choices"][0]["message"].get("content") or "")
    steps, problem = await run_in_threadpool(_read, shown, text)
    return Suggestion(
        generation=answering.id,
        version=answering.handle.name,
        text=text,
        steps=steps,
        problem=problem,
        learned=services.settings.learn_graph_edits,
    )


def _question(body: Asked) -> tuple[Workflow, str]:
    """The workflow as it is shown, and the question, in the words of the rows that are trained on."""
    if too_deep(body.workflow, DEEPEST):
        raise InvalidInput(f"The workflow has values nested more than {DEEPEST} deep.")
    try:
        whole = graph.parse(body.workflow).without(graph_text.hidden)
    except ValueError as error:
        raise InvalidInput(f"The workflow cannot be read: {error}.") from error
    if not whole.nodes:
        raise InvalidInput("The workflow has no nodes.", "Open one that makes something.")
    near = [key for key in body.near if key in whole.nodes]
    for hops in (2, 1, 0) if near else (None,):
        shown = whole if hops is None else graph.near(whole, near, hops)
        if len(shown.nodes) > MOST_NODES:
            continue
        question = graph_text.question(shown, body.aim)
        if len(question) <= graph_text.LONGEST:
            return shown, question
    raise TooLarge(
        f"{len(shown.nodes)} nodes are more than models are taught with at once.",
        "Select fewer nodes: those that you are at." if near else "Select the nodes that you are at.",
    )


def _read(shown: Workflow, text: str) -> tuple[list[EditStep] | None, str]:
    try:
        change = graph_read.read(shown, text)
    except ValueError as error:
        return None, f"The model's answer is no edit of this workflow: {error}."
    return [EditStep(**step) for step in graph_read.steps(shown, change)], ""
