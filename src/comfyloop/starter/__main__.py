"""Build the starter, or check it: `python -m comfyloop.starter [--cache-dir DIR] [--verify]`."""

import argparse
import sys
from pathlib import Path

from comfyloop.errors import ComfyLoopError
from comfyloop.settings import Settings

from . import ensure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m comfyloop.starter", description=__doc__)
    parser.add_argument("--cache-dir", type=Path, default=Settings().cache_dir)
    parser.add_argument(
        "--verify", action="store_true", help="hash the weights too, and rebuild if they differ"
    )
    args = parser.parse_args()

    def show(stage: str, fraction: float) -> None:
        print(f"{fraction:4.0%}  {stage}", file=sys.stderr, flush=True)

    try:
        print(ensure(args.cache_dir, show, verify=args.verify))
    except ComfyLoopError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
