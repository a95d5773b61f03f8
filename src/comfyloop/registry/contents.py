"""Defines the contents of a bundle.

Never included are names of authors, feedback and folders of this machine; prompts, answers and pictures only if
requested by name (`Include`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from comfyloop import __version__, integrity
from comfyloop.errors import InvalidInput, NotFound
from comfyloop.records import Ancestor, GateReport, Project, Version
from comfyloop.registry import base_model, card
from comfyloop.registry.archive import ArchivePiece
from comfyloop.registry.manifest import (
    CARD,
    EXAMPLES,
    GATE,
    IMAGE_WEIGHTS,
    LICENCE,
    SHEET,
    SPEC,
    SUITES,
    TEXT_CONFIG,
    TEXT_POSITIONS,
    TEXT_WEIGHTS,
    Include,
    Manifest,
    SuiteScores,
    line,
)


class BundleOptions(NamedTuple):
    """Options for creating a bundle."""

    include: Collection[Include] = ()
    licence: str = ""  # an SPDX id
    licence_text: str = ""
    suites: Sequence[SuiteScores] = ()


LOOKED_AT = 5
"""Examples at most."""

_CONFIG = frozenset(
    (
        *("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules"),
        *("bias", "use_rslora", "use_dora", "init_lora_weights", "layers_to_transform", "layers_pattern"),
        *("rank_pattern", "alpha_pattern", "modules_to_save", "inference_mode", "fan_in_fan_out"),
        *("peft_version", "target_parameters", "trainable_token_indices", "layer_replication", "lora_bias"),
    )
)
"""What PEFT needs of adapter_config.json; the rest may name folders."""
_METADATA = ("format", "ss_network_", "ss_base_model_version", "modelspec.", "comfyloop.trigger_words")
"""What a LoRA file says of itself and others may read; other trainers put captions and folders there."""
_UNSAID = frozenset(
    (
        *(
            "model",
            "train",
            "holdout",
            "dev",
            "init_from",
            "feature_cache_dir",
            "cache",
            "vae",
            "writer_model",
        ),
        *("writer", "about", "title", "notes", "system", "system_prompt"),
    )
)
"""Fields of a spec that name files, or hold a person's words."""


def gather(
    version: Version,
    project: Project,
    models: Callable[[str], str],
    *,
    publisher: str,
    lineage: Sequence[Ancestor] = (),
    spec: Mapping[str, Any] | None = None,
    sheet: bytes | None = None,
    wanted: BundleOptions = BundleOptions(),
    licence: str = "",
    trigger_words: str = "",
) -> tuple[Manifest, list[ArchivePiece]]:
    """The contents of a bundle of `version`; the manifest has no hashes yet.

    Args:
        models: From a model as it is set to what is loaded.
        sheet: The contact sheet of its gate, as PNG.
        licence: Where `wanted` names none.

    Raises:
        NotFound: Its files are gone.
        InvalidInput: Something is asked for that is not there.
    """
    text = Path(version.text_adapter) if version.text_adapter else None
    image = Path(version.image_adapter) if version.image_adapter else None
    text_base = base_model.text_base(project.base_model, models(project.base_model)) if text else None
    image_base = base_model.image_base(project.image_model, models(project.image_model)) if image else None
    pieces = [
        *(_text(text, text_base.name if text_base else "") if text else []),
        *(_image(image) if image else []),
    ]
    if not pieces:
        raise NotFound(f"{version.project}@{version.number} has no adapter.", "Train it again.")
    report = without_persons(version.gate) if version.gate is not None else None
    examples = of_report(version.gate) if Include.EXAMPLES in wanted.include else []
    manifest = Manifest(
        made_by=f"ComfyLoop {__version__}",
        publisher=publisher,
        project=version.project,
        number=version.number,
        version=identity(version),
        lineage=tuple(lineage),
        text_base=text_base,
        image_base=image_base,
        licence=line(wanted.licence) or ("see LICENCE.txt" if wanted.licence_text else licence),
        trigger_words=line(trigger_words),
        verdict=report.verdict.value if report is not None else "",
        files=(),
    )
    if spec is not None:
        pieces.append(_json(SPEC, without_places(spec)))
    if report is not None:
        pieces.append(ArchivePiece(GATE, (report.model_dump_json(indent=2) + "\n").encode()))
    if wanted.suites:
        pieces.append(_json(SUITES, [suite.model_dump() for suite in wanted.suites]))
    if Include.SHEET in wanted.include:
        if sheet is None:
            raise InvalidInput(f"{version.project}@{version.number} has no contact sheet.", "Leave it out.")
        pieces.append(ArchivePiece(SHEET, sheet))
    if Include.EXAMPLES in wanted.include:
        if not examples:
            raise InvalidInput(
                f"{version.project}@{version.number} has no examples: it was not judged.", "Leave them out."
            )
        pieces.append(_json(EXAMPLES, examples))
    if wanted.licence_text:
        pieces.append(ArchivePiece(LICENCE, wanted.licence_text.encode()))
    shown = card.write(
        manifest, report, spec=without_places(spec) if spec else None, examples=examples, suites=wanted.suites
    )
    return manifest, [ArchivePiece(CARD, shown.encode()), *pieces]


def identity(version: Version) -> str:
    """A version's identity in lineage: the same here and where it is imported."""
    if version.origin is not None:
        return version.origin.version
    if version.sha256:
        return version.sha256
    sides = (version.text_adapter, version.image_adapter)
    return integrity.hash_of(*(Path(side) for side in sides if side))


def ancestors(line: Sequence[Version]) -> list[Ancestor]:
    """A version's ancestors, newest first, including the lineage of imported ones."""
    line_of_descent: list[Ancestor] = []
    for version in line:
        origin = version.origin
        if origin is None:
            line_of_descent.append(Ancestor(version=identity(version)))
        else:
            line_of_descent.append(
                Ancestor(version=origin.version, publisher=origin.publisher, key=origin.key)
            )
            line_of_descent += origin.lineage
    return line_of_descent


def without_persons(report: GateReport) -> GateReport:
    """A gate report without what people asked and answered: verdict, sentences and measures stay."""
    parts = {measure.slice for measure in report.measures if measure.slice.startswith("about ")}
    return report.model_copy(
        update={
            "items": (),
            "triggers": (),
            "sheet": None,
            "details": (),
            # parts that were found are named by words of the questions
            "measures": tuple(measure for measure in report.measures if measure.slice not in parts),
            "reasons": tuple(
                reason for reason in report.reasons if not any(part in reason for part in parts)
            ),
        }
    )


def of_report(report: GateReport | None) -> list[dict[str, str]]:
    """Held-out questions with the answers of before and after, those first that came closest to what was wanted."""
    if report is None:
        return []
    answered = [
        item
        for item in report.items
        if item.candidate_answer and item.reference and not item.slice.startswith("general")
    ]
    answered.sort(key=lambda item: item.scores.get("edit_distance", (0.0, 1.0))[1])
    return [
        {
            "question": item.question,
            "before": item.live_answer,
            "after": item.candidate_answer,
            "wanted": item.reference,
        }
        for item in answered[:LOOKED_AT]
    ]


def without_places(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The training spec without files and folders."""
    fields: dict[str, Any] = {}
    for name, value in spec.items():
        if name in _UNSAID:
            continue
        if isinstance(value, Mapping):
            fields[name] = without_places(value)
        elif not (isinstance(value, str) and ("/" in value or "\\" in value)):
            fields[name] = value
    return fields


def _text(folder: Path, base: str) -> list[ArchivePiece]:
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    try:
        fields = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise NotFound(
            f"{config} cannot be read: {error}.", "Put back a copy, or choose another version."
        ) from None
    fields = {name: value for name, value in fields.items() if name in _CONFIG}
    fields |= {"base_model_name_or_path": base, "inference_mode": True}
    pieces = [_json(TEXT_CONFIG, fields), _weights(TEXT_WEIGHTS, weights)]
    positions = folder / "positions.json"
    if positions.is_file():
        pieces.append(ArchivePiece(TEXT_POSITIONS, path=positions))
    return pieces


def _image(file: Path) -> list[ArchivePiece]:
    return [_weights(IMAGE_WEIGHTS, file)]


def _weights(name: str, file: Path) -> ArchivePiece:
    """A safetensors file with all personal metadata removed from its header; its tensors are unchanged."""
    try:
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            raw = handle.read(size)
            header = json.loads(raw)
    except (OSError, ValueError) as error:
        raise NotFound(
            f"{file} cannot be read: {error}.", "Put back a copy, or choose another version."
        ) from None
    metadata = header.get("__metadata__") or {}
    public_metadata = {key: value for key, value in metadata.items() if key.startswith(_METADATA)}
    if public_metadata == metadata:
        return ArchivePiece(name, path=file)
    header["__metadata__"] = public_metadata
    new = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    new += b" " * (-len(new) % 8)
    return ArchivePiece(name, len(new).to_bytes(8, "little") + new, file, 8 + size)


def _json(name: str, value: object) -> ArchivePiece:
    return ArchivePiece(name, (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())
