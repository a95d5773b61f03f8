"""A chat request as clients send it: OpenAI's fields, those that this service can honour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, field_validator

from comfyloop import modalities
from comfyloop.records import Sampling
from comfyloop.serve import neutral
from comfyloop.serve.chat_format import (
    ImageContent,
    RepetitionDetection,
    ResponseFormat,
    StreamOptions,
    TextContent,
    Wire,
)

if TYPE_CHECKING:
    Content = TextContent | ImageContent | modalities.Part
else:  # OpenAI's two, and what else a model reads as a text, as it is stored
    _FURTHER = [
        m.part for m in modalities.MODALITIES.values() if m is not modalities.TEXT and not m.holds_bytes
    ]
    Content = Annotated[Union[(TextContent, ImageContent, *_FURTHER)], Field(discriminator="type")]


class ChatMessage(Wire):
    harmless = neutral.MESSAGE

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Content] | None = None
    name: str | None = Field(default=None, description="Accepted, not used.")


class ChatRequest(Wire):
    """OpenAI's chat request.

    A field that would change the answer and cannot be honoured is refused. What changes nothing is taken: nulls, and
    defaults that clients write out, such as `tools: []`, `logit_bias: {}` or `repetition_penalty: 1`.
    """

    harmless = neutral.REQUEST

    model: str = Field(
        description="`acme` (live version), `acme@17`, `acme@base`, `acme@candidate`.", examples=["acme"]
    )
    messages: list[ChatMessage] = Field(min_length=1, max_length=512)
    temperature: float | None = Field(default=None, ge=0, le=2, description="Default 0: greedy.")
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, le=32768, description="Default 256.")
    max_completion_tokens: int | None = Field(default=None, ge=1, le=32768)
    stop: str | list[str] | None = None
    seed: int | None = Field(
        default=None,
        ge=-(2**63),
        lt=2**64,
        description="As ComfyUI's, up to 2^64 - 1; OpenAI's end at 2^63 - 1.",
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(
        default=None, ge=1, le=8, description="So many answers; each is a generation, named in its choice."
    )
    response_format: ResponseFormat | None = None

    repetition_detection: RepetitionDetection | None = Field(
        default=None,
        description="vLLM's: end an answer that goes round in a circle, with the finish_reason `repetition`.",
    )

    examples: bool | None = Field(
        default=None,
        description="false: answer without past edits in the prompt, whatever the setting `examples` says.",
    )

    # Accepted, since clients send them by habit, and without effect on the answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > 16 or any(not 0 < len(text) <= 256 for text in stops):
            raise ValueError("at most 16 stop strings of 1 to 256 characters")
        return stop

    @property
    def limited(self) -> bool:
        """Whether the client says how long the answer may be."""
        return self.max_completion_tokens is not None or self.max_tokens is not None

    @property
    def sampling(self) -> Sampling:
        default = Sampling()
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            max_tokens=self.max_completion_tokens or self.max_tokens or default.max_tokens,
            stop=stops,
            seed=self.seed,
        )
