"""What every program of this room is: it reads questions, answers each, and ends with its input."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from comfyloop import platforms
from comfyloop.media.decoding import read_picture

PIXELS = 1024 * 1024
MOST_PIXELS = 2**28


def answer_all(
    of_picture: Callable[[Image.Image], Any] | None, of_text: Callable[[str], Any] | None = None
) -> None:
    """Answers are JSON; one that raises is null. What libraries print goes to the error output."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    platforms.step_back(10)  # somebody may be drawing
    for line in sys.stdin:
        question = json.loads(line)
        answer = None
        try:
            if "picture" in question and of_picture is not None:
                answer = of_picture(read_picture(base64.b64decode(question["picture"]), PIXELS, MOST_PIXELS))
            elif "text" in question and of_text is not None:
                answer = of_text(question["text"])
        except Exception as error:  # one damaged picture must not cost the others their answers
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        print(json.dumps(answer), file=out, flush=True)


def packed(vector: Any) -> str:
    """A vector of length 1, in half precision."""
    flat = np.asarray(vector, dtype=np.float32).ravel()
    return base64.b64encode((flat / max(float(np.linalg.norm(flat)), 1e-9)).astype("<f2").tobytes()).decode()
