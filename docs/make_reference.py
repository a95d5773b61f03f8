"""Write docs/reference from the code that it describes: `make docs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pydantic_core import PydanticUndefined

HEAD = """\
# Settings

Each is a `COMFYLOOP_*` environment variable or a key of `comfyloop.toml`, in the home directory or in the working
directory; later ones win: default, file, environment, command line. Written by `make docs`.

| setting | variable | default | what it is |
|---|---|---|---|
"""


def settings_page() -> str:
    from comfyloop.settings import Settings

    rows = []
    for name, field in Settings.model_fields.items():
        made = field.default is PydanticUndefined
        value = field.default_factory() if made and field.default_factory else field.default  # type: ignore[call-arg]
        shown = str(value).replace(str(Path.home()), "~") if value not in ("", ()) else ""
        cells = [
            f"`{name}`",
            f"`COMFYLOOP_{name.upper()}`",
            f"`{shown}`" if shown else "",
            field.description or "",
        ]
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    for variable in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        os.environ.pop(variable, None)
    reference = Path(__file__).parent / "reference"
    (reference / "settings.md").write_text(settings_page(), encoding="utf-8")
    sys.stdout.write(f"{reference / 'settings.md'}\n")
