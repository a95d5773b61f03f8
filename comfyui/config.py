"""The pack's settings: one JSON file in ComfyUI's user folder. Capture is off until a person turns it on.

The file holds what a person set in the sidebar; COMFYLOOP_URL, _TOKEN and _PROJECT stand in for what they did not.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import platforms


@dataclass(frozen=True)
class Config:
    url: str = "http://127.0.0.1:8265"
    token: str = ""
    project: str = "default"
    author: str = "local"
    capture: tuple[str, ...] = ()  # projects for which edits are captured
    excluded: tuple[str, ...] = ()  # node classes of which nothing is captured
    spool_mb: int = 512
    free_before_runs: bool = False  # ComfyUI unloads its models before a training run, when its queue is empty

    @property
    def capturing(self) -> bool:
        return self.project in self.capture

    def changed(self, **new: Any) -> Config:
        """Raises ValueError, with a sentence, for a setting that cannot be.

        A new URL without a new token drops the token: it belonged to the old service.
        """
        unknown = new.keys() - {f.name for f in fields(self)}
        if unknown:
            raise ValueError(f"There is no setting {sorted(unknown)[0]!r}.")
        for name in ("url", "token", "project", "author"):
            if name in new and not isinstance(new[name], str):
                raise ValueError(f"{name} must be a text.")
        if "url" in new:
            if not _is_url(new["url"]):
                raise ValueError(f"{new['url']!r} is not a URL. It looks like http://127.0.0.1:8265.")
            new["url"] = new["url"].rstrip("/").removesuffix("/v1")  # with which OpenAI's clients have it
            if new["url"] != self.url:
                new.setdefault("token", "")
        if not new.get("token", "").isprintable():
            raise ValueError("A token has no line breaks or control characters.")
        if "author" in new and not (new["author"].isprintable() and 0 < len(new["author"]) <= 200):
            raise ValueError("A name has 1 to 200 characters and no line breaks.")
        if "project" in new and not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", new["project"]):
            raise ValueError("A project's name has lower-case letters, digits, dots, dashes and underscores.")
        for name in ("capture", "excluded"):
            if name in new:
                if isinstance(new[name], str):
                    raise ValueError(f"{name} must be a list of names.")
                new[name] = tuple(map(str, new[name]))
        if not isinstance(new.get("free_before_runs", False), bool):
            raise ValueError("free_before_runs is true or false.")
        if "spool_mb" in new and (not isinstance(new["spool_mb"], int) or new["spool_mb"] < 1):
            raise ValueError("spool_mb must be a whole number of megabytes.")
        return replace(self, **new)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port out of range, a broken address
        return False


class ConfigFile:
    """`problem` says why the file or the environment could not be used; then capture stays off."""

    def __init__(self, path: Path) -> None:
        self.path, self.problem = path, ""
        self._base = self.config = Config()
        try:
            names = ("url", "token", "project")
            given = {name: os.environ.get(f"COMFYLOOP_{name.upper()}") for name in names}
            self._base = self.config = Config().changed(**{name: value for name, value in given.items() if value})
            if path.exists():
                stored = json.loads(path.read_text("utf-8-sig"))  # with the mark that Windows' editors put first
                self.config = self._base.changed(**stored)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            self.problem = f"The settings in {path} cannot be used ({error}). Save them again in the sidebar."

    def change(self, **new: Any) -> Config:
        """Raises ValueError or OSError; then the settings stay as they are. A broken file is kept beside the new."""
        config = self.config.changed(**new)
        base = asdict(self._base)
        stored = {name: value for name, value in asdict(config).items() if value != base[name]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.problem and self.path.exists():
            platforms.replace(self.path, self.path.with_suffix(".broken"))
        temporary = self.path.with_suffix(".new")
        temporary.touch(mode=0o600)  # it may hold a token
        temporary.write_text(json.dumps(stored, indent=2), "utf-8")
        platforms.replace(temporary, self.path)
        self.config, self.problem = config, ""
        return config
