"""Captions for pictures that have none, written by a model and looked at by a person before they are learned."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from comfyloop import modalities
from comfyloop.client.client import Client
from comfyloop.errors import ComfyLoopError, EngineUnavailable, InvalidInput, NotFound
from comfyloop.media import data_urls
from comfyloop.records import ImagePicked, Message, SampleUploaded
from comfyloop.sources import captions, tree_of

TEMPLATE = "Describe this picture in one sentence."


@dataclass(frozen=True)
class CaptionOptions:
    """How captions are written, and what becomes of them.

    Attributes:
        template: What the model is asked; `{name}` stands for the words of the picture's file name.
        question: The captions are answers to this, for the language side; empty: prompts, for the image side.
        model: Who writes them; empty: the project's live version, or what an engine has.
        review: A person looks at each before it is learned.
    """

    template: str = TEMPLATE
    question: str = ""
    model: str = ""
    max_tokens: int = 120
    author: str = "local"
    review: bool = True


@dataclass(frozen=True)
class Captioned:
    """What became of one picture: its feedback and caption, or the problem. No caption and no problem: it had one."""

    picture: str
    feedback: str = ""
    caption: str = ""
    problem: str = ""


def without_caption(path: Path) -> list[Path]:
    """The pictures of a folder, or the one picture, beside which there is no text.

    Raises:
        InvalidInput: There is none.
    """
    tree = tree_of(path)
    pictures = [tree.path(name) for name in tree.pictures if captions.beside(tree, name) is None]
    if not pictures:
        beside = " without a text beside it" if tree.pictures else ""
        raise InvalidInput(f"There is no picture{beside} in {path.name}.", "Name a folder of pictures.")
    return pictures


def write(
    client: Client,
    pictures: Sequence[Path],
    wanted: CaptionOptions,
    engine: Client | None = None,
    tell: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[Captioned]:
    """Each caption is stored as soon as it is written; begun again, those that are there are passed over.

    Args:
        engine: Another OpenAI-compatible service that writes them; None: the service itself.

    Raises:
        EngineUnavailable: Nobody answers: the next picture would fail likewise.
    """
    project = client.project or client.default_project()
    model = wanted.model or (_first_model(engine) if engine is not None else project)
    for number, picture in enumerate(pictures):
        tell(number, len(pictures))
        try:
            yield _one(client, picture, wanted, engine, project, model)
        except EngineUnavailable:
            raise
        except (ComfyLoopError, OSError) as error:
            yield Captioned(str(picture), problem=str(error))
    tell(len(pictures), len(pictures))


def _one(
    client: Client, picture: Path, wanted: CaptionOptions, engine: Client | None, project: str, model: str
) -> Captioned:
    sha = client.upload_image(picture.read_bytes())
    question = wanted.template.replace("{name}", _words(picture.stem))
    id = _id_of(project, sha, wanted.question, question, model)
    try:
        client.call("GET", f"/v1/feedback/{id}")
        return Captioned(str(picture), id)
    except NotFound:
        pass
    text = " ".join(_asked(client, engine, model, question, picture, wanted.max_tokens).split())
    if not text:
        return Captioned(str(picture), problem="The model answered nothing.")
    comment = f"written by {model}"[:4000]
    common = {"id": id, "project": project, "author": wanted.author, "comment": comment}
    item: SampleUploaded | ImagePicked
    if wanted.question:
        messages = (Message.of("user", wanted.question, [sha]), Message.of("assistant", text))
        item = SampleUploaded.model_validate({**common, "messages": messages, "to_review": wanted.review})
    else:
        item = ImagePicked.model_validate(
            {**common, "picked": (sha,), "prompt": text, "to_review": wanted.review}
        )
    client.send_feedback([item])
    return Captioned(str(picture), id, text)


def _asked(
    client: Client, engine: Client | None, model: str, question: str, picture: Path, max_tokens: int
) -> str:
    if engine is None:
        return client.ask(question, [picture], model=model, max_tokens=max_tokens, examples=False).text
    content = modalities.asked(question, [data_urls.encode(picture.read_bytes())])
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0.0,
    }
    return str(engine.call("POST", "/v1/chat/completions", body)["choices"][0]["message"]["content"] or "")


def _first_model(engine: Client) -> str:
    models = engine.call("GET", "/v1/models")["data"]
    if not models:
        raise InvalidInput(f"{engine.url} has no model.", "Name one with --model.")
    return str(models[0]["id"])


def _words(stem: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", stem))


def _id_of(*parts: str) -> str:
    return "caption_" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
