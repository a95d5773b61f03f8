"""Write the image starter's checkpoint: `python -m comfyloop.starter.image [--cache-dir DIR] [--comfyui DIR]`."""

import argparse
import shutil
import sys
from pathlib import Path

from comfyloop.durable import replace_whole
from comfyloop.errors import ComfyLoopError, NotFound
from comfyloop.settings import Settings

from . import ensure


def place_in(comfyui: Path, checkpoint: Path) -> Path:
    """The checkpoint in ComfyUI's `models/checkpoints`, as a hard link where both are on one disk.

    Raises:
        NotFound: `comfyui` is not a folder of ComfyUI.
    """
    if not (comfyui / "models").is_dir():
        raise NotFound(f"{comfyui} is no folder of ComfyUI: it has no models in it.", "Name ComfyUI's.")
    folder = comfyui / "models" / "checkpoints"
    folder.mkdir(exist_ok=True)  # a data folder gets its parts as they are needed
    target = folder / checkpoint.name
    if not target.exists():  # a running ComfyUI may have it open: one of that name is left alone
        replace_whole(target, lambda draft: _link_or_copy(checkpoint, draft))
    return target


def _link_or_copy(checkpoint: Path, target: Path) -> None:
    try:
        target.hardlink_to(checkpoint)
    except OSError:
        shutil.copyfile(checkpoint, target)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m comfyloop.starter.image", description=__doc__)
    parser.add_argument("--cache-dir", type=Path, default=Settings().cache_dir)
    parser.add_argument("--comfyui", type=Path, help="put it into this ComfyUI's models/checkpoints")
    parser.add_argument("--verify", action="store_true", help="hash it too, and write it anew if it differs")
    args = parser.parse_args()

    def show(stage: str, fraction: float) -> None:
        print(f"{fraction:4.0%}  {stage}", file=sys.stderr, flush=True)

    try:
        checkpoint = ensure(args.cache_dir, show, verify=args.verify)
        print(checkpoint if args.comfyui is None else place_in(args.comfyui, checkpoint))
    except ComfyLoopError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
