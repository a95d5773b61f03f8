"""Exports versions as bundles, and imports bundles as candidates, which are judged here before they go live."""

from __future__ import annotations

import json
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from comfyloop import integrity, platforms
from comfyloop.loop.stages import Stages
from comfyloop.models.rope import RopeScaling
from comfyloop.platforms import sync
from comfyloop.records import BASE, Origin, Project, Version
from comfyloop.registry import base_model, bundle, contents, keys
from comfyloop.registry.archive import ArchivePiece, disk_error
from comfyloop.registry.bundle import Imported
from comfyloop.registry.contents import BundleOptions
from comfyloop.registry.manifest import BaseModelOf, Include, Manifest
from comfyloop.store import lessons, projects, runs, versions
from comfyloop.train.specs.files import SPEC_FILE


def gather(
    stages: Stages, project: str, number: int, wanted: BundleOptions
) -> tuple[Manifest, list[ArchivePiece]]:
    """The manifest and the files that a bundle of a version would contain.

    Raises:
        NotFound: There is no such version, or its files are gone.
        DamagedVersion: Its files are not those that were judged.
        InvalidInput: Something is asked for that it does not have.
    """
    settings = stages.settings
    with stages.store.read() as conn:
        record = projects.get(conn, project)
        version = versions.get(conn, project, number)
        integrity.check(conn, version)
        line = [versions.get(conn, project, n) for n in lessons.lineage(conn, project, number)[1:]]
        spec_file = Path(runs.get(conn, version.run).path) / SPEC_FILE if version.run else None
    spec = None
    if spec_file is not None:
        with suppress(OSError, ValueError):  # pruned
            spec = json.loads(spec_file.read_text("utf-8"))
    sheet = None
    if Include.SHEET in wanted.include and version.gate is not None and version.gate.sheet is not None:
        sheet = stages.store.blobs.get(version.gate.sheet)
    origin = version.origin
    return contents.gather(
        version,
        record,
        stages.models,
        publisher=settings.publisher or project,
        lineage=[*(origin.lineage if origin else ()), *contents.ancestors(line)],
        spec=spec,
        sheet=sheet,
        wanted=wanted,
        licence=origin.licence if origin else "",
        trigger_words=origin.trigger_words if origin else settings.trigger_words,
    )


def export(stages: Stages, project: str, number: int, wanted: BundleOptions) -> Path:
    """Write a bundle of a version to a new file in `home`, which the caller removes. Errors are those of
    `gather`."""
    manifest, pieces = gather(stages, project, number, wanted)
    folder = stages.settings.home / "bundles"
    target = folder / f"{uuid.uuid4().hex}.comfyloop"
    bundle.write(manifest, pieces, target, stages.settings.home)
    return target


def adopt(stages: Stages, project: str, file: Path, *, trust_new_key: bool = False) -> Imported:
    """Import a bundle as a new candidate.

    Raises:
        InvalidInput: It is not taken; says why. Nothing stays of it.
        Conflict: Its publisher's bundles were signed with another key.
        StorageError: The disk refuses.
    """
    settings, store = stages.settings, stages.store
    with store.read() as conn:
        record = projects.get(conn, project)
    text, image = _bases(stages, record)
    staging = settings.home / "bundles" / f"in-{uuid.uuid4().hex}"
    opened_bundle, sides = bundle.unpack(
        file,
        staging,
        text_base=text,
        image_base=image,
        text_place=stages.models(record.base_model),
        image_place=stages.models(record.image_model) if record.image_model else "",
        positions=RopeScaling.parse(settings.rope_scaling),
        most_bytes=settings.max_bundle_bytes,
    )
    manifest = opened_bundle.manifest
    try:
        trusted = keys.look_up(settings.home, manifest.publisher, opened_bundle.key, accept=trust_new_key)
        new = [side for side in (sides.text, sides.image) if side is not None]
        sha256 = integrity.hash_of(*new, known=sides.hashes)
        origin = Origin(
            publisher=manifest.publisher,
            key=opened_bundle.key,
            project=manifest.project,
            number=manifest.number,
            version=manifest.version,
            lineage=manifest.lineage,
            bundle=opened_bundle.sha256,
            licence=manifest.licence,
            trigger_words=manifest.trigger_words,
        )
        with store.begin() as conn:
            number = versions.next_number(conn, project)
            place = integrity.folder(settings.home, project, number)
            _move(staging, place)
            version = Version(
                project=project,
                number=number,
                parent=BASE,
                text_adapter=str(place / "text") if sides.text is not None else None,
                image_adapter=str(place / sides.image.relative_to(staging))
                if sides.image is not None
                else None,
                sha256=sha256,
                fresh=True,
                origin=origin,
            )
            versions.add(conn, version)
        if trusted.remember:
            keys.remember(settings.home, manifest.publisher, opened_bundle.key)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    stages.events.publish({"type": "version.imported", "project": project, "version": number})
    return Imported(version, manifest, trusted.sentence)


def _bases(stages: Stages, project: Project) -> tuple[BaseModelOf, BaseModelOf | None]:
    text = base_model.text_base(project.base_model, stages.models(project.base_model))
    image = None
    if project.image_model:
        image = base_model.image_base(project.image_model, stages.models(project.image_model))
    return text, image


def _move(staging: Path, place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)  # a kill before the commit leaves one that no version names
        platforms.rename(staging, place)
        sync(place.parent)
    except OSError as error:
        raise disk_error(place, error) from error
