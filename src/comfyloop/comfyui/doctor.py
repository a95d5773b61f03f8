"""What a ComfyUI lacks to work with ComfyLoop, in words."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from comfyloop.comfyui.link import NAME, custom_nodes, pack_folder
from comfyloop.errors import InvalidInput

OLDEST = (0, 3, 64)


@dataclass(frozen=True)
class Finding:
    """`state` is "ok", "warning" (works, but not all of it) or "missing"; `mend` says what to do."""

    what: str
    state: Literal["ok", "warning", "missing"]
    says: str
    mend: str = ""


def doctor(path: Path) -> list[Finding]:
    """Look at the ComfyUI at `path`: its version, the pack, and the service that its settings name."""
    try:
        nodes = custom_nodes(path)
    except InvalidInput as error:
        return [Finding("ComfyUI", "missing", error.message, error.mend)]
    return [_version(path), _pack(path, nodes / NAME), _service(path)]


def _version(path: Path) -> Finding:
    file = path / "comfyui_version.py"
    found = (
        re.search(r'__version__\s*=\s*"(\d+)\.(\d+)\.(\d+)', file.read_text("utf-8"))
        if file.exists()
        else None
    )
    if found is None:
        return Finding("ComfyUI", "warning", "Its version cannot be told.", "0.3.64 or newer is needed.")
    version = tuple(int(part) for part in found.groups())
    name = ".".join(found.groups())
    if version < OLDEST:
        return Finding("ComfyUI", "missing", f"It is {name}.", "Update it: 0.3.64 or newer is needed.")
    return Finding("ComfyUI", "ok", f"It is {name}.")


def _pack(path: Path, target: Path) -> Finding:
    mend = f"Run `comfyloop comfyui link {path}` and start ComfyUI again."
    if target.is_symlink() and not target.exists():
        return Finding("node pack", "missing", f"{target} points to nothing.", mend)
    if not (target / "pack.py").exists():
        return Finding("node pack", "missing", "It is not in custom_nodes.", mend)
    if target.resolve() == pack_folder().resolve():
        return Finding("node pack", "ok", "It is linked.")
    ours, theirs = (_declared(folder / "pyproject.toml") for folder in (pack_folder(), target))
    if ours != theirs:
        return Finding(
            "node pack", "warning", f"Version {theirs} is there; this ComfyLoop brings {ours}.", mend
        )
    return Finding("node pack", "ok", f"It is there, version {theirs}.")


def _declared(file: Path) -> str:
    found = (
        re.search(r'^version\s*=\s*"([^"]+)"', file.read_text("utf-8"), re.MULTILINE)
        if file.exists()
        else None
    )
    return found[1] if found else "unknown"


def _service(path: Path) -> Finding:
    file = path / "user" / "comfyloop" / "settings.json"
    url, token = "http://127.0.0.1:8265", ""
    if file.exists():
        try:
            settings = json.loads(file.read_text("utf-8"))
            url, token = str(settings.get("url", url)), str(settings.get("token", ""))
        except (ValueError, AttributeError):
            return Finding("settings", "missing", f"{file} cannot be read.", "Mend or delete it.")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/v1/projects", headers=headers, timeout=5, trust_env=False)
        answer.raise_for_status()
        names = [project["name"] for project in answer.json()["items"]]
    except httpx.HTTPStatusError as error:
        if error.response.status_code == 401:
            return Finding(
                "service", "missing", f"{url} refuses the token.", "Set the right one in ComfyLoop's sidebar."
            )
        return Finding("service", "missing", f"{url} answers {error.response.status_code}.", "See its log.")
    except (httpx.HTTPError, httpx.InvalidURL):
        return Finding(
            "service",
            "missing",
            f"Nothing answers at {url}.",
            "Start it with `comfyloop up`, or set its URL in the sidebar.",
        )
    except (ValueError, KeyError, TypeError):
        return Finding(
            "service",
            "missing",
            f"What answers at {url} is not ComfyLoop.",
            "Set the service's URL in the sidebar.",
        )
    return Finding("service", "ok", f"{url} answers; projects: {', '.join(names)}.")
