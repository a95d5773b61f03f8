"""The spec of a run: of the sides that a snapshot has data for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from comfyloop import curate, formats
from comfyloop.records import Project, Run, Snapshot, Version
from comfyloop.settings import Settings
from comfyloop.train.specs.image import AdapterMetadata, ImageAdapterSpec, ImageTrainSpec
from comfyloop.train.specs.joint import JointSpec
from comfyloop.train.specs.text import TrainSpec

PATIENCE = 2
"""Looks at the samples kept back without a lower loss, after which a run ends."""
EVAL_STEPS = 12


def spec_of(
    settings: Settings,
    project: Project,
    snapshot: Snapshot,
    run: Run,
    parent: Version | None,
    models: Callable[[str], str],
) -> TrainSpec | JointSpec:
    """A spec of the text side, of both sides, or of the image side, depending on the project and its snapshot.

    Args:
        parent: The version to go on from, unless the run is fresh; None: the base models.
        models: From a model as it is set ("starter", a hub id) to what a trainer loads.
    """
    folder = Path(snapshot.path)
    base_model = models(project.base_model)
    start = None if run.fresh else parent
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
    if not (new := _new(data.train)):
        return None
    dev = bool(_new(data.dev))
    looked_at = data.dev if dev else data.holdout
    return TrainSpec.from_settings(
        settings,
        model=base_model,
        train=str(data.train),
        holdout=str(looked_at) if _new(looked_at) else None,
        init_from=parent.text_adapter if parent is not None else None,
        epochs=curate.epochs_of(new, settings),
        # looks at the gate's own hold-out are for the log alone: nothing is decided by them
        early_stopping_patience=PATIENCE if dev and settings.train_processes == 1 else 0,
        eval_steps=EVAL_STEPS,
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
    if not _new(data.train) or _rows(data.train) < settings.image_min_samples:
        return None
    spec = image_spec(settings, project, data.train, models)
    holdout = str(data.holdout) if _rows(data.holdout) else None
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
    settings = settings.of(project)
    r = settings.image_lora_r
    return ImageTrainSpec.model_validate(
        {
            "recipe": settings.image_recipe,
            "model": models(project.image_model),
            "vae": str(Path(settings.image_vae).expanduser().absolute()) if settings.image_vae else None,
            "prediction_type": settings.image_prediction_type,
            "train": str(train),
            "skip_bad": True,
            "max_bad_share": 1.0,
            "adapter": ImageAdapterSpec(r=r, lora_alpha=r, target_modules=settings.image_target_modules),
            "about": AdapterMetadata(project=project.name, trigger_words=settings.trigger_words),
            "resolution": settings.image_resolution,
            "crop": settings.image_crop,
            "epochs": settings.image_epochs,
            "learning_rate": settings.image_learning_rate,
            "per_device_train_batch_size": settings.batch_size,
            "dtype": settings.dtype,
            "max_image_pixels": settings.max_image_pixels,
            "cache": str(settings.cache_dir / "latents"),
            "threads": TrainSpec.threads_of(settings),
            "memory_gb": settings.train_memory_gb,
            "step_aside_after": settings.step_aside_after,
        }
    )


def _rows(file: Path) -> int:
    """The number of rows that are not replay: replay alone is nothing to train on."""
    return len(_parts(file))


def _new(file: Path) -> int:
    """Of these, rows that no earlier version has learned."""
    return sum(part != curate.REHEARSAL for part in _parts(file))


def _parts(file: Path) -> list[formats.Part]:
    if not file.exists():
        return []
    return [part for row in formats.objects(file) if (part := formats.part_of(row)) != "replay"]
