"""The pack's settings: one JSON file in ComfyUI's user folder. Capture is off until a person turns it on."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Config:
    url: str = "http://127.0.0.1:8265"
    token: str = ""
    project: str = "default"
    author: str = "local"
    capture: tuple[str, ...] = ()  # projects for which edits are captured
    excluded: tuple[str, ...] = ()  # node classes of which nothing is captured
    spool_mb: int = 512

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
        if "url" in new:
            parts = urlsplit(str(new["url"]))
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{new['url']!r} is not a URL. It looks like http://127.0.0.1:8265.")
            if new["url"] != self.url and "token" not in new:
                new["token"] = ""
        if "project" in new and not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", str(new["project"])):
            raise ValueError("A project's name has lower-case letters, digits, dots, dashes and underscores.")
        for name in ("capture", "excluded"):
            if name in new:
                new[name] = tuple(map(str, new[name]))
        return replace(self, **new)


@dataclass
class ConfigFile:
    path: Path
    config: Config = field(default_factory=Config)

    def __post_init__(self) -> None:
        if self.path.exists():
            try:
                known = {f.name for f in fields(Config)}
                stored = json.loads(self.path.read_text("utf-8"))
                self.config = Config().changed(**{k: v for k, v in stored.items() if k in known})
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{self.path} cannot be read ({error}). Mend or delete it.") from error
        environment = {
            name: os.environ[f"COMFYLOOP_{name.upper()}"]
            for name in ("url", "token", "project")
            if os.environ.get(f"COMFYLOOP_{name.upper()}")
        }
        self.config = self.config.changed(**environment)

    def change(self, **new: Any) -> Config:
        self.config = self.config.changed(**new)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".new")
        temporary.touch(mode=0o600)  # it may hold a token
        temporary.write_text(json.dumps(asdict(self.config), indent=2), "utf-8")
        os.replace(temporary, self.path)
        return self.config
