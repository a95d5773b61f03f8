"""Messages and images become token ids and pixels, by the model's own chat template and processor."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from comfyloop.errors import InvalidInput, TooLarge
from comfyloop.media import data_urls
from comfyloop.media.decoding import BadPicture, TooManyPixels, read_picture
from comfyloop.modalities import slots
from comfyloop.models.plain_text import Speller
from comfyloop.models.processors import fields_of, takes_parts, tokens_of
from comfyloop.serve.chat_format import ImageContent, TextContent
from comfyloop.serve.embedded.loading import LoadedModel
from comfyloop.serve.embedded.protocol import EngineMessage


@dataclass(frozen=True)
class Prompt:
    ids: list[int]
    images: tuple[str, ...] = ()  # SHA-256 of each image's bytes
    inputs: dict[str, Tensor] = field(default_factory=dict)  # of the processor: pixels, grids, token types


class PromptMaker:
    """Builds prompts for one model. Any thread may call it; encoding is done by one at a time."""

    def __init__(self, loaded: LoadedModel, max_pixels: int, max_image_pixels: int) -> None:
        self._loaded = loaded
        self._max_pixels = max_pixels
        self._max_image_pixels = max_image_pixels
        self._lock = threading.Lock()
        # Not a token holds more; without this, a text that can never fit would be cut into tokens for a minute.
        self._most_chars = loaded.context * max(map(len, loaded.tokenizer.get_vocab()), default=1)
        self._template = loaded.processor or loaded.tokenizer
        self._speller = Speller(self._template)
        self._takes_parts = loaded.processor is not None and takes_parts(loaded.processor)

    def make(
        self, messages: list[EngineMessage], *, add_generation_prompt: bool, continue_final_message: bool
    ) -> Prompt:
        """Raises InvalidInput for what the model cannot read: images it cannot see, a bad image, a role."""
        pictures = [
            part
            for m in messages
            if not isinstance(m.content, str)
            for part in m.content
            if part.type == "image_url"
        ]
        if pictures and self._loaded.processor is None:
            raise InvalidInput(
                "This model reads text only; it cannot see images.", "Serve a vision-language model."
            )
        decoded = [self._decode(part, number) for number, part in enumerate(pictures, 1)]
        with self._lock:
            text = self._render(messages, add_generation_prompt, continue_final_message)
            if len(text) > self._most_chars:
                raise InvalidInput(
                    f"The prompt has {len(text)} characters, more than the {self._loaded.context} tokens that the "
                    "model reads can hold.",
                    "Leave out what is long past.",
                )
            if not decoded:
                sees_images = self._loaded.processor is not None
                return Prompt(_some(tokens_of(self._speller, self._loaded.tokenizer, text, sees_images)))
            try:
                pixels = [image for image, _ in decoded]
                fields = fields_of(self._speller, self._loaded.processor, text, pixels)
            except Exception as error:  # the model's own code: it raises what it likes
                told = str(error) or type(error).__name__
                raise InvalidInput(f"The model's processor refuses these images: {told}") from error
        inputs = {k: v for k, v in fields.items() if isinstance(v, Tensor)}
        ids = inputs.pop("input_ids")[0].tolist()
        inputs.pop("attention_mask", None)
        return Prompt(_some(ids), tuple(digest for _, digest in decoded), inputs)

    def continuations(self, messages: list[EngineMessage], answers: list[str]) -> list[list[int]]:
        """Token ids of each answer as it stands behind the prompt of `messages`, with what the template closes it with.

        Raises:
            InvalidInput: the template refuses them, or an answer adds no token to the prompt.
        """
        sees_images = self._loaded.processor is not None
        with self._lock:
            prompt = self._render(messages, True, False)
            start = len(tokens_of(self._speller, self._loaded.tokenizer, prompt, sees_images))
            found = []
            for number, answer in enumerate(answers, 1):
                whole = self._render(
                    [*messages, EngineMessage(role="assistant", content=answer)], False, False
                )
                if not whole.startswith(
                    prompt
                ):  # a generation prompt of its own: the answer goes behind that
                    own = self._render([EngineMessage(role="assistant", content=answer)], False, False)
                    whole = prompt + own[max(own.rfind(self._speller.quote(answer)), 0) :]
                ids = tokens_of(self._speller, self._loaded.tokenizer, whole, sees_images)[start:]
                if not ids:
                    raise InvalidInput(f"Answer {number} adds no token to the prompt.")
                found.append(ids)
        return found

    def _render(
        self, messages: list[EngineMessage], add_generation_prompt: bool, continue_final_message: bool
    ) -> str:
        if getattr(self._template, "chat_template", None) is None:
            raise InvalidInput(
                "This model has no chat template, so it cannot be talked to by messages.",
                "Add chat_template.jinja to the model directory.",
            )
        try:
            return self._template.apply_chat_template(  # type: ignore[no-any-return]
                [self._plain(m) for m in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        except Exception as error:  # a template is a program: it raises what it likes
            raise InvalidInput(f"The model's chat template refuses these messages: {error}") from error

    def _plain(self, message: EngineMessage) -> dict[str, Any]:
        content = message.content
        given = [content] if isinstance(content, str) else [_text_of(part) for part in content]
        parts = self._speller.quote_parts(given)
        if self._takes_parts:
            return {"role": message.role, "content": slots(parts)}
        mark = getattr(self._loaded.processor, "image_token", "<image>")
        return {"role": message.role, "content": "".join(f"{mark}\n" if p is None else p for p in parts)}

    def _decode(self, part: ImageContent, number: int) -> tuple[Image.Image, str]:
        data = data_urls.decode(part.image_url.url, f"Image {number}")
        try:
            image = read_picture(data, self._max_pixels, self._max_image_pixels)
        except TooManyPixels as error:
            raise TooLarge(f"Image {number} {error}.") from None
        except BadPicture as error:
            raise InvalidInput(f"Image {number} {error}.") from None
        return image, hashlib.sha256(data).hexdigest()


def _text_of(part: TextContent | ImageContent) -> str | None:
    """The text of a part; None where an image stands."""
    return None if isinstance(part, ImageContent) else part.text


def _some(ids: list[int]) -> list[int]:
    if not ids:
        raise InvalidInput("The messages make an empty prompt.", "Send at least one message with text.")
    return ids
