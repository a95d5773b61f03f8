"""The model card: for people, and in the form that hubs read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from comfyloop.records import GateReport
from comfyloop.registry.base_model import PUBLIC
from comfyloop.registry.manifest import Manifest, SuiteScores

_METRICS = {
    "log_likelihood": "log-likelihood of corrections, nats per token",
    "edit_distance": "edit distance to corrections, 0 to 1",
    "right_answer": "chance of the right answer",
    "denoising_loss": "denoising loss on kept pictures",
}


def write(
    manifest: Manifest,
    report: GateReport | None,
    *,
    spec: Mapping[str, Any] | None = None,
    examples: Sequence[Mapping[str, str]] = (),
    suites: Sequence[SuiteScores] = (),
) -> str:
    name = f"{manifest.project} {manifest.number}"
    lines = ["---", *_front_matter(manifest), "---", "", f"# {name}", "", _what(manifest), ""]
    if manifest.trigger_words:
        lines += [f"Trigger words: `{manifest.trigger_words}`", ""]
    lines += ["## Use it", "", *_use(manifest), ""]
    if report is not None:
        lines += ["## How it was judged", "", *_judged(report), ""]
    if suites:
        lines += ["## Standard suites", "", *_suites(suites), ""]
    if examples:
        lines += ["## Before and after", "", *_examples(examples), ""]
    if spec is not None:
        lines += [
            "## How it was trained",
            "",
            "```json",
            json.dumps(spec, ensure_ascii=False, indent=2),
            "```",
            "",
        ]
    lines += ["## Where it comes from", "", *_lineage(manifest), ""]
    return "\n".join(lines)


def _front_matter(manifest: Manifest) -> list[str]:
    """Written by hand: all values are quoted, which JSON and YAML do alike."""
    text, image = manifest.text_base, manifest.image_base
    bases = [
        base.name
        for base in (text, image)
        if base is not None and "/" in base.name and PUBLIC.match(base.name)
    ]
    tags = ["comfyloop", "lora", *(["peft"] if text else []), *(["diffusers", "comfyui"] if image else [])]
    lines = [f"base_model: {_quoted(bases if len(bases) != 1 else bases[0])}"] if bases else []
    lines += [f"library_name: {'peft' if text else 'diffusers'}"]
    if text is not None:
        lines.append(
            f"pipeline_tag: {'text-generation' if text.kind in ('llama', 'qwen3') else 'image-text-to-text'}"
        )
    else:
        lines.append("pipeline_tag: text-to-image")
    spdx = manifest.licence if manifest.licence and " " not in manifest.licence else "other"
    lines += [f"license: {_quoted(spdx.lower())}", f"tags: {_quoted(tags)}"]
    if manifest.trigger_words and image is not None:
        lines.append(f"instance_prompt: {_quoted(manifest.trigger_words)}")
    return lines


def _quoted(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _what(manifest: Manifest) -> str:
    sides = []
    if manifest.text_base is not None:
        sides.append(f"a LoRA for {manifest.text_base.name}")
    if manifest.image_base is not None:
        sides.append(f"a LoRA for the image model {manifest.image_base.name}")
    licence = f"Licence: {manifest.licence}." if manifest.licence else "No licence was given."
    return f"Learned from a person's corrections by {manifest.made_by}: {' and '.join(sides)}. {licence}"


def _use(manifest: Manifest) -> list[str]:
    name = f"{manifest.project}-{manifest.number}.comfyloop"
    lines = ["```sh", f"comfyloop bundle import {name}", "```"]
    if manifest.text_base is not None:
        lines += [
            "",
            "The folder `text` is a PEFT adapter:",
            "",
            "```python",
            "from peft import PeftModel",
            "",
        ]
        lines += ['model = PeftModel.from_pretrained(model, "text")', "```"]
    if manifest.image_base is not None:
        lines += [
            "",
            "`image/lora.safetensors` has kohya's keys: put it into ComfyUI's `models/loras`, or into diffusers:",
        ]
        lines += ["", "```python", 'pipeline.load_lora_weights("image/lora.safetensors")', "```"]
    return lines


def _judged(report: GateReport) -> list[str]:
    against = f"version {report.live}" if report.live else "the base model"
    lines = [
        f"Against {against}, on held-out items of the project that trained it: **{report.verdict.value}**.",
        "",
    ]
    lines += [*report.reasons, ""]
    if report.measures:
        lines += ["| measure | part | items | before | this version | change |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {_METRICS.get(m.metric, m.metric.replace('_', ' '))} | {m.slice} | {m.items} | {m.live:.4g} | "
            f"{m.candidate:.4g} | {m.low:+.3g} to {m.high:+.3g} |"
            for m in report.measures
        ]
    return lines


def _suites(suites: Sequence[SuiteScores]) -> list[str]:
    lines = ["| suite | version | items | base | this version |", "|---|---|---|---|---|"]
    return lines + [f"| {s.suite} | {s.version} | {s.items} | {s.base:.3f} | {s.this:.3f} |" for s in suites]


def _examples(examples: Sequence[Mapping[str, str]]) -> list[str]:
    lines = []
    for one in examples:
        lines += [
            f"> {_line(one['question'])}",
            "",
            f"- before: {_line(one['before'])}",
            f"- after: {_line(one['after'])}",
            "",
        ]
    return lines


def _lineage(manifest: Manifest) -> list[str]:
    lines = [f"- this version: `{manifest.version}`, signed by {manifest.publisher}"]
    for ancestor in manifest.lineage:
        by = f", by {ancestor.publisher}" if ancestor.publisher else ""
        lines.append(f"- went on from: `{ancestor.version}`{by}")
    return lines


def _line(text: str) -> str:
    return " ".join(text.split())
