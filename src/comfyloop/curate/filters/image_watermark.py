"""Watermarks, and pictures that are mostly text, read by RapidOCR (`comfyloop[ocr]`). Off by default: it takes some
seconds a picture, once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pydantic import Field

from comfyloop.curate.filters import _pictures
from comfyloop.curate.rulings import Filter, Ground, Options, Ruling, against
from comfyloop.curate.samples import Draft

MARKS = re.compile(
    r"[©®]|copyright|watermark|all rights reserved|(?:shutter|i)stock|getty ?images|alamy|dreamstime|depositphotos"
    r"|123rf|adobe ?stock|freepik|\bwww\.|\.com\b|\bsample\b|\bpreview\b"
    r"|水印|版权所有|视觉中国|摄图网|千图网|包图网|小红书|抖音",
    re.IGNORECASE,
)


class Watermark(Options):
    on: bool = Field(default=False, description="Whether it is applied.")
    most: float = Field(default=0.3, ge=0, le=1, description="Most of a picture's area that text may cover.")


def judge(drafts: Sequence[Draft], ground: Ground, options: Watermark) -> Iterator[Ruling]:
    for draft, told in zip(drafts, _pictures.asked(drafts, ground, "reading"), strict=True):
        if isinstance(told, Ruling):
            yield told
            continue
        marks = [mark[0] for one in told if (mark := MARKS.search(" ".join(one["texts"])))]
        share = max(one["share"] for one in told)
        if marks:
            yield against(draft, f"{marks[0]!r} is written in the picture", share)
        elif share > options.most:
            yield Ruling("unsure", f"text covers {share:.0%} of the picture", share)
        else:
            yield Ruling("keep", score=share)


FILTER = Filter(
    "image_watermark", "text or a watermark is in a picture of it", judge, rank=114, options=Watermark
)
