"""A brand painter: style guide, pictures and copy in; copy and poster sketches out; corrections in, and again."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from rich.console import Console
from rich.table import Table

from comfyloop.client.client import Client
from comfyloop.client.follow import follow
from comfyloop.demo import processes
from comfyloop.demo.asking import DemoQuestion, ask_all
from comfyloop.demo.brand import material, page, posters
from comfyloop.demo.brand.material import Brand, Product
from comfyloop.demo.brand.painter import Drawing, Painter
from comfyloop.demo.clock import Clock
from comfyloop.gate import render_text
from comfyloop.gate.metrics import edit_distance
from comfyloop.records import (
    BASE,
    AnswerEdited,
    Feedback,
    ImagePicked,
    Loop,
    Message,
    PromptEdited,
    SampleUploaded,
)
from comfyloop.service import model_path
from comfyloop.settings import IMAGE_STARTER, Settings

PROJECT = "brand"
COPY_TOKENS, PROMPT_TOKENS = 48, 32
SEED = 7

OF_THE_STARTER: dict[str, object] = {
    "image_learning_rate": 1e-3,
    "image_epochs": 8,
    "image_target_modules": "all",
    "max_steps": 80,  # of the text side
}
"""What the demo sets with the embedded image model, unless it is set: a small model learns fast, and where a style
changes everything that it draws, its convolutions must learn it too."""


class ProductResult(NamedTuple):
    """What one version makes of one product's name."""

    product: Product
    copy: str
    prompt: str
    picture: Image.Image


def run(
    settings: Settings, report_dir: Path, home: Path | None = None, *, quiet: bool = False
) -> dict[str, Any]:
    """Play the demo and write brand-report.json, brand-report.html and brand-sheet.png.

    Returns:
        The report. `ok` tells whether both turns ended with a promotion, no request of another client failed,
        and copy and pictures of products that were never shown have come closer to the brand's: the copy's edit
        distance fell by half at least.

    Raises:
        ComfyLoopError: The service or its model cannot be started, or the image model cannot draw.
    """
    console = Console(stderr=True, quiet=quiet)
    clock, brand = Clock(console), material.load()
    settings = settings.model_copy(update={"image_model": settings.image_model or IMAGE_STARTER})
    memory = processes.MemoryPeak(os.getpid())
    memory.start()
    with (
        processes.directory(home) as where,
        clock.lap("demo"),
        processes.service(settings, where / "home", _fewest(brand), PROJECT, **_more(settings)) as service,
        Client(service.url, settings.token, PROJECT) as client,
        tempfile.TemporaryDirectory(prefix="pictures-", dir=where) as pictures,
    ):
        with clock.lap("start"):
            image_model = model_path(settings, settings.image_model)
            processes.wait_ready(client, lambda why: console.print(f"[dim]{why}[/]", highlight=False))
        painter = Painter(image_model, settings.cache_dir / "latents", Path(pictures))
        studio = _Studio(client, painter, brand, console, clock, quiet)
        studio.work("Before", BASE)
        other = processes.Background(service.url, settings.token, pause=2.0)
        other.start()
        studio.turn(1, "material", _material(client, brand))
        if studio.version != BASE:
            with clock.lap("correct"):
                corrections = studio.correct()
            studio.turn(2, "corrections", corrections)
        other.stop()
        live, _ = client.versions()
    memory.stop()
    report = studio.report() | {
        "brand": brand.name,
        "guide": [list(section) for section in brand.guide],
        "live": live,
        "background": other.report(),
        "peak_memory_gib": round(memory.peak / 2**30, 2),
        "seconds": {name: round(s, 2) for name, s in clock.seconds.items()},
    }
    report["ok"] = _is_ok(report)
    _write(report_dir, report, studio)
    _summary(console, report)
    return report


class _Studio:
    """Somebody who asks for posters, looks at them and corrects them, while the loop goes round.

    `version` is the number that the last turn made, promoted or not.
    """

    def __init__(
        self, client: Client, painter: Painter, brand: Brand, console: Console, clock: Clock, quiet: bool
    ) -> None:
        self._client, self._painter, self._brand = client, painter, brand
        self._console, self._clock, self._quiet = console, clock, quiet
        self.version = BASE
        self.columns: list[tuple[str, list[ProductResult]]] = []
        self.turns: list[dict[str, Any]] = []

    def turn(self, number: int, what: str, feedback: Sequence[Feedback]) -> None:
        """Send feedback, which starts a turn of the loop, wait for its end, and ask again what was never shown."""
        resting, states = self._client.loop(), dict[str, float]()
        with self._clock.lap(f"turn {number}"):
            self._client.send_feedback(feedback)
            self._console.print(f"{len(feedback)} pieces of {what} sent; the loop starts by itself.")
            loop = follow(self._client, resting, self._console, quiet=self._quiet, seconds=states)
        self.turns.append(self._what_became(loop, what, len(feedback), states))
        self._console.print(self.turns[-1]["gate_text"], highlight=False)
        if loop.version:
            self.version = loop.version
            promoted = loop.outcome == "promoted"
            title = f"After turn {number}" if promoted else f"Turn {number}'s, not promoted"
            self.work(title, loop.version)

    def work(self, title: str, version: int) -> None:
        """Have a version write and draw for the products that are never shown."""
        with self._clock.lap(f"posters: {title.lower()}"):
            products = self._brand.held_out
            copies, prompts = self._texts(products, version)
            drawings = [
                Drawing(prompt, SEED + i, f"{version}-{product.file}.png")
                for i, (product, (_, prompt)) in enumerate(zip(products, prompts, strict=True))
            ]
            files = self._painter.draw(drawings, self._lora(version))
            results = [
                ProductResult(product, copy, prompt, _opened(file))
                for product, (_, copy), (_, prompt), file in zip(
                    products, copies, prompts, files, strict=True
                )
            ]
        self.columns.append((title, results))
        table = Table("", "copy", "prompt", title=title, title_justify="left", box=None)
        for work in results:
            table.add_row(work.product.name, work.copy, work.prompt)
        self._console.print(table)

    def correct(self) -> list[Feedback]:
        """What the brand's person makes of new work: the copy and the prompts rewritten, and for each picture
        that was drawn one of her own."""
        brand, author = self._brand, "art-director"
        catalogue = self._ask(brand.catalogue, lambda p: p.ask_prompt, PROMPT_TOKENS, self.version)
        copies, prompts = self._texts(brand.corrections, self.version)
        items: list[Feedback] = []
        for product, (generation, prompt) in zip(
            [*brand.catalogue, *brand.corrections], [*catalogue, *prompts], strict=True
        ):
            items.append(
                PromptEdited(
                    project=PROJECT,
                    author=author,
                    before=prompt,
                    after=product.prompt,
                    generation=generation,
                )
            )
        for product, (generation, _) in zip(brand.corrections, copies, strict=True):
            items.append(
                AnswerEdited(project=PROJECT, author=author, generation=generation, edited=product.copy)
            )
        return [*items, *self._replace(brand.corrections, [g for g, _ in prompts], author)]

    def _replace(
        self, products: Sequence[Product], generations: Sequence[str], author: str
    ) -> list[Feedback]:
        drawings = [
            Drawing(product.prompt, SEED + i, f"drawn-{product.file}.png")
            for i, product in enumerate(products)
        ]
        files = self._painter.draw(drawings, self._lora(self.version))
        return [
            ImagePicked(
                project=PROJECT,
                author=author,
                picked=(self._client.upload_image(product.picture.read_bytes()),),
                over=(self._client.upload_image(drawn.read_bytes()),),
                prompt=product.prompt,
                generation=generation,
            )
            for product, drawn, generation in zip(products, files, generations, strict=True)
        ]

    def _texts(
        self, products: Sequence[Product], version: int
    ) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Copies and prompts, each with its generation."""
        copies = self._ask(products, lambda p: p.ask_copy, COPY_TOKENS, version)
        return copies, self._ask(products, lambda p: p.ask_prompt, PROMPT_TOKENS, version)

    def _ask(
        self, products: Sequence[Product], question: Callable[[Product], str], tokens: int, version: int
    ) -> list[tuple[str, str]]:
        model = f"{PROJECT}@{version or 'base'}"
        answers = ask_all(self._client, [DemoQuestion(question(p)) for p in products], tokens, model)
        return [(answer.generation, " ".join(answer.text.split())) for answer in answers]

    def _lora(self, version: int) -> Path | None:
        """A version's LoRA, fetched as ComfyUI's node does; None where it has none."""
        _, versions = self._client.versions()
        if not any(candidate.number == version and candidate.image_adapter for candidate in versions):
            return None
        file = self._painter.folder / f"{PROJECT}-v{version}.safetensors"
        file.write_bytes(self._client.image_adapter(version))
        return file

    def _what_became(self, loop: Loop, what: str, pieces: int, states: dict[str, float]) -> dict[str, Any]:
        _, versions = self._client.versions()
        gate = next((v.gate for v in versions if loop.version and v.number == loop.version), None)
        why = f" ({loop.error})" if loop.error else ""
        return {
            "sent": f"{pieces} pieces of {what}",
            "outcome": loop.outcome,
            "error": loop.error,
            "version": loop.version,
            "gate": None if gate is None else gate.model_dump(mode="json"),
            "gate_text": f"There was no gate: no version was trained{why}."
            if gate is None
            else render_text(gate),
            "log": self._client.run_log(loop.run)[0] if loop.run else [],
            "states": {name: round(seconds, 1) for name, seconds in states.items()},
        }

    def report(self) -> dict[str, Any]:
        columns = [
            {
                "title": title,
                "works": [
                    {"product": work.product.name, "copy": work.copy, "prompt": work.prompt}
                    for work in results
                ],
                "edit_distance": _mean([edit_distance(work.copy, work.product.copy) for work in results]),
                "palette_distance": _mean(
                    [posters.palette_distance(work.picture, self._brand.palette) for work in results]
                ),
            }
            for title, results in self.columns
        ]
        return {"columns": columns, "turns": self.turns}

    def sketches(self) -> list[tuple[str, list[Image.Image]]]:
        palette = self._brand.palette
        return [
            (title, [posters.sketch(w.picture, w.product.name, w.copy, palette) for w in results])
            for title, results in self.columns
        ]


def _material(client: Client, brand: Brand) -> list[Feedback]:
    """The catalogue with its pictures, and the style guide."""

    def said(question: str, answer: str) -> SampleUploaded:
        messages = (Message.of("user", question), Message.of("assistant", answer))
        return SampleUploaded(project=PROJECT, author="brand", messages=messages)

    def kept(product: Product) -> ImagePicked:
        picture = client.upload_image(product.picture.read_bytes())
        return ImagePicked(project=PROJECT, author="brand", picked=(picture,), prompt=product.prompt)

    return [
        *(said(product.ask_copy, product.copy) for product in brand.catalogue),
        *(kept(product) for product in brand.catalogue),
        *(said(question, answer) for question, answer in brand.guide),
    ]


def _fewest(brand: Brand) -> int:
    """So many pieces of feedback start a turn: each of the two parcels does."""
    catalogue, corrections = len(brand.catalogue), len(brand.corrections)
    return min(2 * catalogue + len(brand.guide), catalogue + 3 * corrections)


def _more(settings: Settings) -> dict[str, object]:
    ours = OF_THE_STARTER if settings.image_model == IMAGE_STARTER else {}
    chosen = {name: value for name, value in ours.items() if name not in settings.model_fields_set}
    return {"image_model": settings.image_model, **chosen}


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _is_ok(report: dict[str, Any]) -> bool:
    first, last = report["columns"][0], report["columns"][-1]
    return (
        [turn["outcome"] for turn in report["turns"]] == ["promoted", "promoted"]
        and not report["background"]["failed"]
        and last["edit_distance"] <= first["edit_distance"] / 2
        and last["palette_distance"] < first["palette_distance"]
    )


def _write(folder: Path, report: dict[str, Any], studio: _Studio) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sketches = studio.sketches()
    posters.contact_sheet(sketches).save(folder / "brand-sheet.png", optimize=True)
    (folder / "brand-report.json").write_text(
        json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    (folder / "brand-report.html").write_text(
        page.render(report, [pictures for _, pictures in sketches]), "utf-8"
    )


def _summary(console: Console, report: dict[str, Any]) -> None:
    first, last = report["columns"][0], report["columns"][-1]
    outcomes = ", ".join(
        f"turn {n} {t['outcome'] or t['error']}" for n, t in enumerate(report["turns"], start=1)
    )
    other = report["background"]
    console.print(
        f"Outcomes: {outcomes.replace('_', ' ')}. On products that were never shown, the copy's edit distance to "
        f"the brand's own went from {first['edit_distance']:.2f} to {last['edit_distance']:.2f}, and the pictures' "
        f"distance to its colours from {first['palette_distance']:.3f} to {last['palette_distance']:.3f}. "
        f"{other['failed']} of {other['asked']} requests of another client failed meanwhile.",
        highlight=False,
    )
