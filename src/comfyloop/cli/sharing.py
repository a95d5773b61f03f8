"""Versions that travel: out to others, and theirs in."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.markup import escape

from comfyloop.cli.base import Json, Project, Url, app, out, plain, put, service, settings_of
from comfyloop.client import bundles, show
from comfyloop.client.client import Client
from comfyloop.durable import write_whole
from comfyloop.errors import Conflict, DataError, InvalidInput, StorageError
from comfyloop.files import regular
from comfyloop.records import Verdict, Version
from comfyloop.registry.manifest import Include, SuiteScores

bundle_app = typer.Typer(
    help="A version as one signed file: export, look into, import.", no_args_is_help=True
)
app.add_typer(bundle_app, name="bundle")

NAME = re.compile(r"^(?:(?P<project>[a-z0-9][a-z0-9._-]*)@)?(?P<number>[1-9]\d{0,8})$")

MOST_EVALUATION = 2**20

VersionName = Annotated[str, typer.Argument(metavar="VERSION", help="acme@17, or 17.")]
With = Annotated[
    list[Include] | None,
    typer.Option("--with", help="Pictures or prompts, which stay out unless they are named."),
]
Evaluation = Annotated[
    Path | None, typer.Option("--evaluation", help="A file of `comfyloop evaluate`, for the card.")
]
Licence = Annotated[
    str, typer.Option("--licence", help="SPDX id, such as apache-2.0, or a file with the text.")
]
TrustNewKey = Annotated[
    bool, typer.Option("--trust-new-key", help="Take another key than the one that its publisher had before.")
]
Promote = Annotated[
    bool, typer.Option("--promote", help="Make it live, without asking, if the gate says so.")
]


class Form(StrEnum):
    """What a version is written as, for use elsewhere."""

    PEFT = "peft"
    MS_SWIFT = "ms-swift"
    MERGED = "merged"
    GGUF = "gguf"
    COMFYUI = "comfyui"
    COMFYUI_TEXT = "comfyui-text"


def version_of(name: str, project: str | None) -> tuple[str | None, int]:
    """The project and number that `acme@17`, `17` or `v17` names."""
    match = NAME.match(name.removeprefix("v"))
    if match is None:
        raise InvalidInput(f"{name!r} names no version.", "Write acme@17, or 17.")
    return match["project"] or project, int(match["number"])


def wanted_of(include: list[Include] | None, licence: str, evaluation: Path | None) -> dict[str, Any]:
    text = ""
    if licence and Path(licence).is_file():
        text, licence = Path(licence).read_text("utf-8"), ""
    return {
        "include": [one.value for one in include or ()],
        "licence": licence,
        "licence_text": text,
        "suites": _suites_of(evaluation) if evaluation is not None else [],
    }


def _suites_of(file: Path) -> list[dict[str, Any]]:
    try:
        suites = TypeAdapter(list[SuiteScores]).validate_json(regular(file, MOST_EVALUATION).read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{file} is no evaluation: {str(error).partition(chr(10))[0]}.",
            "`comfyloop evaluate` writes one.",
        ) from None
    return [suite.model_dump(mode="json") for suite in suites]


@app.command()
def evaluate(
    version: VersionName,
    target: Annotated[
        Path | None, typer.Argument(help="File to write; default: acme-17-evaluation.json.")
    ] = None,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Ask a version and its base model the general suites and what is held out, for the version's card (bundle export
    and push take the file with --evaluation)."""
    project, number = version_of(version, project)
    with service(url, project) as client:
        name = client.project or settings_of().project
        target = target or Path(f"{name}-{number}-evaluation.json")
        if target.exists():
            raise Conflict(f"{target} is there already.", "Give another name.")
        suites = bundles.evaluate(client, number)
    try:
        write_whole(target, json.dumps(suites, ensure_ascii=False, indent=2) + "\n")
    except OSError as error:
        raise StorageError(f"{target} could not be written: {error.strerror or error}.") from error
    put(
        {"written": str(target), "suites": suites},
        as_json,
        show.suites(suites),
        escape(f"Written to {target}."),
    )


@bundle_app.command("export")
def export_bundle(
    version: VersionName,
    target: Annotated[Path, typer.Argument(help="File to write, such as acme-17.comfyloop.")],
    include: With = None,
    licence: Licence = "",
    evaluation: Evaluation = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be in it.")] = False,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Write a version as a signed bundle, and say first what is in it."""
    project, number = version_of(version, project)
    if target.exists() and not dry_run:
        raise InvalidInput(f"{target} is there already.", "Give another name.")
    options = wanted_of(include, licence, evaluation)
    with service(url, project) as client:
        contents = _say_and_write(client, number, options, None if dry_run else target, as_json)
    result = {**contents, "written": None if dry_run else str(target)}
    put(result, as_json, "Nothing was written." if dry_run else escape(f"Written to {target}."))


def _say_and_write(
    client: Client, number: int, options: dict[str, Any], target: Path | None, as_json: bool
) -> dict[str, Any]:
    """Say what a bundle of a version holds, then write it, if there is where to; what was said."""
    contents = bundles.contents(client, number, options)
    if not as_json:
        put(None, False, *show.bundle(contents["manifest"], contents["files"]))
    if target is not None:
        bundles.export(client, number, target, options)
    return contents


@bundle_app.command("show")
def show_bundle(
    file: Annotated[Path, typer.Argument(help="A .comfyloop file.")],
    as_json: Json = False,
) -> None:
    """Look into a bundle: what it is, who signed it, what it holds. Nothing is imported."""
    from comfyloop.registry import bundle, keys

    signed_bundle = bundle.look(file)
    manifest = plain(signed_bundle.manifest)
    files = {one["name"]: one["bytes"] for one in manifest["files"]}
    signature = f"Signed by {signed_bundle.manifest.publisher} with the key {keys.short(signed_bundle.key)}."
    put(
        {"manifest": manifest, "key": signed_bundle.key},
        as_json,
        *show.bundle(manifest, files),
        escape(signature),
    )


@bundle_app.command("import")
def import_bundle(
    file: Annotated[Path, typer.Argument(help="A .comfyloop file.")],
    trust_new_key: TrustNewKey = False,
    promote: Promote = False,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Take a bundle in as a candidate, judge it on this project's own held-out items, and offer to make it live."""
    with service(url, project) as client:
        raise typer.Exit(take_in(client, file, trust_new_key, promote, as_json))


def take_in(client: Client, file: Path, trust_new_key: bool, promote: bool, as_json: bool) -> int:
    """Import, judge, and promote if a person says so. The exit code: 1 unless the gate would promote it."""
    from comfyloop.gate import render_text

    imported = bundles.take_in(client, file, trust_new_key=trust_new_key)
    version = Version.model_validate(imported["version"])
    name = f"{version.project}@{version.number}"
    if not as_json:
        out.print(escape(imported["trust"]), highlight=False, soft_wrap=True)
        out.print(
            escape(f"It is {name} here, a candidate. Judging it on {version.project}'s own held-out items …")
        )
    try:
        report = client.gate(version.number)
    except DataError as error:  # this project has no corrections yet
        sentence = f"{name} cannot be judged yet: {error} Then: comfyloop gate {version.number}"
        put({**imported, "gate": None, "promoted": None}, as_json, escape(sentence))
        return 1
    if not as_json:
        out.print(escape(render_text(report)), highlight=False)
    good = report.verdict is Verdict.PROMOTE
    if good and not promote and not as_json and sys.stdin.isatty():
        promote = typer.confirm(f"Make {name} live?")
    promotion = client.promote(version.number) if good and promote else None
    result = {**imported, "gate": plain(report), "promoted": promotion}
    if promotion is not None:
        sentence = f"{promotion['project']}: v{promotion['previous']} -> v{promotion['number']}"
    elif good:
        sentence = f"To make it live: comfyloop promote {version.number}"
    else:
        sentence = f"{name} stays a candidate; comfyloop gate show {version.number} shows why."
    put(result, as_json, escape(sentence))
    return 0 if good else 1


class OutType(StrEnum):
    """The numbers of a GGUF model's matrices, by llama.cpp's names."""

    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"
    Q8_0 = "q8_0"


_ENDINGS = {Form.COMFYUI: ".safetensors", Form.COMFYUI_TEXT: "-text.safetensors"}
"""Forms that are one file."""


def export_version(
    version: str,
    into: Path | None,
    form: Form,
    outtype: OutType | None,
    project: str | None,
    url: str | None,
    as_json: bool,
) -> tuple[dict[str, Any], bool, str]:
    """Write a version's adapter, or the base model with it; what `put` is to show."""
    from comfyloop.registry import bundle
    from comfyloop.registry.manifest import IMAGE_WEIGHTS, TEXT_CONFIG

    if outtype is not None and form is not Form.GGUF:
        raise InvalidInput("--outtype is for --to gguf.", "Leave it out.")
    project, number = version_of(version, project)
    with tempfile.TemporaryDirectory(prefix="comfyloop-") as temporary, service(url, project) as client:
        file, files = Path(temporary) / "x.comfyloop", Path(temporary) / "files"
        bundles.export(client, number, file, {})
        manifest = bundle.unfold(file, files).manifest
        name = f"{manifest.project}-{number}"
        target = into or Path(name + _ENDINGS.get(form, f"-{form.value}"))
        if target.exists():
            raise Conflict(f"{target} is there already.", "Give another name.")
        source = files / (IMAGE_WEIGHTS if form is Form.COMFYUI else TEXT_CONFIG)
        if not source.exists():
            side = "image" if form is Form.COMFYUI else "text"
            raise InvalidInput(
                f"{manifest.project}@{number} has no {side} side, which --to {form.value} writes."
            )
        notes: list[str] = []
        match form:
            case Form.COMFYUI:
                shutil.move(source, target)
            case Form.COMFYUI_TEXT:
                from comfyloop.registry import comfyui_text

                kind = manifest.text_base.kind if manifest.text_base else ""
                notes = comfyui_text.write(source.parent, kind, target)
            case Form.PEFT | Form.MS_SWIFT:
                if form is Form.MS_SWIFT:
                    notes = [_for_swift(client, manifest.project, files, target)]
                shutil.move(source.parent, target)
            case Form.MERGED:
                from comfyloop.registry import merge

                merge.merge(source.parent, _base_model(client, manifest.project), target)
            case Form.GGUF:
                from comfyloop.registry import gguf_files

                base = manifest.text_base.name if manifest.text_base else ""
                about = gguf_files.GgufMetadata(name, base, manifest.licence)
                place = _base_model(client, manifest.project)
                notes = gguf_files.write(source.parent, place, target, about, (outtype or OutType.F16).value)
    result = {"version": f"{manifest.project}@{number}", "written": str(target), "notes": notes}
    return result, as_json, escape("\n".join([str(target), *notes]))


def _base_model(client: Client, project: str) -> Path:
    """Where the base model of a project lies."""
    from comfyloop.registry import base_model
    from comfyloop.service import model_path

    set_model = _set_model(client, project)
    place = base_model.local(model_path(settings_of(), set_model))
    if place is None:
        raise InvalidInput(
            f"The base model {set_model} is not on this machine.",
            "Export it where it is, or download it first.",
        )
    return place


def _set_model(client: Client, project: str) -> str:
    return str(client.call("GET", f"/v1/projects/{project}")["base_model"])


def _for_swift(client: Client, project: str, files: Path, target: Path) -> str:
    """Put what ms-swift needs beside the adapter; how it is run, in a sentence."""
    from comfyloop.registry import swift_folder
    from comfyloop.registry.manifest import SPEC, TEXT_CONFIG

    spec = files / SPEC
    trained = json.loads(spec.read_text("utf-8")) if spec.exists() else {}
    adapter = (files / TEXT_CONFIG).parent
    return f"Run it: {swift_folder.complete(adapter, _set_model(client, project), trained, target)}"


@app.command()
def push(
    version: VersionName,
    place: Annotated[str, typer.Argument(help="hf:user/name or ms:user/name.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository that everybody may see.")
    ] = False,
    include: With = None,
    licence: Licence = "",
    evaluation: Evaluation = None,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Upload a version to Hugging Face or ModelScope: its adapters, card and gate report, signed."""
    from comfyloop.registry import hubs

    where = hubs.HubPlace.parse(place)
    project, number = version_of(version, project)
    options = wanted_of(include, licence, evaluation)
    staging = _staging(where)
    with service(url, project) as client:
        file = staging / "out.comfyloop"
        contents = _say_and_write(client, number, options, file, as_json)
    hubs.push(file, where, staging, private=not public, quiet=as_json)
    shutil.rmtree(staging)
    put({**contents, "pushed": str(where)}, as_json, escape(f"Pushed to {where}."))


@app.command()
def pull(
    place: Annotated[str, typer.Argument(help="hf:user/name or ms:user/name.")],
    trust_new_key: TrustNewKey = False,
    promote: Promote = False,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Download a version that somebody pushed, take it in as a candidate, judge it here, and offer to make it live."""
    from comfyloop.registry import hubs

    where = hubs.HubPlace.parse(place)
    staging = _staging(where)
    with service(url, project) as client:
        client.loop()  # that it is there is better known before much is downloaded
        file = hubs.pull(where, staging, quiet=as_json)
        code = take_in(client, file, trust_new_key, promote, as_json)
    shutil.rmtree(staging)
    raise typer.Exit(code)


index_app = typer.Typer(help="A community's bundles, listed.", no_args_is_help=True)
app.add_typer(index_app, name="index")

Where = Annotated[
    str,
    typer.Argument(metavar="PLACE", help="A folder, a git repository or a web address with an index.json."),
]


@index_app.command("build")
def build_index(
    folder: Annotated[Path, typer.Argument(help="The folder with the .comfyloop files.")],
    as_json: Json = False,
) -> None:
    """Write index.json and a page beside the bundles in a folder, to be put on any web host or into a repository. Exit
    code 1 when one of them is bad."""
    from comfyloop.registry import index

    built = index.build(folder)
    put(built, as_json, *show.index(plain(built)["entries"]))
    if any(entry.problem for entry in built.entries):
        raise typer.Exit(1)


@app.command()
def browse(place: Where, as_json: Json = False) -> None:
    """List the bundles of a community's index; what is not signed, or bad, is shown as such."""
    from comfyloop.registry import index

    listing = index.read(place, settings_of().cache_dir)
    put(listing, as_json, *show.index(plain(listing)["entries"]))


@app.command()
def adopt(
    place: Where,
    name: Annotated[str, typer.Argument(help="acme@17, or the name of its file.")],
    trust_new_key: TrustNewKey = False,
    promote: Promote = False,
    project: Project = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Take a bundle of a community's index in as a candidate, judge it here, and offer to make it live."""
    from comfyloop.registry import index

    settings = settings_of()
    with service(url, project) as client:
        client.loop()
        file = index.fetch(place, name, settings.cache_dir, settings.max_bundle_bytes)
        code = take_in(client, file, trust_new_key, promote, as_json)
    file.unlink()
    raise typer.Exit(code)


def _staging(place: object) -> Path:
    """Where what goes over is kept until all has: what broke off goes on there."""
    folder = settings_of().cache_dir / "hubs" / str(place).replace(":", "-").replace("/", "--")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}.") from error
    return folder
