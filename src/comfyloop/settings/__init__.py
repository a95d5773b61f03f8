"""Every setting once: name, default, one line of doc.

A group of them is a class in `groups.py` and a table of `comfyloop.toml`; whole names at the top of that file are
read, too.

Read, later ones winning: the defaults below, `comfyloop.toml` in the home directory of ComfyLoop, that in the
working directory, then `COMFYLOOP_*` environment variables (`COMFYLOOP_PORT=9000`). A folder may come from anyone,
so its file sets how to learn (`FOLDER_MAY_SET`) and nothing that runs a program, reads elsewhere, or sends or opens
anything; what else stands in it is passed over, and said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from comfyloop.settings.files import (
    FILE,
    FOLDER_MAY_SET,
    FileRead,
    SettingsFiles,
    files_read,
    home_folder,
    unknown_variables,
)
from comfyloop.settings.groups import (
    ENGINES,
    GROUPS,
    IMAGE_STARTER,
    CurateSettings,
    DataSettings,
    GateSettings,
    ImageSettings,
    LoopSettings,
    RecallSettings,
    ServeSettings,
    ShareSettings,
    TrainSettings,
    in_table,
)

if TYPE_CHECKING:
    from comfyloop.records import Project

__all__ = [
    "ENGINES",
    "FILE",
    "FOLDER_MAY_SET",
    "GROUPS",
    "IMAGE_STARTER",
    "FileRead",
    "Settings",
    "files_read",
    "home_folder",
    "in_table",
    "unknown_variables",
]


class Settings(
    ShareSettings,
    LoopSettings,
    GateSettings,
    ImageSettings,
    TrainSettings,
    CurateSettings,
    RecallSettings,
    ServeSettings,
    DataSettings,
    BaseSettings,
):
    """All of them; of several bases pydantic takes the last one's fields first."""

    # A variable that is empty is one that is not set: Compose and shells leave it so where nothing is to be said.
    model_config = SettingsConfigDict(
        env_prefix="COMFYLOOP_", env_ignore_empty=True, extra="forbid", frozen=True
    )

    def of(self, project: Project) -> Settings:
        """These, with what a project says of its own image model before what is said of all."""
        said = {name: getattr(project, name) for name in ("image_vae", "image_prediction_type")}
        own = {name: value for name, value in said.items() if value not in ("", "auto")}
        return self.model_copy(update=own) if own else self

    @property
    def image_prediction(self) -> Literal["epsilon", "v_prediction", "sample"] | None:
        """What the person says that a UNet predicts; None: the model says it."""
        return None if self.image_prediction_type == "auto" else self.image_prediction_type

    @property
    def blobs(self) -> str:
        return self.blob_url or str(self.home / "blobs")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, SettingsFiles(settings_cls)
