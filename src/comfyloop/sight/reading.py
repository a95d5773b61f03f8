"""What is written in pictures, Chinese and English, by RapidOCR: python -m comfyloop.sight.reading

Each answer is {"texts": lines of which it is rather sure, "share": of the picture's area that they cover}.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from rapidocr import RapidOCR

from comfyloop.sight.program import answer_all

SURE = 0.7


def read(reader: Any, image: Image.Image) -> dict[str, Any]:
    found = reader(np.ascontiguousarray(np.asarray(image)[..., ::-1]))  # it takes blue first, as OpenCV does
    if found.txts is None:
        return {"texts": [], "share": 0.0}
    sure = [place for place, score in enumerate(found.scores) if score >= SURE]
    covered = sum(_area(found.boxes[place]) for place in sure)
    return {
        "texts": [found.txts[place] for place in sure],
        "share": round(min(1.0, covered / (image.width * image.height)), 4),
    }


def _area(corners: Any) -> float:
    """Of a box with four corners."""
    x, y = np.asarray(corners, dtype=float).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def main() -> None:
    reader = RapidOCR(params={"Global.log_level": "error"})
    answer_all(lambda image: read(reader, image))


if __name__ == "__main__":
    main()
