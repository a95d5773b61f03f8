"""Vectors by a CLIP-like model (CLIP, SigLIP, Chinese-CLIP): python -m comfyloop.sight.clip MODEL"""

from __future__ import annotations

import sys

from comfyloop.sight.program import answer_all, packed
from comfyloop.train.judge.scorer import Clip


def main() -> None:
    clip = Clip(sys.argv[1])
    answer_all(lambda image: packed(clip.embed_image(image)), lambda text: packed(clip.embed_text(text)))


if __name__ == "__main__":
    main()
