"""Each recipe, step by step, against what others compute: a plain transformers + PEFT loop, and TRL."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from comfyloop.train.recipes import dpo, kto, sft
from tests.unit.train.conftest import RunRecipe

STEPS = 5
THINGS = {"pillow": "soft as a cloud, made slowly", "lamp": "warm light", "mug": "bold red glaze, warm hands",
          "kettle": "tea in a minute"}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_llm with a template that writes nothing after an answer's stop token: TRL would learn it too."""
    path = tmp_path_factory.mktemp("parity") / "model"
    AutoModelForCausalLM.from_pretrained(tiny_llm).save_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if not loop.first %}\n{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def parent(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that has been trained, as far as its weights tell: both runs go on from it."""
    torch.manual_seed(5)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    path = tmp_path_factory.mktemp("parity") / "parent"
    peft.save_pretrained(str(path))
    return path


def question(thing: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Write a caption for a {thing}."}]


def answered(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


PAIRS = [(question(t), f"Meet the {t}: {words}.", f"A {t}!") for t, words in THINGS.items()]
LABELS = [(question(t), f"Meet the {t}: {words}.", i != 1) for i, (t, words) in enumerate(THINGS.items())]


@pytest.fixture
def ours(model: Path, parent: Path, run_recipe: RunRecipe) -> RunRecipe:
    def train(recipe: ModuleType, rows: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
        told = {
            "adapter": {"init_from": str(parent)}, "max_steps": STEPS, "epochs": STEPS, "warmup_ratio": 0,
            "per_device_train_batch_size": len(rows), "learning_rate": 0.01, "lr_scheduler_type": "constant",
        } | values  # fmt: skip
        return run_recipe(recipe, model, rows, **told)

    return train


def peft_model(model: Path, parent: Path) -> PeftModel:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), parent, is_trainable=True)


def arguments(path: Path, rows: int, **values: Any) -> dict[str, Any]:
    return {
        "output_dir": str(path / "trl"), "per_device_train_batch_size": rows, "max_steps": STEPS,
        "learning_rate": 0.01, "lr_scheduler_type": "constant", "report_to": [], "save_strategy": "no",
        "bf16": False, "use_cpu": True, "logging_steps": 1, "disable_tqdm": True,
        "gradient_checkpointing": False, "max_length": None,
    } | values  # fmt: skip


def trl_steps(trainer: Any) -> list[dict[str, float]]:
    """Each step's loss, unrounded, and what TRL logs beside it."""
    losses = []
    compute = trainer.compute_loss

    def watched(*args: Any, **kwargs: Any) -> Any:
        loss = compute(*args, **kwargs)
        losses.append(loss.item())
        return loss

    trainer.compute_loss = watched
    trainer.train()
    logged = [line for line in trainer.state.log_history if "grad_norm" in line]
    return [{**line, "loss": loss} for line, loss in zip(logged, losses, strict=True)]


def assert_same(lines: list[dict[str, Any]], theirs: list[dict[str, float]], names: tuple[str, ...]) -> None:
    assert len(lines) == len(theirs) == STEPS
    for line, expected in zip(lines, theirs, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        for name in names:  # TRL rounds what it logs
            assert line[name] == pytest.approx(expected[name], rel=2e-3, abs=2e-4), (line["step"], name)


def test_sft_is_a_plain_loop(model: Path, parent: Path, ours: RunRecipe) -> None:
    rows = [{"messages": [*asked, *answered(text)]} for asked, text, _ in PAIRS]
    lines = ours(sft, rows)
    peft = peft_model(model, parent)
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for i, (asked, _, _) in enumerate(PAIRS):
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        labels[i, : len(tokenizer(prompt, add_special_tokens=False)["input_ids"])] = -100
    parameters = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0)
    theirs = []
    for _ in range(STEPS):
        loss = peft(**batch, labels=labels).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append({"loss": loss.item(), "grad_norm": norm.item()})
    assert theirs[-1]["loss"] < 0.9 * theirs[0]["loss"]
    assert_same(lines, theirs, ("grad_norm",))


@pytest.mark.parametrize(
    ("told", "trl_told"),
    [
        ({"beta": 0.1}, {"beta": 0.1}),
        ({"beta": 0.5, "loss_type": "ipo"}, {"beta": 0.5, "loss_type": ["ipo"]}),
        ({"rpo_alpha": 0.7}, {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
    ],
)
def test_dpo_is_trls(
    told: dict[str, Any], trl_told: dict[str, Any], model: Path, parent: Path, ours: RunRecipe, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    # the mean over chosen tokens (TRL) is that over pairs (the paper) where there is one pair
    pairs = PAIRS[:1] if "rpo_alpha" in told else PAIRS
    lines = ours(
        dpo,
        [{"messages": [*a, *answered(c)], "rejected_response": r} for a, c, r in pairs],
        preference=told,
    )
    trainer = trl.DPOTrainer(
        peft_model(model, parent),
        args=trl.DPOConfig(**arguments(tmp_path, len(pairs), **trl_told)),
        train_dataset=Dataset.from_list(
            [{"prompt": a, "chosen": answered(c), "rejected": answered(r)} for a, c, r in pairs]
        ),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    names = ("grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
             "logps/chosen", "logps/rejected")  # fmt: skip
    assert_same(lines, trl_steps(trainer), names)
    assert lines[0]["rewards/margins"] == 0 < lines[-1]["rewards/margins"]


def test_kto_is_trls(model: Path, parent: Path, ours: RunRecipe, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    lines = ours(
        kto,
        [{"messages": [*a, *answered(text)], "label": label} for a, text, label in LABELS],
        preference={"beta": 0.2, "undesirable_weight": 1.5},
    )
    trainer = trl.KTOTrainer(
        peft_model(model, parent),
        args=trl.KTOConfig(
            **arguments(tmp_path, len(LABELS), beta=0.2, undesirable_weight=1.5),
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": a, "completion": answered(text), "label": label} for a, text, label in LABELS]
        ),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    names = ("grad_norm", "kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen",
             "logps/rejected")  # fmt: skip
    assert_same(lines, trl_steps(trainer), names)
    assert any(line["kl"] > 0 for line in lines)  # or its share in the loss was not compared
