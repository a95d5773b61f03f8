"""What a run is to do: the spec of the sides that a snapshot has something for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from comfyloop import curate
from comfyloop.records import Project, Run, Snapshot, Version
from comfyloop.settings import Settings
from comfyloop.train.image.spec import About, ImageAdapterSpec, ImageTrainSpec
from comfyloop.train.joint_spec import JointSpec
from comfyloop.train.spec import TrainSpec


def spec_of(
    settings: Settings,
    project: Project,
    snapshot: Snapshot,
    run: Run,
    parent: Version | None,
    models: Callable[[str], str],
) -> TrainSpec | JointSpec:
    """The text side alone, or both sides, or the image side alone, as a project and its snapshot ask for.

    Args:
        parent: The version to go on from; None: the base models.
        models: From a model as it is set ("starter", a hub id) to what a trainer loads.
    """
    folder = Path(snapshot.path)
    base_model = models(project.base_model)
    start = parent if settings.warm_start else None
    text = _text_side(settings, folder, base_model, start)
    image = _image_side(settings, project, folder, run, start, models) if project.image_model else None
    if image is None and text is not None:
        return text
    return JointSpec(
        text=text,
        image=image,
        writer_model=base_model,
        writer=parent.text_adapter if parent is not None else None,
    )


def _text_side(settings: Settings, folder: Path, base_model: str, parent: Version | None) -> TrainSpec | None:
    data = curate.data_files(folder, settings.recipe)
    if not _lines(data.train):
        return None
    return TrainSpec.from_settings(
        settings,
        model=base_model,
        train=str(data.train),
        holdout=str(data.holdout) if _lines(data.holdout) else None,
        init_from=parent.text_adapter if parent is not None else None,
    )


def _image_side(
    settings: Settings,
    project: Project,
    folder: Path,
    run: Run,
    parent: Version | None,
    models: Callable[[str], str],
) -> ImageTrainSpec | None:
    data = curate.data_files(folder, settings.image_recipe)
    if _lines(data.train) < settings.image_min_samples:
        return None
    spec = image_spec(settings, project, data.train, models)
    holdout = str(data.holdout) if _lines(data.holdout) else None
    start = parent.image_adapter if parent is not None else None
    about = {"parent": str(run.parent), "snapshot": run.snapshot, "run": run.id}
    return ImageTrainSpec.model_validate(
        spec.model_copy(
            update={
                "holdout": holdout,
                "adapter": spec.adapter.model_copy(update={"init_from": start}),
                "about": spec.about.model_copy(update=about),
            }
        ).model_dump()
    )


def image_spec(
    settings: Settings, project: Project, train: Path, models: Callable[[str], str]
) -> ImageTrainSpec:
    """How the image side of a project is trained, and its versions are compared."""
    r = settings.image_lora_r
    return ImageTrainSpec.model_validate(
        {
            "recipe": settings.image_recipe,
            "model": models(project.image_model),
            "train": str(train),
            "adapter": ImageAdapterSpec(r=r, lora_alpha=r, target_modules=settings.image_target_modules),
            "about": About(project=project.name, trigger_words=settings.trigger_words),
            "resolution": settings.image_resolution,
            "epochs": settings.image_epochs,
            "learning_rate": settings.image_learning_rate,
            "per_device_train_batch_size": settings.batch_size,
            "dtype": settings.dtype,
            "max_image_pixels": settings.max_image_pixels,
            "cache": str(settings.cache_dir / "latents"),
            "threads": TrainSpec.threads_of(settings),
            "memory_gb": settings.train_memory_gb,
        }
    )


def _lines(file: Path) -> int:
    """Rows that say something of their own: replay alone is nothing to train on."""
    if not file.exists():
        return 0
    lines = file.read_text(encoding="utf-8").splitlines()
    return sum(not json.loads(line).get("replay", False) for line in lines if line.strip())
