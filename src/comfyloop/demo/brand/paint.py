"""The process that draws: `python -m comfyloop.demo.brand.paint JOB`, with a job that `painter.py` has written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from comfyloop.errors import ComfyLoopError
from comfyloop.train.image.render import draw
from comfyloop.train.judge.judge import load_with_adapter
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.specs.image import ImageTrainSpec


def paint(job: Path) -> None:
    """Draw every picture of the job into its folder, as PNG.

    Raises:
        ModelError: The model or the LoRA cannot be used.
    """
    job_spec = json.loads(job.read_text(encoding="utf-8"))
    spec = ImageTrainSpec(model=job_spec["model"], train="", cache=job_spec["cache"])
    trainable = load_with_adapter(RunDirectory(job.parent), spec, job_spec["lora"])
    for drawing in job_spec["drawings"]:
        image = draw(trainable, drawing["prompt"], drawing["seed"])
        image.save(Path(job_spec["folder"]) / drawing["file"], format="PNG")


def main() -> int:
    try:
        paint(Path(sys.argv[1]))
    except ComfyLoopError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
