"""What gateway and engine read alike of a chat request: parts of messages, the form of an answer, options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from comfyloop.serve import neutral


class Wire(BaseModel):
    """What is sent, but for the fields that change nothing as they are sent."""

    model_config = ConfigDict(extra="forbid")
    harmless: ClassVar[Mapping[str, neutral.Values]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_what_changes_nothing(cls, sent: Any) -> Any:
        return neutral.without(sent, cls.harmless) if isinstance(sent, dict) else sent


class _Content(Wire):
    harmless = neutral.PART


class TextContent(_Content):
    type: Literal["text"]
    text: str


class ImageUrl(Wire):
    url: str = Field(
        description="A data URL, `comfyloop://<sha256>` of an upload, or an http(s) URL of an allowed host."
    )
    detail: Literal["auto", "low", "high", "original"] | None = Field(
        default=None, description="Accepted, not used."
    )


class ImageContent(_Content):
    type: Literal["image_url"]
    image_url: ImageUrl


class StreamOptions(Wire):
    include_usage: bool = False
    include_obfuscation: bool | None = Field(default=None, description="Accepted, not used.")


class TextFormat(Wire):
    type: Literal["text", "json_object"]


class JsonSchema(Wire):
    name: str = Field(min_length=1, max_length=64)
    schema_: dict[str, Any] = Field(alias="schema", description="The answer follows it.")
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(Wire):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | SchemaFormat, Field(discriminator="type")]


class RepetitionDetection(Wire):
    max_pattern_size: int = Field(ge=1, le=256, description="Longest pattern that is looked for, in tokens.")
    min_pattern_size: int = Field(default=1, ge=1)
    min_count: int = Field(ge=2, description="So many times in a row.")

    @model_validator(mode="after")
    def _possible(self) -> RepetitionDetection:
        if self.min_pattern_size > self.max_pattern_size:
            raise ValueError("min_pattern_size is more than max_pattern_size")
        return self
