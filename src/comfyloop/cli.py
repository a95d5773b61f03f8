"""The command line: one command a verb, no logic.

`up` and `demo` start a service; every other verb talks to one that runs. Exit codes: 0 done, 1 the answer is
no (a doctor's finding, a gate that does not promote), 2 wrong input, then those of `comfyloop.errors` (3 not
found, 4 conflict, 5 busy, 6 no service, 7 storage, 8 model, 9 data, 10 failed run).
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from comfyloop import __version__, show
from comfyloop.client import Client
from comfyloop.errors import ComfyLoopError, InvalidInput
from comfyloop.follow import follow
from comfyloop.records import Generation, Run, Verdict
from comfyloop.settings import Settings

app = typer.Typer(
    name="comfyloop",
    help="ComfyUI that learns from the person who uses it: feedback in, a better LoRA out, swapped in live.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
feedback_app = typer.Typer(help="What people did: list it, or bring it in from a file.", no_args_is_help=True)
app.add_typer(feedback_app, name="feedback")
comfyui_app = typer.Typer(
    help="The node pack for ComfyUI: put it in, see what is missing.", no_args_is_help=True
)
app.add_typer(comfyui_app, name="comfyui")
engines_app = typer.Typer(
    help="Engines that live in a Python environment of their own: ms-swift, ...", no_args_is_help=True
)
app.add_typer(engines_app, name="engines")

out = Console()
err = Console(stderr=True)

Project = Annotated[str | None, typer.Option("--project", "-p", help="Default: the service's own project.")]
Url = Annotated[str | None, typer.Option("--url", help="The service; default: where the settings put it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")]


def main() -> NoReturn:
    """The entry point: errors become one sentence on standard error and an exit code."""
    try:
        sys.exit(app(standalone_mode=False) or 0)  # the exit code of a typer.Exit is returned
    except typer.Abort:
        sys.exit(130)
    except ComfyLoopError as error:
        err.print(f"[red]{error.code}[/red]: {error}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own: an unknown option, a missing argument
            err.print(f"[red]usage[/red]: {error.format_message()} See --help.", highlight=False)
            sys.exit(2)
        raise


def settings_of(**given: Any) -> Settings:
    """The settings, with what was given on the command line over them."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidInput(
            f"The settings are wrong: {problems}.",
            "They come from COMFYLOOP_* variables, comfyloop.toml and the command line.",
        ) from None


@contextlib.contextmanager
def service(url: str | None, project: str | None = None) -> Iterator[Client]:
    settings = settings_of()
    with Client(url or f"http://{settings.host}:{settings.port}", settings.token, project) as client:
        yield client


def put(data: Any, as_json: bool, *shown: Any) -> None:
    """Print a record or plain data as JSON, else what is shown of it to a person."""
    if as_json:
        sys.stdout.write(json.dumps(_plain(data), ensure_ascii=False, indent=2) + "\n")
    else:
        for thing in shown or (_plain(data),):
            out.print(thing, highlight=False)


def _plain(data: Any) -> Any:
    if isinstance(data, list | tuple):
        return [_plain(item) for item in data]
    return data.model_dump(mode="json") if hasattr(data, "model_dump") else data


# --- a service ----------------------------------------------------------------------------------------------


@app.command()
def up(
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: `starter`, a directory or a hub id.")] = None,
    home: Annotated[Path | None, typer.Option(help="Where data is kept.")] = None,
    project: Project = None,
    port_file: Annotated[
        Path | None, typer.Option(help="Write the port here once it is bound, for scripts.")
    ] = None,
) -> None:
    """Start the service: API, engine and loop. Ctrl-C stops it; a training run goes on and is found again."""
    from comfyloop import service as assembly
    from comfyloop.serve import server

    settings = settings_of(port=port, host=host, model=model, home=home, project=project)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    listener = server.bind(settings.host, settings.port)
    bound = listener.getsockname()[1]
    with assembly.running(settings) as services:
        if port_file is not None:
            port_file.write_text(f"{bound}\n")
        err.print(f"ComfyLoop {__version__} on http://{settings.host}:{bound}  (data in {settings.home})")
        server.run(services, listener)


@app.command()
def demo(
    report: Annotated[Path, typer.Option(help="Where demo-report.json and .html go.")] = Path(),
    home: Annotated[
        Path | None, typer.Option(help="Keep the demo's data here; default: a temporary directory.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model; default: the embedded starter.")] = None,
    as_json: Json = False,
) -> None:
    """Show the loop end to end: ask, correct, train, judge, swap, and ask what was never corrected."""
    from comfyloop.demo import run as play

    done = play(settings_of(model=model), report, home, quiet=as_json)
    put(done, as_json, f"Report: {report / 'demo-report.json'} and {report / 'demo-report.html'}")
    if not done["ok"]:
        raise typer.Exit(1)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look at the machine and the settings, and say what is missing and how to mend it."""
    from comfyloop.doctor import examine

    findings = examine(settings_of())
    put(
        [finding._asdict() for finding in findings],
        as_json,
        *(f"{'[green]ok[/]' if f.ok else '[red]no[/]'}  {f.name:<10} {f.sentence}" for f in findings),
    )
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def status(project: Project = None, url: Url = None, as_json: Json = False) -> None:
    """Where a project stands: live version, loop, what waits to be learnt."""
    with service(url, project) as client:
        loop = client.loop()
        live, _ = client.versions()
        ready = client.ready()
    told = {"ready": ready, "live": live, "loop": loop.model_dump(mode="json")}
    put(
        told,
        as_json,
        f"service     {'ready' if ready else 'not ready'}",
        f"live        v{live}",
        f"waiting     {loop.waiting} of the {loop.trigger} pieces of feedback that start a turn",
        show.loop(loop),
    )


@engines_app.command("list")
def engines_list(as_json: Json = False) -> None:
    """List the engines that can be installed, and where those are that have been."""
    from comfyloop.environments import ENVIRONMENTS, find, installed

    settings = settings_of()
    found = [
        {
            "name": name,
            "what": environment.what,
            "python": str(python) if (python := find(name, settings)) else None,
            "versions": (installed(name, settings) or {}).get("versions", {}),
        }
        for name, environment in ENVIRONMENTS.items()
    ]
    lines = [f"{e['name']:<8} {e['python'] or '[dim]not installed[/]'}  [dim]{e['what']}[/]" for e in found]
    put(found, as_json, *lines)


@engines_app.command("install")
def engines_install(
    name: Annotated[str, typer.Argument(help="As `comfyloop engines list` names it.")],
    as_json: Json = False,
) -> None:
    """Make an engine's environment, or finish one that was cut off, and check that the engine imports."""
    from comfyloop.environments import install, installed

    settings = settings_of()
    with err.status(f"installing {name}") as status:

        def tell(line: str) -> None:
            status.update(line)
            if not err.is_terminal:
                err.print(line, markup=False, highlight=False)

        python = install(name, settings, tell)
    versions = (installed(name, settings) or {}).get("versions", {})
    put(
        {"name": name, "python": str(python), "versions": versions},
        as_json,
        str(python),
        "  ".join(f"{package} {version}" for package, version in versions.items()),
    )


# --- asking and correcting ----------------------------------------------------------------------------------


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", exists=True, dir_okay=False, help="Picture(s) to ask about."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="acme, acme@17, acme@base.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Ask the live version of a project, or another one."""
    with service(url, project) as client:
        answer = client.ask(question, image or (), model=model, max_tokens=max_tokens)
    put(answer._asdict(), as_json, answer.text, f"[dim]{answer.version}  {answer.generation}[/]")


@feedback_app.command("list")
def feedback_list(
    kind: Annotated[str | None, typer.Option(help="answer_edited, answer_accepted, ...")] = None,
    author: Annotated[str | None, typer.Option(help="Only this person's.")] = None,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List what people did, oldest first."""
    with service(url, project) as client:
        items = list(client.pages("/v1/feedback", "next_after", kind=kind, author=author))
    put(items, as_json, *([_feedback_line(item) for item in items] or ["No feedback yet."]))


def _feedback_line(item: dict[str, Any]) -> str:
    item = item.get("feedback", item)
    what = item.get("edited") or item.get("after") or item.get("comment") or ""
    return f"[dim]{item['id']}[/]  {item['kind']:<16} {item['author']:<10} {str(what)[:70]}"


@feedback_app.command("import")
def feedback_import(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .jsonl of ms-swift's form.")],
    author: Annotated[str, typer.Option(help="Whose samples these are.")] = "local",
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Bring in training samples: `messages` + `images` JSON lines, as ms-swift reads them."""
    from comfyloop.curate import import_rows

    with service(url, project) as client:
        items = import_rows(path, client.default_project(), author, client.upload_image)
        receipt = client.send_feedback(items)
    stored, known = len(receipt["stored"]), len(receipt["duplicates"])
    put(receipt, as_json, f"{stored} samples stored, {known} were there already.")


# --- the loop, step by step ---------------------------------------------------------------------------------


@app.command()
def snapshot(project: Project = None, url: Url = None, as_json: Json = False) -> None:
    """Curate what was fed back into a snapshot now, without training on it."""
    with service(url, project) as client:
        found = client.snapshot()
    put(found, as_json, show.snapshot(found))


@app.command()
def export(
    target: Annotated[Path, typer.Argument(help="Directory to write; it must be new or empty.")],
    snapshot_id: Annotated[
        str | None, typer.Option("--snapshot", help="Which one; default: the newest.")
    ] = None,
    format: Annotated[str, typer.Option(help="swift: messages + images JSON lines.")] = "swift",
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Write a snapshot's data for training elsewhere."""
    from comfyloop.curate import export as write

    with service(url, project) as client:
        found = next(iter(client.pages("/v1/snapshots")), None)
        if snapshot_id is not None:
            found = client.call("GET", f"/v1/snapshots/{snapshot_id}", project=project)
        if found is None:
            found = client.snapshot().model_dump(mode="json")
    files = [str(path) for path in write(Path(found["path"]), target, format)]
    put({"snapshot": found["id"], "files": files}, as_json, *files)


@app.command()
def train(
    data: Annotated[
        Path | None,
        typer.Argument(help="Rows to train on, as ms-swift writes them: a run of its own, outside the loop."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the turn to its end.")] = True,
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
    recipe: Annotated[
        str | None, typer.Option(help="With DATA: sft, dpo, kto, image_sft or image_dpo.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="With DATA: the base model; default: the setting. Or in place of ms-swift's."),
    ] = None,
    holdout: Annotated[Path | None, typer.Option(help="With DATA: rows that are never trained on.")] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="With DATA or --from-swift: the run directory. A run there goes on."
        ),
    ] = Path("run"),
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
        raise typer.Exit(_train_on(data, recipe, model, holdout, output, skip_bad, set_ or []))
    with service(url, project) as client:
        before = client.loop()
        client.start_turn()
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
    from comfyloop.service import IMAGE_STARTER, model_path
    from comfyloop.train.image.spec import IMAGE_RECIPES
    from comfyloop.train.options import absolute, make_spec
    from comfyloop.train.runners.local import run_here

    settings = Settings()
    images = recipe in IMAGE_RECIPES
    base = model or (settings.image_model or IMAGE_STARTER if images else settings.model)
    cache = {"cache": "latents"} if images else {"feature_cache_dir": "features"}
    known = {
        "train": absolute(data), "holdout": absolute(holdout), "recipe": recipe,
        "model": model_path(settings, base), "skip_bad": skip_bad or None,
        **{name: str(settings.cache_dir / folder) for name, folder in cache.items()},
    }  # fmt: skip
    return run_here(output, make_spec(known, more))


def _train_from_swift(command: str, model: str | None, output: Path, dry_run: bool, as_json: bool) -> int:
    from comfyloop import single_run
    from comfyloop.train.swift_flags import from_swift, read_command

    asked = from_swift(read_command(command), model=model)
    told: dict[str, Any] = {
        "spec": asked.spec.model_dump(mode="json"),
        "renamed": asked.renamed,
        "makes_no_difference": asked.needless,
        "cannot_be_honoured": asked.refused,
    }
    if not as_json:
        put(told["spec"], False, json.dumps(told["spec"], indent=2), *show.from_swift(asked))
    code = 0
    if not dry_run:
        spec = single_run.prepare(output, asked.spec, asked.datasets, asked.holdouts)
        status = single_run.train(output, spec, quiet=as_json)
        told |= {"run_dir": str(output), "status": _plain(status)}
        code = status.exit_code
    if as_json:
        put(told, True)
    return code


@app.command()
def gate(
    number: Annotated[int, typer.Argument(min=1, help="The version to judge.")],
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Judge a version against the live one again. Exit code 1 unless the verdict is to promote."""
    from comfyloop.gate import render_text

    with service(url, project) as client:
        report = client.gate(number)
    put(report, as_json, render_text(report))
    if report.verdict is not Verdict.PROMOTE:
        raise typer.Exit(1)


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
        done = client.promote(number, force=force, canary=canary)
    if canary is not None:
        put(done, as_json, f"{done['project']}: v{number} answers {canary:.0%} of the conversations")
        return
    put(done, as_json, f"{done['project']}: v{done['previous']} -> v{done['number']}")


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
        done = client.rollback(to)
    put(done, as_json, f"{done['project']}: v{done['previous']} -> v{done['number']}")


@app.command()
def versions(project: Project = None, url: Url = None, as_json: Json = False) -> None:
    """The versions of a project, each under the one that it was trained from."""
    with service(url, project) as client:
        live, found = client.versions()
    put({"live": live, "items": _plain(found)}, as_json, show.lineage(live, found))


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
            found = [Run.model_validate(item) for item in client.pages("/v1/runs")]
            put(found, as_json, show.runs(found))
            return
        detail = client.call("GET", f"/v1/runs/{run}")
        lines, offset = [], 0
        while page := client.run_log(run, offset):
            if not page[0]:
                break
            lines += page[0]
            offset = page[1]
    shown = Run.model_validate(detail["run"])
    put({**detail, "log": lines}, as_json, show.runs([shown]), show.loss_curve(lines))


@app.command()
def generation(
    id: Annotated[str, typer.Argument(help="gen_...")], url: Url = None, as_json: Json = False
) -> None:
    """One answer as it was recorded: messages, version, sampling settings."""
    with service(url) as client:
        found: Generation = client.generation(id)
    question = found.messages[-1].text
    put(found, as_json, f"[bold]{question}[/]", found.answer, f"[dim]{found.project}@{found.version}[/]")


# --- ComfyUI ------------------------------------------------------------------------------------------------

ComfyUIPath = Annotated[
    Path, typer.Argument(metavar="PATH", help="The folder in which ComfyUI was installed.")
]


@comfyui_app.command("link")
def comfyui_link(
    path: ComfyUIPath,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the pack instead of linking to it.")] = False,
    as_json: Json = False,
) -> None:
    """Put the node pack into a ComfyUI; doing it again changes nothing. Start ComfyUI again afterwards."""
    from comfyloop.comfyui import link

    target = link(path, copy)
    put({"path": str(target)}, as_json, f"The node pack is at {target}. Start ComfyUI again to load it.")


@comfyui_app.command("unlink")
def comfyui_unlink(path: ComfyUIPath, as_json: Json = False) -> None:
    """Take the node pack out of a ComfyUI; what waits there to be delivered stays."""
    from comfyloop.comfyui import unlink

    removed = unlink(path)
    put({"removed": removed}, as_json, "The node pack was taken out." if removed else "It was not there.")


@comfyui_app.command("doctor")
def comfyui_doctor(path: ComfyUIPath, as_json: Json = False) -> None:
    """Say what a ComfyUI lacks to work with ComfyLoop. Exit code 1 when something is missing."""
    from comfyloop.comfyui import doctor as examine

    findings = examine(path)
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]! [/]", "missing": "[red]no[/]"}
    put(
        [asdict(finding) for finding in findings],
        as_json,
        *(f"{marks[f.state]}  {f.what:<10} {f'{f.says} {f.mend}'.strip()}" for f in findings),
    )
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print ComfyLoop's own version."""
    out.print(__version__, highlight=False)


if __name__ == "__main__":
    main()
