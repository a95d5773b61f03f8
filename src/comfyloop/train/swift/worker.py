"""Runs inside ms-swift's own process and environment: `python worker.py TASK.json`.

`swift.py` writes the task and reads the events that this writes back, one JSON object a line.

ms-swift gets a model type and a template called `comfyloop`: the model is loaded by its own transformers class,
without running code of the model directory, and a row is encoded to exactly the tokens that our own trainer
produces and an engine will see, with the model's own chat template. Every batch is counted where the trainer
receives it, so that a row that ms-swift has left out or replaced is detected.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = "comfyloop"
"""What the model type, the template and the callback are called in ms-swift."""

IGNORED = -100
PIXELS = "own_"
"""Begins the names of image tensors in an encoded row."""


def main(task_file: str) -> None:
    task: dict[str, Any] = json.loads(Path(task_file).read_text(encoding="utf-8"))
    sys.path.insert(0, task["import_from"])
    from comfyloop import platforms

    platforms.end_with(task["parent_pid"])  # a run must not go on without what watches it and holds its lock
    tell = event_writer(Path(task["events"]))
    try:
        work(task, tell)
    except BaseException as error:
        tell(event="failed", error=f"{type(error).__name__}: {error}".strip().splitlines()[0])
        raise
    tell(event="end")


def work(task: dict[str, Any], tell: Callable[..., None]) -> None:
    tell(event="importing")
    from swift import rlhf_main, sft_main

    from comfyloop.train.specs.files import read_spec
    from comfyloop.train.specs.text import TrainSpec
    from comfyloop.train.text.models import describe

    spec = read_spec(Path(task["run"]))
    assert isinstance(spec, TrainSpec)  # runs of the image side never come here
    description = describe(spec.model, spec.rope_scaling)
    register_template(description.encoder(spec))
    register_model(description)
    register_callback(tell, [Path(path) for path in task["stop_files"]])
    tell(event="loading")
    (sft_main if task["command"] == "sft" else rlhf_main)(task["arguments"])


def event_writer(path: Path) -> Callable[..., None]:
    file = path.open("a", encoding="utf-8")

    def tell(**event: Any) -> None:
        file.write(json.dumps(event | {"time": time.monotonic()}) + "\n")
        file.flush()

    return tell


def row_hash(ids: list[int]) -> str:
    """A hash that identifies a sequence of token ids on both sides."""
    return hashlib.sha256(b"".join(token.to_bytes(8, "little") for token in ids)).hexdigest()[:16]


def register_template(encoder: Any) -> None:
    import torch
    from swift.template import Template, TemplateMeta
    from swift.template import register_template as register

    from comfyloop.formats import of_swift

    class OwnTemplate(Template):  # type: ignore[misc]
        """Encodes a row as ComfyLoop's trainer does."""

        load_images = False  # they stay paths: the encoder opens them, brought down to size

        def _encode(self, inputs: Any) -> dict[str, Any]:
            example = encoder.encode(of_swift(inputs.messages, inputs.system, inputs.images))
            labels = torch.full_like(example.input_ids, IGNORED)
            labels[example.answer] = example.input_ids[example.answer]
            pixels = {f"{PIXELS}{name}": value for name, value in example.seen().items()}
            kinds = {name: value.tolist() for name, value in example.token_kinds.items()}
            return {
                "input_ids": example.input_ids.tolist(),
                "labels": labels.tolist(),
                "loss_scale": None,
                **kinds,
                **pixels,
            }

        def _data_collator_mm_data(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
            pixel_values: dict[str, list[Any]] = {}
            for row in batch:
                for name in [name for name in row if name.startswith(PIXELS)]:
                    pixel_values.setdefault(name.removeprefix(PIXELS), []).append(row.pop(name))
            tensors = {name: torch.cat(values) for name, values in pixel_values.items()}
            dtype = self.model_info.torch_dtype
            return {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}

    register(TemplateMeta(NAME, prefix=[], prompt=["{{QUERY}}"], chat_sep=None, template_cls=OwnTemplate))


def register_model(description: Any) -> None:
    from swift.model import ModelLoader, ModelMeta
    from swift.model import register_model as register
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    class OwnLoader(ModelLoader):  # type: ignore[misc]
        default_trust_remote_code = False

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            sees = description.sees_images
            self.auto_model_cls = AutoModelForImageTextToText if sees else AutoModelForCausalLM

        def get_config(self, model_dir: str) -> Any:
            return description.config

        def get_processor(self, model_dir: str, config: Any) -> Any:
            return description.processor

    register(ModelMeta(NAME, [], loader=OwnLoader, template=NAME))


def register_callback(tell: Callable[..., None], stop_files: list[Path]) -> None:
    """Counts the training data, forwards log values, and stops within a step on request."""
    from swift.callbacks import callbacks_map
    from transformers import TrainerCallback

    from comfyloop.models.quantization import keep_unpacked

    class Witness(TrainerCallback):  # type: ignore[misc]
        def __init__(self, args: Any, trainer: Any) -> None:
            self.batches: list[dict[str, Any]] = []
            self.rate = 0.0
            train_on = trainer.training_step

            def training_step(model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
                self.batches.append(count(inputs, trainer.processing_class))
                return train_on(model, inputs, *rest, **named)

            trainer.training_step = training_step

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            keep_unpacked(model)  # before any look at the hold-out, which would have them packed
            parameters = list(model.parameters())
            tell(
                event="begin",
                step=state.global_step,
                total_steps=state.max_steps,
                world_size=args.world_size,
                trainable=sum(p.numel() for p in parameters if p.requires_grad),
                total=sum(p.numel() for p in parameters),
            )
            self._stop(control)

        def on_pre_optimizer_step(
            self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
        ) -> None:
            self.rate = optimizer.param_groups[0]["lr"]  # ms-swift's log gives the rate of the step to come

        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._stop(control)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            values = {"epoch": state.epoch, "learning_rate": self.rate, "batches": self.batches}
            tell(event="step", step=state.global_step, **values)
            self.batches = []
            self._stop(control)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            numbers = {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}
            tell(event="log", step=state.global_step, epoch=state.epoch, values=numbers)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tell(event="saved", step=state.global_step)

        def _stop(self, control: Any) -> None:
            if any(path.exists() for path in stop_files):
                control.should_save = True
                control.should_training_stop = True

    callbacks_map[NAME] = Witness


def count(inputs: dict[str, Any], processor: Any) -> dict[str, Any]:
    """The content of a batch as the trainer receives it: hashes of `rows`, tokens, rows with images.

    KTO's batches hold each answer again with another row's prompt; those are not counted.
    """
    prefix = "completion_" if "completion_input_ids" in inputs else ""
    ids, labels = inputs[f"{prefix}input_ids"], inputs[f"{prefix}labels"]
    mask = inputs.get(f"{prefix}attention_mask")
    rows = (
        [row[row_mask.bool()].tolist() for row, row_mask in zip(ids, mask, strict=True)]
        if mask is not None
        else ids.tolist()
    )
    return {
        "rows": [row_hash(row) for row in rows],
        "tokens": sum(map(len, rows)),
        "padded": int(ids.numel()) - sum(map(len, rows)),
        "answer_tokens": int((labels != IGNORED).sum()),
        "without_answer": int(((labels != IGNORED).sum(-1) == 0).sum()),
        "images": bool(any("pixel_values" in name for name in inputs)),
    }


if __name__ == "__main__":
    main(sys.argv[1])
