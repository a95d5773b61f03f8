"""What clients send and get: OpenAI's chat completions, with vLLM's extensions for scoring and adapters."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from comfyloop.serve import neutral
from comfyloop.serve.chat_format import (
    ImageContent,
    RepetitionDetection,
    ResponseFormat,
    StreamOptions,
    TextContent,
)
from comfyloop.serve.embedded.repetition import Repetition


class _In(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class EngineMessage(_In):
    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[TextContent | ImageContent, Field(discriminator="type")]]


class EngineChatRequest(_In):
    model: str
    messages: list[EngineMessage] = Field(min_length=1)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int = Field(default=1, ge=1, le=8)
    response_format: ResponseFormat | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    prompt_logprobs: int | None = Field(default=None, ge=0, le=20)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    batch_invariant: bool = False
    repetition_detection: RepetitionDetection | None = None

    @model_validator(mode="after")
    def _possible(self) -> EngineChatRequest:
        if self.n > 1 and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs are told of one answer; leave n out.")
        for name in neutral.without(self.model_extra or {}, neutral.REQUEST):
            if name in neutral.REQUEST:
                raise ValueError(f"{name} is not supported by this engine; leave it out.")
        if self.add_generation_prompt and self.continue_final_message:
            raise ValueError("Either add_generation_prompt or continue_final_message, not both.")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true.")
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs are not streamed; leave stream out.")
        stops = self.stops
        if len(stops) > 16 or any(not s for s in stops):
            raise ValueError("stop takes up to 16 strings, none of them empty.")
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def repetition(self) -> Repetition | None:
        told = self.repetition_detection
        if told is None:
            return None
        return Repetition(told.max_pattern_size, told.min_pattern_size, told.min_count)

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer; None: as many as the context leaves."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class LoglikelihoodRequest(_In):
    """How likely each of some answers is after the messages: lm-eval's `loglikelihood`, of several at once."""

    model: str
    messages: list[EngineMessage] = Field(min_length=1)
    continuations: list[str] = Field(min_length=1, max_length=64)


class LoadAdapter(_In):
    lora_name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    lora_path: str = Field(min_length=1)


class UnloadAdapter(_In):
    lora_name: str


def model_card(name: str, parent: str | None, root: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "comfyloop",
        "root": root,
        "parent": parent,
    }


def usage(prompt: int, answer: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def choice(index: int, text: str, reason: str, logprobs: list[dict[str, Any]] | None) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
        "finish_reason": reason,
    }


def completion(id: str, model: str, choices: list[dict[str, Any]], counts: dict[str, Any]) -> dict[str, Any]:
    return {**_head(id, model, "chat.completion"), "choices": choices, "usage": counts}


def loglikelihood(model: str, scores: list[list[float]], counts: dict[str, Any]) -> dict[str, Any]:
    data = [{"index": index, "logprobs": logprobs} for index, logprobs in enumerate(scores)]
    return {"object": "list", "model": model, "data": data, "usage": counts}


def chunk(
    id: str,
    model: str,
    delta: dict[str, Any],
    *,
    index: int = 0,
    reason: str | None = None,
    logprobs: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    told = {
        "index": index,
        "delta": delta,
        "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
        "finish_reason": reason,
    }
    return {**_head(id, model, "chat.completion.chunk"), "choices": [told]}


def usage_chunk(id: str, model: str, counts: dict[str, Any]) -> dict[str, Any]:
    return {**_head(id, model, "chat.completion.chunk"), "choices": [], "usage": counts}


def _head(id: str, model: str, kind: str) -> dict[str, Any]:
    return {
        "id": id,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": model,
    }


def error(message: str, code: str, status: int, param: str | None = None) -> dict[str, Any]:
    kinds = {
        400: "invalid_request_error",
        404: "not_found_error",
        409: "conflict_error",
        413: "invalid_request_error",
    }
    kind = kinds.get(status, "rate_limit_error" if status == 429 else "server_error")
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}
