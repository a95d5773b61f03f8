"""The loop, step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from typer.core import TyperGroup

from comfyloop.cli.base import Json, Project, Url, app, err, plain, put, service, settings_of
from comfyloop.client import show
from comfyloop.client.client import Client
from comfyloop.client.follow import follow
from comfyloop.declared import listed
from comfyloop.errors import InvalidInput
from comfyloop.recipes import RECIPES, of_side
from comfyloop.records import GateReport, Run, Verdict, Version
from comfyloop.settings import IMAGE_STARTER


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Remove old runs, snapshots and versions, as keep_versions and keep_runs say; the service does so hourly."""
    with service(url) as client:
        pruning = client.call("POST", "/v1/prune", dry_run=str(dry_run).lower())
    verb = "would be removed" if dry_run else "removed"
    counts = ", ".join(f"{len(pruning[kind])} {kind}" for kind in ("versions", "runs", "snapshots"))
    busy_sentence = (
        f"Left alone, since a turn is under way: {', '.join(pruning['busy'])}." if pruning["busy"] else ""
    )
    put(
        pruning,
        as_json,
        f"{counts} {verb}: {pruning['bytes'] / 2**20:.1f} MB.",
        *([busy_sentence] if busy_sentence else []),
    )


@app.command()
def train(
    data: Annotated[
        Path | None,
        typer.Argument(help="Rows to train on, as ms-swift writes them: a run of its own, outside the loop."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the turn to its end.")] = True,
    consolidate: Annotated[
        bool,
        typer.Option(
            "--consolidate",
            help="Start from the base models and learn everything, not on from the live version.",
        ),
    ] = False,
    from_swift: Annotated[
        str | None,
        typer.Option(
            "--from-swift", help="Train what this ms-swift command line says (or the script of that name)."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="With --from-swift: only say what it would do.")] = False,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
    recipe: Annotated[str | None, typer.Option(help=f"With DATA: {listed(RECIPES)}.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="With DATA: the base model; default: the setting. Or in place of ms-swift's."),
    ] = None,
    holdout: Annotated[Path | None, typer.Option(help="With DATA: rows that are never trained on.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="With DATA or --from-swift: the run directory; default: the --output_dir of ms-swift's command, or "
            "`run`. A run there goes on.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="With DATA: leave out lines that cannot be trained on, and tell."),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="With DATA: any field of the spec, such as adapter.r=16."),
    ] = None,
) -> None:
    """Start a turn of the loop by hand: curate, train, judge, and promote if it is better. With DATA, train on a
    file instead, here and now, and with --from-swift do what an ms-swift command says; docs/train.md and
    docs/train-swift.md say what can be set."""
    if from_swift is not None:
        raise typer.Exit(_train_from_swift(from_swift, model, output, dry_run, as_json))
    if data is not None:
        raise typer.Exit(_train_on(data, recipe, model, holdout, output or Path("run"), skip_bad, set_ or []))
    with service(url, project) as client:
        before = client.loop()
        client.start_turn(consolidate=consolidate)
        loop = follow(client, before, err, quiet=as_json) if wait else client.loop()
    put(loop, as_json, show.loop(loop))
    if wait and loop.outcome == "failed":
        raise typer.Exit(10)


def _train_on(
    data: Path,
    recipe: str | None,
    model: str | None,
    holdout: Path | None,
    output: Path,
    skip_bad: bool,
    more: list[str],
) -> int:
    from comfyloop.service import model_path
    from comfyloop.train.runners.local import run_here
    from comfyloop.train.specs.needs import refuse_unmet
    from comfyloop.train.specs.options import absolute, make_spec
    from comfyloop.train.specs.text import TrainSpec

    settings = settings_of()
    images = recipe in of_side("image")
    base = model or (settings.image_model or IMAGE_STARTER if images else settings.model)
    cache = {"cache": "latents"} if images else {"feature_cache_dir": "features"}
    fields = {
        "train": absolute(data), "holdout": absolute(holdout), "recipe": recipe,
        "model": model_path(settings, base), "skip_bad": skip_bad or None,
        **{name: str(settings.cache_dir / folder) for name, folder in cache.items()},
    }  # fmt: skip
    if images and model is None and settings.image_model:
        fields |= {
            "vae": absolute(Path(settings.image_vae)) if settings.image_vae else None,
            "prediction_type": settings.image_prediction_type,
        }
    spec = make_spec(fields, more)
    if isinstance(spec, TrainSpec):
        refuse_unmet(spec)
    return run_here(output, spec)


def _train_from_swift(
    command: str, model: str | None, output: Path | None, dry_run: bool, as_json: bool
) -> int:
    from comfyloop.cli import single_run
    from comfyloop.train.specs.needs import refuse_unmet, unmet
    from comfyloop.train.swift.command_line import from_swift, read_command

    converted = from_swift(read_command(command), model=model)
    run_dir = output or Path(converted.output or "run")
    missing = [f"{need.complaint} {need.hint}" for need in unmet(converted.spec)]
    result: dict[str, Any] = {
        "spec": converted.spec.model_dump(mode="json"),
        "run_dir": str(run_dir),
        "honoured": converted.honoured,
        "renamed": converted.renamed,
        "differs_from_ms_swift": converted.differs,
        "missing": missing,
        "makes_no_difference": converted.needless,
        "cannot_be_honoured": converted.refused,
    }
    if not as_json:
        lines = [
            escape(json.dumps(result["spec"], indent=2)),
            *show.from_swift(converted),
            escape(f"run directory: {run_dir}"),
        ]
        put(result["spec"], False, *lines, *(f"[red]missing: {escape(need)}[/]" for need in missing))
    code = 0
    if not dry_run:
        refuse_unmet(converted.spec)
        spec = single_run.prepare(
            run_dir,
            converted.spec,
            converted.datasets,
            converted.holdouts,
            note=lambda s: err.print(escape(s)),
        )
        status = single_run.train(run_dir, spec, quiet=as_json)
        result |= {"status": plain(status)}
        code = status.exit_code
    if as_json:
        put(result, True)
    return code


class _JudgeByDefault(TyperGroup):
    """`comfyloop gate 3` is `comfyloop gate judge 3`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["judge", *args]
        return super().parse_args(ctx, args)


gate_app = typer.Typer(
    cls=_JudgeByDefault,
    help="What the gate says of a version: judge it (comfyloop gate 3), or show what was said (comfyloop gate show 3).",
    no_args_is_help=True,
)
app.add_typer(gate_app, name="gate")

Sheet = Annotated[
    Path | None, typer.Option(help="Write what both versions drew there, as a PNG.", dir_okay=False)
]
Details = Annotated[bool, typer.Option("--details", help="Also the numbers for specialists.")]


@gate_app.command("judge")
def judge(
    number: Annotated[int, typer.Argument(min=1, help="The version to judge.")],
    sheet: Sheet = None,
    details: Details = False,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Judge a version against the live one again. Exit code 1 unless the verdict is to promote."""
    with service(url, project) as client:
        report = client.gate(number)
        _put_report(client, report, sheet, details, as_json)
    if report.verdict is not Verdict.PROMOTE:
        raise typer.Exit(1)


@gate_app.command("show")
def show_report(
    number: Annotated[int, typer.Argument(min=1, help="The version whose report to show.")],
    sheet: Sheet = None,
    details: Details = False,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show the report that was kept when a version was judged: verdict, reason, next step, what got better and
    worse. Nothing is judged again."""
    with service(url, project) as client:
        _put_report(client, client.gate_report(number), sheet, details, as_json)


def _put_report(client: Client, report: GateReport, sheet: Path | None, details: bool, as_json: bool) -> None:
    from comfyloop.gate import render_text

    if sheet is not None:
        sheet.write_bytes(client.sheet(report.candidate))
    version = Version.model_validate(
        client.call("GET", f"/v1/versions/{report.candidate}", project=client.project)
    )
    tried = (escape(f"Canary: {show.canary(version.canary)}"),) if version.canary is not None else ()
    put(report, as_json, escape(render_text(report, details=details)), *tried)


@app.command()
def promote(
    number: Annotated[int, typer.Argument(min=0, help="The version to make live; 0 is the base model.")],
    force: Annotated[bool, typer.Option(help="Also when the gate rejected it.")] = False,
    canary: Annotated[
        float | None,
        typer.Option(min=0, max=0.99, help="Only for this share of the conversations; 0 takes that back."),
    ] = None,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make a version live: load, verify, warm up, flip, drain."""
    with service(url, project) as client:
        reply = client.promote(number, force=force, canary=canary)
    if canary is not None:
        put(reply, as_json, f"{reply['project']}: v{number} answers {canary:.0%} of the conversations")
        return
    put(reply, as_json, f"{reply['project']}: v{reply['previous']} -> v{reply['number']}")


@app.command()
def rollback(
    to: Annotated[
        int | None, typer.Option(help="The version to go back to; default: the one before.")
    ] = None,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Go back to the version that was live before."""
    with service(url, project) as client:
        reply = client.rollback(to)
    put(reply, as_json, f"{reply['project']}: v{reply['previous']} -> v{reply['number']}")


@app.command()
def forget(
    author: Annotated[str | None, typer.Option(help="All that this author sent.")] = None,
    feedback: Annotated[str | None, typer.Option(help="One piece of feedback, by its id.")] = None,
    sample: Annotated[str | None, typer.Option(help="What this training sample was made of.")] = None,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Take feedback back, and what learned from it: the versions that carry it are withdrawn, and a turn learns the
    rest anew."""
    selection = {"author": author, "feedback": feedback, "sample": sample}
    if sum(value is not None for value in selection.values()) != 1:
        raise InvalidInput(
            "It is not said what to forget.", "Give one of --author NAME, --feedback ID and --sample ID."
        )
    with service(url, project) as client:
        outcome = client.forget(**selection)
    put(outcome, as_json, *show.forgotten(outcome))


@app.command()
def versions(project: Project = None, url: Url = None, as_json: Json = False) -> None:
    """The versions of a project, each under the one that it was trained from."""
    with service(url, project) as client:
        live, items = client.versions()
    put({"live": live, "items": plain(items)}, as_json, show.lineage(live, items))


@app.command()
def runs(
    run: Annotated[str | None, typer.Argument(help="Show this one with its loss curve.")] = None,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Training runs, or one of them with its loss curve."""
    with service(url, project) as client:
        if run is None:
            items = [Run.model_validate(item) for item in client.pages("/v1/runs")]
            put(items, as_json, show.runs(items))
            return
        detail = client.call("GET", f"/v1/runs/{quote(run, safe='')}")
        lines, offset = [], 0
        while page := client.run_log(run, offset):
            if not page[0]:
                break
            lines += page[0]
            offset = page[1]
    record = Run.model_validate(detail["run"])
    put({**detail, "log": lines}, as_json, show.runs([record]), show.loss_curve(lines))
