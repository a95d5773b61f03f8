"""Run by ComfyUI before it loads its nodes, when this repository itself was cloned into custom_nodes.

ComfyUI looks for a package at the top of each folder there, and here the node pack is in `comfyui/`. So the few lines
that lead to it are written beside this file, once (git ignores them); where that is refused, it is said what to do.
"""

from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = '''"""Written by prestartup_script.py: leads ComfyUI to the node pack in comfyui/."""

from .comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

WEB_DIRECTORY = "./comfyui/web"
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
'''
FOLDERS = ("locales", "workflows")
"""What ComfyUI reads from the top of the folder as well: translations and templates."""


def lead_to_the_pack(folder: Path) -> str:
    """Returns what to do where it cannot be done; empty where it was."""
    package = folder / "__init__.py"
    try:
        if not package.exists():
            package.write_text(PACKAGE, "utf-8")
    except OSError as error:
        return (
            f"ComfyLoop's repository is in {folder}, and its node pack in the folder comfyui of it. ComfyUI cannot "
            f"load it from there ({error.strerror}). Move that folder to custom_nodes/comfyloop, or run "
            "`comfyloop comfyui link PATH_TO_COMFYUI`."
        )
    for name in FOLDERS:
        try:
            if not (folder / name).exists():
                (folder / name).symlink_to(Path("comfyui", name), target_is_directory=True)
        except (
            OSError
        ):  # no links here: names stay English, and the templates are opened from comfyui/workflows
            pass
    return ""


if HERE.parent.name == "custom_nodes" and (why := lead_to_the_pack(HERE)):
    print(why)
