"""Passes conversations to a model's own processor, in the same way for training and serving.

transformers loads the processor of a model that also accepts videos (Qwen-VL, SmolVLM, InternVL, LLaVA-OneVision)
only if torchvision is installed, although only its video part needs it. Trainer and engine use pictures only, so
without torchvision the same processor is built without that part.
"""

from __future__ import annotations

from typing import Any

from comfyloop.models.plain_text import Speller


def load_processor(model: str, config: Any) -> Any:
    """The processor of `model`, a directory or hub id, whose configuration is `config`.

    Raises:
        OSError, ValueError, KeyError, ImportError: as transformers does, when it cannot be read.
    """
    from transformers import AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    if type(config) in PROCESSOR_MAPPING and not is_torchvision_available():
        processor = PROCESSOR_MAPPING[type(config)]
        if "video_processor" in processor.get_attributes():
            return without_video(processor).from_pretrained(model)
    return AutoProcessor.from_pretrained(model)


class _NoVideo:
    """A placeholder where some processors look up video defaults even without videos."""

    num_frames = fps = None


def without_video(processor: Any) -> Any:
    """The same processor class, for pictures and text alone."""
    parts = processor.get_attributes()

    class Processor(processor):  # type: ignore[misc]
        video_processor = _NoVideo()

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [part for part in parts if part != "video_processor"]

        @classmethod
        def from_args_and_dict(cls, args: list[Any], *rest: Any, **more: Any) -> Any:
            arguments = iter(args)  # None where the video part would stand: some classes insist on its place
            whole = [None if part == "video_processor" else next(arguments) for part in parts]
            return super().from_args_and_dict(whole, *rest, **more)

    Processor.__name__ = Processor.__qualname__ = processor.__name__
    return Processor


def takes_parts(processor: Any) -> bool:
    """Whether the chat template reads content as a list of parts; one for strings would print the list itself."""
    probe = [{"role": "user", "content": [{"type": "text", "text": "probe"}]}]
    try:
        text: str = processor.apply_chat_template(probe, tokenize=False)
    except Exception:  # a template is a program: it raises what it likes
        return False
    return "probe" in text and "'type'" not in text and '"type"' not in text


def tokens_of(speller: Speller, tokenizer: Any, text: str, sees_images: bool) -> list[int]:
    """Token ids of a rendered conversation without images."""
    return speller.tokens_of(text, _begins(tokenizer, text, sees_images))


def fields_of(speller: Speller, processor: Any, text: str, pictures: list[Any]) -> dict[str, Any]:
    """What a processor makes of a rendered conversation and its images, as tensors: `input_ids` [1, L], ...

    The images are given as those of one conversation, as `apply_chat_template` of transformers gives them: a
    processor may look at several images of one conversation otherwise than at one (LLaVA-OneVision).
    """
    return speller.fields_of(text, pictures, _begins(processor.tokenizer, text, sees_images=True))


def _begins(tokenizer: Any, text: str, sees_images: bool) -> bool:
    """Whether a rendered conversation still lacks the tokens with which the tokenizer begins a text.

    As `apply_chat_template(tokenize=True)` of transformers: a tokenizer's template is complete, a processor's
    unless it begins with the BOS token.
    """
    bos = tokenizer.bos_token
    return sees_images and not (bos is not None and text.startswith(bos))
