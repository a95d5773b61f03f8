"""Picks and ratings of images, turned into examples for whoever wrote the prompt.

A prompt that a model wrote has been judged by what was made of it: pictures picked or rated 4-5 speak for it,
pictures rated 1-2 speak against it unless another one of it was kept. What the person thinks of the prompts of
one brief gives::

    sft         the brief and each prompt that led to a kept picture
    preference  a prompt that led to a kept picture over one that led to none, from the same brief and person

The prompt that was drawn counts: where the person had changed the text, theirs and not the model's. One that was
broken off (it went in a circle) is nothing to learn, however its pictures please.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from comfyloop.curate.samples import Draft, Source, make
from comfyloop.records import Feedback, Generation, ImagePicked, ImageRated, Message

_Verdicts = dict[str, tuple[list[Feedback], bool, bool]]
"""Prompt -> the feedback about its pictures, whether one of them was kept, and whether it is whole."""


def prompt_drafts(
    items: Sequence[ImagePicked | ImageRated], generations: Mapping[str, Generation]
) -> list[Draft]:
    """All at once, since a prompt that was not wanted says something only beside one that was."""
    briefs: dict[tuple[str, tuple[Message, ...]], _Verdicts] = {}
    for item in items:
        generation = generations.get(item.generation) if item.generation else None
        kept = isinstance(item, ImagePicked) or item.rating > 3
        if generation is None or (isinstance(item, ImageRated) and item.rating == 3):
            continue
        prompt = (item.prompt or generation.answer).strip()
        verdicts = briefs.setdefault((item.author, generation.messages), {})
        whole = not generation.broken_off or prompt != generation.answer.strip()
        about, kept_before, whole_before = verdicts.get(prompt, ([], False, False))
        verdicts[prompt] = ([*about, item], kept_before or kept, whole_before or whole)
    drafts: list[Draft] = []
    for (_, brief), verdicts in briefs.items():
        good = {prompt: about for prompt, (about, kept, whole) in verdicts.items() if kept and whole}
        bad = {prompt: about for prompt, (about, kept, _) in verdicts.items() if not kept}
        for prompt, about in good.items():
            messages = (*brief, Message.of("assistant", prompt))
            drafts.append(Draft(make("sft", messages, Source.of(*about), slice="prompt")))
            for worse, against in bad.items():
                source = Source.of(*against, *about)
                drafts.append(
                    Draft(make("preference", messages, source, rejected=worse, slice="prompt"), worse)
                )
    return drafts
