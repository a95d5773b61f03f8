"""Prior preservation: pictures that the model drew for the same prompts before training (Ruiz et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from comfyloop.durable import replace_whole
from comfyloop.train.image import lora
from comfyloop.train.image.render import draw
from comfyloop.train.image.rows import PictureRow, picture_at
from comfyloop.train.image.trainable import TrainableImageModel
from comfyloop.train.run.control import Control
from comfyloop.train.run.log import RunLog


def draw_prior(
    trainable: TrainableImageModel,
    rows: Sequence[PictureRow],
    count: int,
    folder: Path,
    log: RunLog,
    control: Control,
) -> list[PictureRow]:
    """`count` pictures of the rows' captions in turn, without trigger words, by the model without any LoRA.

    Those that are in the folder already, from a run that was stopped, are kept.
    """
    folder.mkdir(exist_ok=True)
    captions = list(dict.fromkeys(row.caption for row in rows))
    prior_rows = []
    trainable.eval()
    for number in range(count):
        control.check()
        path = folder / f"{number}.png"
        caption = captions[number % len(captions)]
        if not path.exists():
            with lora.reference(trainable.model, None):
                image = draw(trainable, caption, seed=number)
            replace_whole(path, partial(image.save, format="PNG"))
            log.say(f"drew prior picture {number + 1} of {count}")
        prior_rows.append(PictureRow(number, f"prior {number}", caption, picture_at(path)))
    return prior_rows
