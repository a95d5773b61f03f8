"""The whole loop over HTTP with real processes, on the embedded starter."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from comfyloop.client.client import Client
from comfyloop.demo import scenes
from comfyloop.errors import ComfyLoopError
from comfyloop.records import AnswerEdited, LoopState, VersionState
from comfyloop.settings import Settings
from tests.acceptance.conftest import RunningService, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

GENERAL = "What is the capital of France?"


def test_corrections_are_learnt_and_the_new_version_is_swapped_in(
    starter: Path, make_service: Callable[..., RunningService], tmp_path: Path
) -> None:
    pet, brand = scenes.load()
    corrections = [*pet.corrections, *brand.corrections]
    service = make_service(
        project="acme",
        trigger_samples=len(corrections),
        cache_dir=Settings().cache_dir,
        examples="off",  # what versions answer by themselves is compared to the letter
        quiet_seconds=0,  # somebody always asks here, and training is not to wait for that
    )
    service.start()
    service.wait_ready()
    chat = openai.OpenAI(base_url=f"{service.client.url}/v1", api_key="none", max_retries=0)

    def ask(question: str, model: str = "acme") -> tuple[str, str, str]:
        given = chat.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], max_tokens=16, temperature=0
        )
        return given.choices[0].message.content or "", given.id, given.system_fingerprint or ""

    before = {example.question: ask(example.question) for example in brand.held_out}
    general = ask(GENERAL)
    assert {fingerprint for _, _, fingerprint in before.values()} == {"acme@base"}

    failures: list[str] = []
    done = threading.Event()

    def keep_asking() -> None:
        with Client(service.client.url, project="acme") as other:
            while not done.wait(2):
                try:
                    other.ask("Name a colour.", max_tokens=8)
                except ComfyLoopError as error:
                    failures.append(str(error))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    edits = []
    for i, example in enumerate(corrections):
        pictures = [example.picture] if example.picture else []
        answer = service.client.ask(example.question, pictures, max_tokens=6)
        edits.append(
            AnswerEdited(id=f"edit-{i}", project="acme", generation=answer.generation, edited=example.edited)
        )
    receipt = service.client.send_feedback(edits)
    assert len(receipt["stored"]) == len(edits)
    assert len(service.client.send_feedback(edits)["duplicates"]) == len(edits)

    wait_for(lambda: service.client.loop().outcome, 1200, service.what_happened)
    done.set()
    asking.join()
    loop = service.client.loop()
    assert (loop.state, loop.outcome) == (LoopState.IDLE, "promoted"), loop
    assert failures == []

    live, versions = service.client.versions()
    assert (live, versions[0].state, versions[0].parent) == (1, VersionState.LIVE, 0)
    after = {question: ask(question) for question in before}
    assert all(fingerprint == "acme@1" for _, _, fingerprint in after.values())
    assert all(text.startswith("Meet the") for text, _, _ in after.values()), after
    assert not any(text.startswith("Meet the") for text, _, _ in before.values())
    cat = pet.held_out[0]
    assert "surfing in sunglasses" in service.client.ask(cat.question, [cat.picture or Path()]).text

    # Rollback gives the answers of before, to the letter, and so does coming back.
    service.client.rollback()
    assert {q: ask(q)[0] for q in before} == {q: text for q, (text, _, _) in before.items()}
    assert ask(GENERAL)[0] == general[0]
    service.client.promote(1)
    assert {q: ask(q)[0] for q in before} == {q: text for q, (text, _, _) in after.items()}
    assert ask(brand.held_out[0].question, "acme@base")[0] == before[brand.held_out[0].question][0]

    _exported_data_is_read_by_a_plain_script(service, tmp_path)

    # One edit taken back takes back what learned from it; the rest is learned anew.
    learned = service.client.call("GET", f"/v1/snapshots/{loop.snapshot}", project="acme")["feedback"]
    gone = service.client.forget(feedback=learned[0])
    assert (gone.feedback, gone.versions) == ((learned[0],), (1,))
    assert (gone.previous, gone.live, gone.retrains) == (1, 0, True)
    assert {ask(question)[2] for question in before} == {"acme@base"}
    with pytest.raises(ComfyLoopError, match="was taken back"):
        service.client.promote(1, force=True)
    wait_for(lambda: service.client.loop().state is LoopState.TRAINING, 120, service.what_happened)
    again = service.client.call("GET", f"/v1/snapshots/{service.client.loop().snapshot}", project="acme")
    assert learned[0] not in again["feedback"] and again["new"] == len(again["feedback"])
    service.client.call("POST", "/v1/loop/cancel", {"project": "acme"})


def _exported_data_is_read_by_a_plain_script(service: RunningService, tmp_path: Path) -> None:
    out = tmp_path / "export"
    comfyloop = [sys.executable, "-m", "comfyloop"]
    subprocess.run(
        [*comfyloop, "export", str(out), "--format", "swift", "--url", service.client.url, "-p", "acme"],
        check=True,
        timeout=60,
    )
    script = (
        "import json, sys\n"
        "rows = [json.loads(line) for line in open(sys.argv[1], encoding='utf-8')]\n"
        "assert rows and all(r['messages'][-1]['role'] == 'assistant' for r in rows)\n"
        "print(sum('#slowgoods' in r['messages'][-1]['content'] for r in rows))\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script, str(out / "train.jsonl")],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert int(printed.stdout) >= 5
