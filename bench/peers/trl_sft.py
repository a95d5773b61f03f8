"""TRL's SFTTrainer on the bench's data, as its documentation has it: `python trl_sft.py TASK.json`.

Runs in any environment that has TRL (that of ms-swift has).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class StepLog(TrainerCallback):
    """A line a step, which the bench waits for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args, state, control, logs=None, **_):  # type: ignore[no-untyped-def]
        if logs and "loss" in logs:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, "loss": logs["loss"]}) + "\n")


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    out = Path(task["out"])
    rows = [json.loads(line)["messages"] for line in Path(task["data"]).read_text().rstrip("\n").split("\n")]
    data = Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows])
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(task["model"], dtype=task["dtype"]),
        processing_class=AutoTokenizer.from_pretrained(task["model"]),
        train_dataset=data,
        args=SFTConfig(
            output_dir=str(out / "trainer"),
            per_device_train_batch_size=task["batch"],
            num_train_epochs=1,
            learning_rate=1e-3,
            bf16=task["dtype"] == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            completion_only_loss=True,
        ),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]
        ),
        callbacks=[StepLog(out / "log.jsonl")],
    )
    trainer.train()
    trainer.save_model(str(out / "adapter"))


if __name__ == "__main__":
    main()
