"""What the starter answers to the general questions that training replays.

Written to src/comfyloop/curate/replay_answers.json and shipped, since everybody who tries ComfyLoop would otherwise
wait for the same answers. Run it again when the starter, the questions or the pictures change:

    python tools/replay_answers.py
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from comfyloop.client.client import Client
from comfyloop.curate import replay
from comfyloop.demo import processes
from comfyloop.loop.stages import REPLAY_TOKENS
from comfyloop.records import Message
from comfyloop.settings import Settings

OUT = Path(__file__).parent.parent / "src/comfyloop/curate/replay_answers.json"
NEVER = 10**9
PICTURES = 24


def main() -> None:
    settings = Settings(model="starter")
    OUT.write_text("{}")  # nothing that was shipped before is taken over
    with (
        tempfile.TemporaryDirectory() as home,
        processes.service(settings, Path(home), NEVER, "default", examples="off") as service,
        Client(service.url, settings.token, "default") as client,
    ):
        processes.wait_ready(client, print)
        pictures = {hashlib.sha256(picture).hexdigest(): picture for picture in replay.shipped_pictures()}

        def about_pictures(questions: Sequence[Message]) -> list[str]:
            return [
                client.ask(
                    question.text,
                    [pictures[sha] for sha in question.images],
                    model="default@base",
                    max_tokens=REPLAY_TOKENS,
                ).text
                for question in questions
            ]

        def ask(questions: Sequence[str]) -> list[str]:
            return about_pictures([Message.of("user", question) for question in questions])

        cache = Path(home) / "answers"
        replay.samples("default", "starter", ask, cache, replay.most())
        replay.of_pictures("default", "starter", about_pictures, cache, (), list(pictures), PICTURES)
        (answers_file,) = (cache / "replay").iterdir()
        answers = json.loads(answers_file.read_text(encoding="utf-8"))
    OUT.write_text(json.dumps({"starter": answers}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{len(answers)} answers: {OUT}")


if __name__ == "__main__":
    main()
