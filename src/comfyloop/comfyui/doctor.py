"""What a ComfyUI lacks to work with ComfyLoop, in words."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from comfyloop import __version__
from comfyloop.comfyui.link import NAME, custom_nodes, pack_files, pack_folder
from comfyloop.errors import InvalidInput

OLDEST = (0, 3, 64)


@dataclass(frozen=True)
class Finding:
    """`state` is "ok", "warning" (works, but not all of it) or "missing"; `hint` says what to do."""

    what: str
    state: Literal["ok", "warning", "missing"]
    says: str
    hint: str = ""


def doctor(path: Path) -> list[Finding]:
    """Look at the ComfyUI at `path`: its version, the pack, and the service that its settings name."""
    try:
        nodes = custom_nodes(path)
    except InvalidInput as error:
        return [Finding("ComfyUI", "missing", error.message, error.hint)]
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
    hint = f"Run `comfyloop comfyui link {path}` and start ComfyUI again."
    if target.is_symlink() and not target.exists():
        return Finding("node pack", "missing", f"{target} points to nothing.", hint)
    if not (target / "pack.py").exists():
        return Finding("node pack", "missing", "It is not in custom_nodes.", hint)
    if target.resolve() == pack_folder().resolve():
        return Finding("node pack", "ok", "It is linked.")
    if _content(target) != _content(pack_folder()):
        return Finding(
            "node pack", "warning", f"It is another one than ComfyLoop {__version__} brings.", hint
        )
    return Finding("node pack", "ok", f"It is a copy of the one that ComfyLoop {__version__} brings.")


def _content(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in pack_files(folder).items()}


def _service(path: Path) -> Finding:
    file = path / "user" / "comfyloop" / "settings.json"
    url, token, project = "http://127.0.0.1:8265", "", "default"
    if file.exists():
        try:
            settings = json.loads(file.read_text("utf-8-sig"))
            url, token = str(settings.get("url", url)), str(settings.get("token", token))
            project = str(settings.get("project", project))
        except (ValueError, AttributeError):
            return Finding("settings", "missing", f"{file} cannot be read.", "Mend or delete it.")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=5, trust_env=False) as service:
            version = service.get("/healthz").raise_for_status().json()["version"]
            listed = service.get("/v1/projects").raise_for_status().json()
        names = [found["name"] for found in listed["items"]]
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
    if version.split(".")[:2] != __version__.split(".")[:2]:
        return Finding(
            "service",
            "missing",
            f"{url} is ComfyLoop {version}, and this one is {__version__}.",
            "Update the older one.",
        )
    if project not in names:
        return Finding(
            "service",
            "warning",
            f"{url} has no project {project!r}.",
            f"Choose one in the sidebar: {', '.join(names)}.",
        )
    return Finding("service", "ok", f"{url} answers; the project is {project!r}.")
