"""Every kind of data is found by looking, and becomes what it means."""

from __future__ import annotations

import csv
import json
import math
import shutil
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comfyloop.datasets import DataSetState
from comfyloop.records import ImagePicked, SampleUploaded
from comfyloop.sources.builtin import BUILTIN
from tests.unit.datasets.conftest import Adding, picture

Told = tuple[Any, ...]


def told(adding: Adding) -> list[Told]:
    """What was stored, without hashes: (question, answer, pictures, rejected, label), or (prompt, kept, over)."""
    found: list[Told] = []
    for item in adding.stored():
        if isinstance(item, ImagePicked):
            found.append((item.prompt, len(item.picked), len(item.over)))
        else:
            assert isinstance(item, SampleUploaded)
            asked = [m.text for m in item.messages if m.role == "user"][-1]
            pictures = sum(len(m.images) for m in item.messages)
            found.append((asked, item.messages[-1].text, pictures, item.rejected, item.label))
    return sorted(found, key=repr)


def lines(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    (folder / name).write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return folder


def swift(folder: Path) -> Path:
    (folder / "a.png").write_bytes(picture())
    said = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A mug."}]
    return lines(folder, "data.jsonl", {"messages": said, "images": ["a.png"]})


def sharegpt(folder: Path) -> Path:
    (folder / "a.png").write_bytes(picture())
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A mug."}]
    (folder / "llava.json").write_text(json.dumps([{"id": "1", "image": "a.png", "conversations": said}]))
    return folder


def alpaca(folder: Path) -> Path:
    row = {"instruction": "Name it", "input": "red thing", "output": "A mug."}
    (folder / "alpaca.json").write_text(json.dumps([row]))
    return folder


def table(folder: Path) -> Path:
    (folder / "a.png").write_bytes(picture())
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["photo", "Question", "Answer", "split"], ["a.png", "What?", "A mug.", "x"]]
        )
    return folder


def parquet(folder: Path) -> Path:
    arrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = {"bytes": picture(), "path": "a.png"}
    pq.write_table(arrow.table({"image": [image], "text": ["a red square"]}), folder / "train-00000.parquet")
    return folder


def captions(folder: Path) -> Path:
    (folder / "a.png").write_bytes(picture())
    (folder / "a.txt").write_text("a red square\n", encoding="utf-8")
    (folder / "b.jpg").write_bytes(picture("blue", kind="JPEG"))
    (folder / "b.caption").write_text("a blue square", encoding="utf-8")
    return folder


def kohya(folder: Path) -> Path:
    (folder / "10_red mug").mkdir()
    (folder / "10_red mug" / "a.png").write_bytes(picture())
    (folder / "2_blue").mkdir()
    (folder / "2_blue" / "b.png").write_bytes(picture("blue"))
    (folder / "2_blue" / "b.txt").write_text("a blue square", encoding="utf-8")
    return folder


def image_folder(folder: Path) -> Path:
    (folder / "a.png").write_bytes(picture())
    return lines(folder, "metadata.jsonl", {"file_name": "a.png", "text": "a red square"})


def webdataset(folder: Path) -> Path:
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard:03}.tar", "w") as archive:
            for n in range(2):
                key = f"{shard}{n}"
                colour = f"#{shard * 2 + n:02x}0000"
                parts = {"png": picture(colour), "txt": f"number {key}".encode(), "json": b'{"width": 8}'}
                for ending, data in parts.items():
                    entry = tarfile.TarInfo(f"{key}.{ending}")
                    entry.size = len(data)
                    archive.addfile(entry, BytesIO(data))
    return folder


def webdataset_with_dots(folder: Path) -> Path:
    """Names that have dots of their own: up to the first one, all of them are one sample."""
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for key, colour in (("22.05", "red"), ("22.06", "blue")):
            for ending, data in {"png": picture(colour), "txt": f"number {key}".encode()}.items():
                entry = tarfile.TarInfo(f"{key}.{ending}")
                entry.size = len(data)
                archive.addfile(entry, BytesIO(data))
    return folder


def graph(prompt: str, prefix: str = "mug") -> dict[str, Any]:
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": prompt, "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 8, "height": 8, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
            }
            | {
                "seed": 42,
                "steps": 20,
                "cfg": 7.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": prefix}},
    }


def comfyui(folder: Path) -> Path:
    info = PngInfo()
    info.add_text("prompt", json.dumps(graph("a red mug")))
    info.add_text("workflow", json.dumps({"nodes": []}))
    Image.new("RGB", (8, 8), "red").save(folder / "mug_00001_.png", pnginfo=info)
    return folder


def open_webui(folder: Path) -> Path:
    def one(id: str, rating: int, answer: str, original: str | None) -> dict[str, Any]:
        said = {
            "q": {"id": "q", "parentId": None, "role": "user", "content": "Name the mug."},
            "a": {
                "id": "a",
                "parentId": "q",
                "role": "assistant",
                "content": answer,
                "model": "m",
                "done": True,
            },
        }
        if original is not None:
            said["a"]["originalContent"] = original
        chat = {"history": {"messages": said, "currentId": "a"}, "params": {"system": "Be brief."}}
        return {
            "id": id, "user_id": "u", "version": 0, "type": "rating", "created_at": 1, "updated_at": 1,
            "data": {"rating": rating, "model_id": "m", "reason": "accurate"},
            "meta": {"chat_id": "c", "message_id": "a"}, "snapshot": {"chat": {"id": "c", "chat": chat}},
        }  # fmt: skip

    exported = [
        one("1", 1, "Mug.", None),
        one("2", -1, '<details type="reasoning" done="true">\nhm\n</details>\nA cup, I think.', None),
        one("3", 1, "Meet the mug.", "It is a mug."),
    ]
    (folder / "feedback-history-export.json").write_text(json.dumps(exported))
    return folder


def langfuse(folder: Path) -> Path:
    asked = [{"role": "user", "content": "Name the mug."}]
    observation = {
        "id": "o1", "trace_id": "t1", "type": "GENERATION", "project_id": "p",
        "input": json.dumps({"messages": asked}), "output": json.dumps({"role": "assistant", "content": "A mug."}),
    }  # fmt: skip
    (folder / "observations_v2").mkdir()
    (folder / "scores").mkdir()
    lines(
        folder / "observations_v2",
        "1.jsonl",
        observation,
        {**observation, "id": "o2", "output": "never corrected"},
    )
    score = {
        "id": "s1", "trace_id": "t1", "observation_id": "o1", "name": "output", "data_type": "CORRECTION",
        "value": 0, "string_value": "", "long_string_value": "Meet the mug.", "source": "ANNOTATION",
    }  # fmt: skip
    lines(
        folder / "scores",
        "1.jsonl",
        score,
        {**score, "id": "s2", "name": "ok", "data_type": "NUMERIC", "value": 1},
    )
    return folder


def langfuse_api(folder: Path) -> Path:
    trace = {
        "id": "t1", "projectId": "p", "input": "Name the mug.", "output": "A mug.", "observations": [],
        "scores": [{"traceId": "t1", "observationId": None, "name": "output", "dataType": "CORRECTION", "stringValue": "Meet the mug."}],  # noqa: E501
    }  # fmt: skip
    return lines(folder, "traces.jsonl", trace)


def completions(folder: Path) -> Path:
    completion = {
        "object": "chat.completion", "id": "chatcmpl-1", "model": "gpt-4o", "metadata": {"a": "b"}, "request_id": "r",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "A mug.", "refusal": None}}],  # noqa: E501
        "messages": {"object": "list", "data": [{"id": "m0", "role": "user", "content": "Name the mug.", "name": None}]},  # noqa: E501
    }  # fmt: skip
    (folder / "stored.json").write_text(
        json.dumps({"object": "list", "data": [completion], "has_more": False})
    )
    return folder


A_MUG = ("What?", "A mug.", 1, None, None)
RED = ("a red square", 1, 0)
CORRECTED = ("Name the mug.", "Meet the mug.", 0, "A mug.", None)

KINDS: dict[str, tuple[Callable[[Path], Path], str, list[Told]]] = {
    "ms-swift": (swift, "rows", [A_MUG]),
    "llava": (sharegpt, "rows", [("\nWhat?", "A mug.", 1, None, None)]),
    "alpaca": (alpaca, "rows", [("Name it\nred thing", "A mug.", 0, None, None)]),
    "csv": (table, "rows", [A_MUG]),
    "parquet": (parquet, "rows", [RED]),
    "captions": (captions, "captions", [("a blue square", 1, 0), RED]),
    "kohya": (kohya, "captions", [("a blue square", 1, 0), ("red mug", 1, 0)]),
    "image folder": (image_folder, "captions", [RED]),
    "webdataset with dots": (
        webdataset_with_dots,
        "webdataset",
        [(f"number {key}", 1, 0) for key in ("22.05", "22.06")],
    ),
    "webdataset": (webdataset, "webdataset", [(f"number {key}", 1, 0) for key in ("00", "01", "10", "11")]),
    "comfyui": (comfyui, "comfyui", [("a red mug", 1, 0)]),
    "open webui": (
        open_webui,
        "open-webui",
        [
            ("Name the mug.", "A cup, I think.", 0, None, False),
            ("Name the mug.", "Meet the mug.", 0, "It is a mug.", None),
            ("Name the mug.", "Mug.", 0, None, True),
        ],
    ),
    "langfuse export": (langfuse, "langfuse", [CORRECTED]),
    "langfuse api": (langfuse_api, "langfuse", [CORRECTED]),
    "stored completions": (completions, "openai", [("Name the mug.", "A mug.", 0, None, None)]),
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_found_by_looking(adding: Adding, tmp_path: Path, kind: str, packed: bool) -> None:
    make, format, wanted = KINDS[kind]
    (tmp_path / "data").mkdir()
    path = make(tmp_path / "data")
    if packed:
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for file in sorted(path.rglob("*")):
                archive.write(file, f"top/{file.relative_to(path)}")
        path = tmp_path / "data.zip"
    done = adding.add(path)
    assert (done.state, done.error) == (DataSetState.DONE, "")
    assert done.format == format
    assert told(adding) == wanted
    assert done.stored == len(wanted)


def test_how_often_kohya_passes_a_picture_is_kept(adding: Adding, tmp_path: Path) -> None:
    adding.add(kohya(tmp_path))
    picked = [item for item in adding.stored() if isinstance(item, ImagePicked)]
    assert {item.prompt: item.repeats for item in picked} == {"red mug": 10, "a blue square": 2}


def test_a_picture_of_comfyui_keeps_its_seed_and_models(adding: Adding, tmp_path: Path) -> None:
    adding.add(comfyui(tmp_path))
    (item,) = adding.stored()
    assert item.comment == "seed 42; models v1-5.safetensors"


@pytest.mark.parametrize("kind", ["WEBP", "JPEG", "animation"])
def test_the_workflow_in_a_picture_that_is_no_still_png_is_read_too(
    adding: Adding, tmp_path: Path, kind: str
) -> None:
    """As SaveAnimatedWEBP, SaveAnimatedPNG and other packs' nodes write it; a camera's EXIF is no workflow."""
    told_by = json.dumps(graph("a red mug"))
    image, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    if kind == "animation":
        info = PngInfo()
        info.add(b"comf", b"prompt\0" + told_by.encode("latin-1"), after_idat=True)
        image.save(tmp_path / "mug_00001_.png", save_all=True, append_images=[second], pnginfo=info)
    else:
        exif = image.getexif()
        exif[0x0110], exif[0x010F] = f"prompt:{told_by}", 'workflow:{"nodes": []}'
        image.save(tmp_path / f"mug_00001_.{kind.lower()}", kind, exif=exif)
    exif = image.getexif()
    exif[0x0110], exif[0x010F] = "EOS 5D", "Canon"
    second.save(tmp_path / "IMG_2.jpg", exif=exif)
    done = adding.add(tmp_path, skip_bad=True)
    assert told(adding) == [("a red mug", 1, 0)]
    assert "IMG_2.jpg: it has no workflow in it" in done.problems[0]
    (item,) = adding.stored()
    assert item.comment == "seed 42; models v1-5.safetensors"


def test_a_picture_of_comfyui_of_two_prompts_is_told_by_its_name(adding: Adding, tmp_path: Path) -> None:
    both = graph("a red mug")
    both |= {f"1{key}": node for key, node in json.loads(json.dumps(graph("a blue cup", "cup"))).items()}
    for key, node in both.items():
        if key.startswith("1") and key != "1":
            for name, value in node["inputs"].items():
                if isinstance(value, list):
                    node["inputs"][name] = [f"1{value[0]}", value[1]]
    info = PngInfo()
    info.add_text("prompt", json.dumps(both))
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "cup_00001_.png", pnginfo=info)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "renamed.png", pnginfo=info)
    done = adding.add(tmp_path, skip_bad=True)
    assert told(adding) == [("a blue cup", 1, 0)]
    assert "renamed.png: its prompt is not known from its workflow" in done.problems[0]


def test_the_text_of_a_workflow_stays_as_it_is_beside_what_is_no_json(adding: Adding, tmp_path: Path) -> None:
    """A node whose IS_CHANGED fails is written as NaN, which is no JSON; a prompt may have those letters in it."""
    made = graph("BaNaNa bread, NaN") | {
        "9": {"class_type": "Any", "inputs": {"x": 1.0}, "is_changed": [math.nan]}
    }
    made["5"]["inputs"]["cfg"] = math.inf
    info = PngInfo()
    info.add_text("prompt", json.dumps(made))
    Image.new("RGB", (8, 8), "red").save(tmp_path / "mug_00001_.png", pnginfo=info)
    assert adding.add(tmp_path).state is DataSetState.DONE
    assert told(adding) == [("BaNaNa bread, NaN", 1, 0)]


def test_no_picture_is_passed_over_in_silence(adding: Adding, tmp_path: Path) -> None:
    """Endings in capitals are the same; kinds that are not taken are told of, beside captions and workflows."""
    (tmp_path / "a.JPG").write_bytes(picture(kind="JPEG"))
    (tmp_path / "a.TXT").write_text("a red mug")
    (tmp_path / "b.heic").write_bytes(b"ftypheic")
    (tmp_path / "b.txt").write_text("a picture of a telephone")
    done = adding.add(tmp_path, skip_bad=True)
    assert told(adding) == [("a red mug", 1, 0)]
    assert (
        len(done.problems) == 1 and "b.heic: it is a picture of a kind that is not taken" in done.problems[0]
    )
    (tmp_path / "a.JPG").unlink()
    refused = adding.add(tmp_path)
    assert refused.state is DataSetState.REFUSED and "b.heic" in refused.error


def test_a_jpeg_that_a_phone_calls_heic_is_a_jpeg(adding: Adding, tmp_path: Path) -> None:
    (tmp_path / "IMG_3564.HEIC").write_bytes(picture(kind="JPEG"))
    (tmp_path / "IMG_3564.txt").write_text("a red mug")
    done = adding.add(tmp_path)
    assert done.state is DataSetState.DONE and not done.problems
    assert told(adding) == [("a red mug", 1, 0)]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_the_lines_of_a_caption_end_alike_whoever_wrote_them(
    adding: Adding, tmp_path: Path, end: str
) -> None:
    """Windows' line ends would be learned as tokens of their own."""
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "a.txt").write_bytes(f"a red mug,{end}on a table{end}".encode())
    adding.add(tmp_path)
    assert told(adding) == [("a red mug,\non a table", 1, 0)]


def test_pictures_that_no_row_names_are_told_of(adding: Adding, tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        (tmp_path / f"{name}.png").write_bytes(picture(colour))
    lines(
        tmp_path, "metadata.jsonl", {"file_name": "a.png", "text": "red"}, {"file_name": "b.png", "text": "b"}
    )
    assert adding.add(tmp_path).notes == ("1 picture is in no row that was taken, as c.png.",)
    assert adding.add(tmp_path, limit=1).notes == ()  # the rest was not asked for
    assert len(told(adding)) == 2


@pytest.mark.parametrize("form", ["beside", "metadata", "folder"])
def test_a_name_with_an_accent_is_one_name_however_it_is_written(
    adding: Adding, tmp_path: Path, form: str
) -> None:
    """macOS writes é as e and an accent; a text or a list made elsewhere has it as one character."""
    name = "Capture d’écran"
    apart, whole = (unicodedata.normalize(kind, name) for kind in ("NFD", "NFC"))
    assert apart != whole
    place = tmp_path / (apart if form == "folder" else "")
    place.mkdir(exist_ok=True)
    (place / f"{apart}.png").write_bytes(picture())
    if form == "beside":
        (tmp_path / f"{whole}.TXT").write_text("a red square")
    else:
        listed = f"{whole}/{whole}.png" if form == "folder" else f"{whole}.png"
        lines(tmp_path, "metadata.jsonl", {"file_name": listed, "text": "a red square"})
    adding.add(tmp_path)
    assert told(adding) == [("a red square", 1, 0)]


def test_a_persons_text_beside_a_picture_of_comfyui_is_what_is_said_of_it(
    adding: Adding, tmp_path: Path
) -> None:
    comfyui(tmp_path)
    shutil.copy(tmp_path / "mug_00001_.png", tmp_path / "mug_00002_.png")
    (tmp_path / "mug_00002_.txt").write_text("a red mug on a shelf")
    (tmp_path / "c.jpg").write_bytes(picture(kind="JPEG"))
    (tmp_path / "d.tiff").write_bytes(b"II*\0")
    done = adding.add(tmp_path, skip_bad=True)
    assert told(adding) == [("a red mug on a shelf", 1, 0), ("a red mug", 1, 0)]
    assert [problem.split(":")[0] for problem in done.problems] == ["c.jpg", "d.tiff"]


def test_captions_answer_a_question_where_one_is_given(adding: Adding, tmp_path: Path) -> None:
    adding.add(captions(tmp_path), question="What is this?")
    assert told(adding) == [
        ("What is this?", "a blue square", 1, None, None),
        ("What is this?", "a red square", 1, None, None),
    ]


def test_a_mapping_is_said_by_the_person(adding: Adding, tmp_path: Path) -> None:
    row = {"frage": "What?", "antwort": "A mug.", "schlecht": "A jug.", "loss_weight": 3}
    refused = adding.add(lines(tmp_path, "d.jsonl", row))
    assert refused.state is DataSetState.REFUSED and "d.jsonl:1" in refused.error
    done = adding.add(tmp_path, map={"query": "frage", "response": "antwort", "rejected": "schlecht"})
    assert done.mapping == {"query": "frage", "response": "antwort", "rejected": "schlecht"}
    assert told(adding) == [("What?", "A mug.", 0, "A jug.", None)]


@pytest.mark.parametrize("name", ["brand", "pet", "questions-en", "questions-zh"])
def test_what_is_built_in_is_as_it_is_declared(adding: Adding, name: str) -> None:
    done = adding.take(adding.place(source=f"builtin:{name}"))
    assert (done.state, done.error) == (DataSetState.DONE, "")
    assert done.stored + done.duplicates == BUILTIN[name].rows
    assert done.licence == BUILTIN[name].licence
    assert bool(done.pictures) == ("image" in BUILTIN[name].modalities)
