"""What a person takes back is nowhere in the data folder any more, whatever had been made of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from comfyloop.client.client import Client
from comfyloop.records import AnswerEdited
from tests.acceptance.conftest import RunningService, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

OURS = [
    f"Write a caption for a {thing}." for thing in ("mug", "lamp", "shirt", "chair", "knife", "tent", "boat")
]
THEIRS = [
    f"What would kim's {animal} do in Reykjavik?" for animal in ("cat", "dog", "owl", "fox", "hen", "cow")
]
SECRET = "kim's cat hides on the old bench"


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 32), (250 - 30 * number, 40 * number, 90)).save(out, format="PNG")
    return out.getvalue()


def edit(
    client: Client, number: int, author: str, question: str, text: str, shown: list[Path]
) -> AnswerEdited:
    answer = client.ask(question, shown, max_tokens=8)
    return AnswerEdited(
        id=f"{author}-{number}", project="acme", author=author, generation=answer.generation, edited=text
    )


def survivors(folder: Path, wanted: dict[str, bytes]) -> Iterator[str]:
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = file.read_bytes()
        yield from (f"{what}: {file.relative_to(folder)}" for what, found in wanted.items() if found in data)


def test_no_byte_of_what_was_taken_back_is_left(
    tiny_vlm: Path, make_service: Callable[..., RunningService], tmp_path: Path
) -> None:
    home = tmp_path / "home0"
    service = make_service(
        project="acme", model=tiny_vlm, trigger_samples=len(OURS) + len(THEIRS), holdout_every=2, replay_share=0,
        learning_rate=1e-2, epochs=4, gate_forgetting=1000, cache_dir=home / "cache", quiet_seconds=0,
    )  # fmt: skip
    service.start()
    service.wait_ready()
    shown = []
    for number in range(len(THEIRS)):
        shown.append(tmp_path / f"{number}.png")
        shown[-1].write_bytes(picture(number))
    client = service.client
    edits = [edit(client, n, "lee", q, "a red cap on the old bench", []) for n, q in enumerate(OURS)]
    edits += [edit(client, n, "kim", q, SECRET, [shown[n]]) for n, q in enumerate(THEIRS)]
    client.send_feedback(edits)
    wait_for(lambda: client.loop().outcome, 1200, service.what_happened)
    before = client.loop()
    assert before.version == 1, before
    wanted = {"question": b"Reykjavik", "edit": SECRET.encode(), "in JSON": json.dumps(SECRET)[1:-1].encode()}
    wanted |= {f"picture {n}": picture(n) for n in range(len(THEIRS))}
    there = list(survivors(home, wanted))
    for place in ("comfyloop.db", "snapshots/", "blobs/"):
        assert any(place in line for line in there), place
    assert list((home / "cache" / "features").rglob("*.safetensors"))

    gone = client.forget(author="kim")
    assert gone.versions == (1,) and len(gone.feedback) == len(THEIRS)
    assert list(survivors(home, wanted)) == []
    assert not list((home / "cache").rglob("*.safetensors")) and not (home / "runs" / before.run).exists()
