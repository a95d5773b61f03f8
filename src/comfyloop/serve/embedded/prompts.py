"""Messages and images become token ids and pixels, by the model's own chat template and processor."""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from comfyloop import data_urls
from comfyloop.errors import InvalidInput, TooLarge
from comfyloop.serve.embedded.loading import Loaded
from comfyloop.serve.embedded.protocol import ImageContent, Message


@dataclass(frozen=True)
class Prompt:
    ids: list[int]
    images: tuple[str, ...] = ()  # SHA-256 of each image's bytes
    inputs: dict[str, Tensor] = field(default_factory=dict)  # of the processor: pixels, grids, token types


class PromptMaker:
    """Builds prompts for one model. Any thread may call it; encoding is done by one at a time."""

    def __init__(self, loaded: Loaded, max_image_pixels: int) -> None:
        self._loaded = loaded
        self._max_pixels = max_image_pixels
        self._lock = threading.Lock()
        self._template = loaded.processor or loaded.tokenizer
        self._takes_parts = self._probe_parts()

    def make(
        self, messages: list[Message], *, add_generation_prompt: bool, continue_final_message: bool
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
            if not decoded:
                ids = self._loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
                return Prompt(_some(ids))
            try:
                features = self._loaded.processor(  # type: ignore[misc]
                    text=[text],
                    images=[image for image, _ in decoded],
                    add_special_tokens=False,
                    return_tensors="pt",
                )
            except (ValueError, IndexError, TypeError) as error:
                raise InvalidInput(f"The model's processor refuses these images: {error}") from error
        inputs = {k: v for k, v in features.items() if isinstance(v, Tensor)}
        ids = inputs.pop("input_ids")[0].tolist()
        inputs.pop("attention_mask", None)
        return Prompt(_some(ids), tuple(digest for _, digest in decoded), inputs)

    def _render(
        self, messages: list[Message], add_generation_prompt: bool, continue_final_message: bool
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

    def _plain(self, message: Message) -> dict[str, Any]:
        content = message.content
        if self._takes_parts:
            parts = (
                [{"type": "text", "text": content}]
                if isinstance(content, str)
                else [
                    {"type": "image"} if isinstance(p, ImageContent) else {"type": "text", "text": p.text}
                    for p in content
                ]
            )
            return {"role": message.role, "content": parts}
        if not isinstance(content, str):
            mark = getattr(self._loaded.processor, "image_token", "<image>")
            content = "".join(f"{mark}\n" if isinstance(p, ImageContent) else p.text for p in content)
        return {"role": message.role, "content": content}

    def _probe_parts(self) -> bool:
        """Whether the template reads content as a list of parts; one for strings prints the list itself."""
        if self._loaded.processor is None or getattr(self._template, "chat_template", None) is None:
            return False
        probe = [{"role": "user", "content": [{"type": "text", "text": "probe"}]}]
        try:
            text = self._template.apply_chat_template(probe, tokenize=False)
        except Exception:
            return False
        return "probe" in text and "'type'" not in text and '"type"' not in text

    def _decode(self, part: ImageContent, number: int) -> tuple[Image.Image, str]:
        data = data_urls.decode(part.image_url.url, f"Image {number}")
        return decode_image(data, f"Image {number}", self._max_pixels), hashlib.sha256(data).hexdigest()


def decode_image(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Decode `data` whole, as RGB.

    Raises:
        InvalidInput: empty, truncated or not an image.
        TooLarge: more pixels than `max_pixels`, told by the header before any is decoded.
    """
    if not data:
        raise InvalidInput(f"{name} has 0 bytes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "GIF", "BMP"))
        if image.width * image.height > max_pixels:
            raise TooLarge(f"{name} has {image.width} x {image.height} pixels; {max_pixels} are allowed.")
        image.load()
        return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise TooLarge(f"{name} has more pixels than may be decoded; {max_pixels} are allowed.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidInput(f"{name} is not a whole PNG, JPEG, WebP, GIF or BMP image.") from error


def _some(ids: list[int]) -> list[int]:
    if not ids:
        raise InvalidInput("The messages make an empty prompt.", "Send at least one message with text.")
    return ids
