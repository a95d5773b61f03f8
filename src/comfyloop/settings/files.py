"""The files that settings are read from: `comfyloop.toml` in the home directory and in the working directory."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from comfyloop.errors import InvalidInput
from comfyloop.settings.groups import GROUPS, default_home, in_table

FILE = "comfyloop.toml"

_NO_SETTINGS = frozenset(["COMFYLOOP_URL", "COMFYLOOP_ENGINE_SECRET", "COMFYLOOP_RUN_LOCK_FD"])
"""Variables of the node pack and of our own processes."""


FOLDER_MAY_SET = frozenset(
    (
        *("project", "holdout_every", "holdout_first", "holdout_kept", "replay_share", "max_answer_chars"),
        *(
            "recipe",
            "distillation_lmbda",
            "warm_start",
            "image_recipe",
            "image_min_samples",
            "image_epochs",
            "image_learning_rate",
        ),
        *(
            "image_lora_r",
            "image_target_modules",
            "image_resolution",
            "image_crop",
            "image_prediction_type",
            "trigger_words",
            "lora_r",
            "lora_alpha",
            "lora_target_modules",
        ),
        *(
            "learning_rate",
            "preference_beta",
            "preference_rpo_alpha",
            "quant_method",
            "gradient_checkpointing",
        ),
        *("epochs", "max_steps", "batch_size", "max_pixels", "rope_scaling", "dtype", "warm_minutes"),
        *("gate_min_items", "gate_confidence", "gate_forgetting", "gate_max_items", "gate_max_answers"),
        *("gate_max_pictures", "gate_max_drawn", "gate_draw_steps", "gate_image_loss"),
        *("trigger_samples", "trigger_minutes", "quiet_seconds"),
    )
)
"""What `comfyloop.toml` in a working directory may set: numbers and ways of learning."""


class FileRead(NamedTuple):
    """A settings file, and the names in it that were passed over since a folder's file may not set them."""

    path: Path
    ignored: tuple[str, ...]


def home_folder() -> Path:
    """The home directory as far as it is known before the settings are read."""
    return Path(os.environ.get("COMFYLOOP_HOME") or default_home()).expanduser().absolute()


def files_read() -> list[FileRead]:
    """The settings files that count here and now, the weaker first.

    Raises:
        InvalidInput: One of them cannot be read, or is not TOML.
    """
    return [FileRead(path, tuple(ignored)) for path, _, ignored in _files()]


def unknown_variables() -> list[str]:
    """Variables of the environment that are called as settings are, and are none: a mistyped one, say."""
    names_of_settings = {
        f"COMFYLOOP_{field}".upper() for group in GROUPS.values() for field in group.model_fields
    }
    names_of_settings |= _NO_SETTINGS
    names = (name for name in os.environ if name.upper().startswith("COMFYLOOP_"))
    return sorted(name for name in names if name.upper() not in names_of_settings)


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """What a file says by the names of the fields, whether it stands in a table or, as once everything, at the top.

    Raises:
        ValueError: A setting stands there twice.
    """
    flat = {name: value for name, value in content.items() if not _is_table(name, value)}
    for table, group in GROUPS.items():
        fields = {in_table(table, field): field for field in group.model_fields}
        for name, value in content[table].items() if _is_table(table, content.get(table)) else ():
            field = name if name in group.model_fields else fields.get(name, f"{table}.{name}")
            if field in flat:
                raise ValueError(f"{field} is set twice")
            flat[field] = value
    return flat


def _is_table(name: str, value: Any) -> bool:
    return name in GROUPS and isinstance(value, dict)


def _refuse_escapes(values: Mapping[str, Any]) -> None:
    """In double quotes TOML makes a tab of the \\t in "C:\\temp"."""
    for name, value in values.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and any(char in text for char in "\b\t\n\f\r"):
                raise ValueError(f"{name} is {text!r}, with an escape in it")


def _files() -> Iterator[tuple[Path, dict[str, Any], list[str]]]:
    trusted = home_folder() / FILE
    here = Path.cwd() / FILE
    for path in (trusted, here):
        if not path.is_file() or (path is here and trusted.exists() and here.samefile(trusted)):
            continue
        try:
            values = _flat(tomllib.loads(path.read_text("utf-8-sig")))
            _refuse_escapes(values)
        except (OSError, ValueError) as error:
            escaped = any(sign in str(error) for sign in ("hex", "escape", "\\"))
            hint = (
                "Write a path in single quotes, 'C:\\models', or as C:/models."
                if escaped
                else "Mend that file."
            )
            raise InvalidInput(f"The settings in {path} cannot be read: {error}.", hint) from error
        ignored = sorted(values.keys() - FOLDER_MAY_SET) if path is here else []
        yield path, {name: value for name, value in values.items() if name not in ignored}, ignored


class SettingsFiles(PydanticBaseSettingsSource):
    """What the settings files say."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        said: dict[str, Any] = {}
        for _, values, _ in _files():
            said |= values
        return said
