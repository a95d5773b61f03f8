"""Picks and ratings of images, turned into examples for the image model.

``captioned_image``: an image the person kept, with the prompt it was made from. ``image_pair``: one image
preferred over another of the same prompt: a pick over what it was chosen from, or a rating of 4-5 over one of
1-2 by the same person. The prompt is the sample's last message: the only one, in the user's role, or the
assistant's answer to the brief, where a model had written it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from comfyloop.curate.samples import Draft, Source, make
from comfyloop.records import Dropped, Generation, ImagePicked, ImageRated, Message


def picked_drafts(
    item: ImagePicked, generations: Mapping[str, Generation]
) -> tuple[list[Draft], Dropped | None]:
    prompt = _prompt(item, generations)
    if not prompt:
        return [], Dropped(feedback=item.id, reason="no_prompt", detail="")
    source, messages = Source.of(item), _messages(item, generations)
    drafts = [
        Draft(
            make("captioned_image", messages, source, picked=image, repeats=item.repeats, crop=item.crop),
            to_review=item.to_review,
        )
        for image in item.picked
    ]
    drafts += [
        Draft(make("image_pair", messages, source, picked=better, over=worse, crop=item.crop))
        for better in item.picked
        for worse in item.over
        if better != worse
    ]
    return drafts, None


def rated_drafts(
    items: Sequence[ImageRated], generations: Mapping[str, Generation]
) -> tuple[list[Draft], list[Dropped]]:
    """All ratings at once, since a bad rating says something only beside a good one of the same prompt."""
    drafts: list[Draft] = []
    dropped: list[Dropped] = []
    by_prompt: dict[tuple[str, tuple[tuple[str, ...], ...]], list[ImageRated]] = {}
    for item in items:
        prompt = _prompt(item, generations)
        if item.rating == 3:
            dropped.append(Dropped(feedback=item.id, reason="neutral", detail="3 of 5"))
        elif not prompt:
            dropped.append(Dropped(feedback=item.id, reason="no_prompt"))
        else:
            by_prompt.setdefault((item.author, prompt_of(item, generations)), []).append(item)
    for ratings in by_prompt.values():
        good = [item for item in ratings if item.rating > 3]
        bad = [item for item in ratings if item.rating < 3]
        for item in good:
            messages = _messages(item, generations)
            drafts.append(Draft(make("captioned_image", messages, Source.of(item), picked=item.image)))
        for better in good:
            messages = _messages(better, generations)
            for worse in bad:
                source = Source.of(better, worse)
                drafts.append(
                    Draft(make("image_pair", messages, source, picked=better.image, over=worse.image))
                )
        if not good:
            dropped += [
                Dropped(feedback=item.id, reason="no_pair", detail="no rating of 4-5") for item in bad
            ]
    return drafts, dropped


def _prompt(item: ImagePicked | ImageRated, generations: Mapping[str, Generation]) -> str:
    generation = generations.get(item.generation) if item.generation else None
    return (item.prompt or (generation.answer if generation else "")).strip()


def prompt_of(
    item: ImagePicked | ImageRated, generations: Mapping[str, Generation]
) -> tuple[tuple[str, ...], ...]:
    """What tells one prompt from another: neither spaces nor how a letter is composed."""
    return tuple(
        (m.role, " ".join(unicodedata.normalize("NFC", m.text).split()), *m.images)
        for m in _messages(item, generations)
    )


def _messages(item: ImagePicked | ImageRated, generations: Mapping[str, Generation]) -> tuple[Message, ...]:
    generation = generations.get(item.generation) if item.generation else None
    prompt = _prompt(item, generations)
    if generation is None:
        return (Message.of("user", prompt),)
    return (*generation.messages, Message.of("assistant", prompt))
