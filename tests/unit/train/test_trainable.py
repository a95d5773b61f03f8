"""What is trained and how: kinds of LoRA, whole weights, parts of a model, precision, memory, noise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from comfyloop.errors import InvalidInput, ModelError, RunFailed
from comfyloop.models.parts import Parts
from comfyloop.train.recipes import dpo, sft
from comfyloop.train.run.updates import OptimizerStep
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.models import Loaded, describe, load
from comfyloop.train.text.neftune import noise
from tests.unit.train.conftest import RunRecipe
from tests.unit.train.test_preferences import THINGS, curve, pair_row

pytestmark = pytest.mark.slow

ROWS = [pair_row(thing) for thing in THINGS]


def spec_for(model: Path, **values: Any) -> TrainSpec:
    return TrainSpec.model_validate({"model": str(model), "train": "t.jsonl", "dtype": "float32", **values})


def loaded(model: Path, **values: Any) -> Loaded:
    return load(spec_for(model, **values), describe(str(model)), None)


def loss_of(model: Any, path: Path) -> float:
    """Mean loss over the answers of ROWS, by a model of transformers' and its own tokenizer."""
    tokenizer = describe(str(path)).processor
    total = tokens = 0.0
    for row in ROWS:
        prompt = tokenizer.apply_chat_template(
            row["messages"][:1], tokenize=False, add_generation_prompt=True
        )
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False).removesuffix("\n")
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, start - 1 : -1].float()
        total += float(nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum"))
        tokens += ids.shape[1] - start
    return total / tokens


def holdout(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "holdout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {"holdout": "../holdout.jsonl", "max_steps": 6, "epochs": 6, "learning_rate": 0.01}


@pytest.mark.parametrize(
    ("adapter", "trains"),
    [
        ({"use_rslora": True, "lora_alpha": 4}, "o_proj"),
        ({"use_dora": True}, "o_proj"),
        ({"target_modules": "all-linear"}, "gate_proj"),
        ({"target_modules": ["q_proj", "down_proj"]}, "down_proj"),
        ({"target_modules": r".*layers\.1\.mlp\.up_proj"}, "layers.1.mlp.up_proj"),
        ({"modules_to_save": ["norm"]}, "model.norm"),
    ],
)
def test_each_kind_of_adapter_in_plain_peft_is_what_was_trained(
    adapter: dict[str, Any], trains: str, tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lines = run_recipe(sft, tiny_llm, ROWS, adapter=adapter, **holdout(tmp_path))
    assert lines[-1]["holdout_loss"] < 0.98 * lines[0]["holdout_loss"]
    peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_llm), tmp_path / "run" / "adapter"
    ).eval()
    assert loss_of(peft, tiny_llm) == pytest.approx(lines[-1]["holdout_loss"], abs=1e-5)
    assert any(
        trains in name for name in load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    )


@pytest.mark.parametrize("lost", ["embed_tokens", "lm_head", "qq_proj", "fc1"])
def test_a_layer_that_would_be_passed_over_is_refused_by_name(
    tiny_llm: Path, tiny_vlm: Path, lost: str
) -> None:
    """PEFT takes a list of which one name fits; `fc1` is a layer of the vision tower, which is frozen."""
    for model in (tiny_llm, tiny_vlm):
        with pytest.raises(ModelError, match=f"target_modules names '{lost}'"):
            loaded(model, adapter={"target_modules": ["q_proj", lost]})


def test_a_module_to_save_that_would_be_passed_over_is_refused_by_name(tiny_llm: Path) -> None:
    with pytest.raises(ModelError, match="modules_to_save names 'lm_haed'"):
        loaded(tiny_llm, adapter={"modules_to_save": ["norm", "lm_haed"]})


@pytest.mark.parametrize("recipe", [sft, dpo])
def test_whole_weights_become_a_model_directory(
    recipe: Any, tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    values = {**holdout(tmp_path), "tuner_type": "full", "learning_rate": 2e-3, "save_steps": 2}
    lines = run_recipe(recipe, tiny_llm, ROWS, **values)
    assert lines[-1]["holdout_loss"] < 0.9 * lines[0]["holdout_loss"]
    result = tmp_path / "run" / "model"
    assert not (tmp_path / "run" / "adapter").exists()
    model = AutoModelForCausalLM.from_pretrained(result).eval()
    if recipe is sft:
        assert loss_of(model, result) == pytest.approx(lines[-1]["holdout_loss"], abs=1e-5)
    assert AutoTokenizer.from_pretrained(result).chat_template
    died = run_recipe(recipe, tiny_llm, ROWS, name="again", die_at=3, **values)
    assert len(died) == 4
    again = run_recipe(recipe, tiny_llm, ROWS, name="again", **values)
    assert curve(again) == curve(lines)  # DPO's reference too: it is not asked of weights that have moved


def test_training_all_weights_is_a_plain_loop(tiny_llm: Path, run_recipe: RunRecipe) -> None:
    """The head is tied to the embeddings, so its gradient comes from both ends."""
    from transformers import AutoModelForCausalLM

    lines = run_recipe(
        sft, tiny_llm, ROWS, tuner_type="full", max_steps=4, learning_rate=1e-3, warmup_ratio=0,
        lr_scheduler_type="constant", per_device_train_batch_size=len(ROWS),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_llm)
    encoder = describe(str(tiny_llm)).encoder(spec_for(tiny_llm))
    from comfyloop.formats import Row, Turn

    examples = [
        encoder.encode(Row(1, "s", tuple(Turn(m["role"], m["content"]) for m in row["messages"])))
        for row in ROWS
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    for line in lines:
        total = torch.zeros(())
        for example in examples:
            logits = model(input_ids=example.input_ids[None]).logits[0]
            labels = example.input_ids[example.answer]
            total = total + nn.functional.cross_entropy(logits[example.answer - 1], labels, reduction="sum")
        loss = total / sum(example.answer.numel() for example in examples)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert line["loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_small_steps_are_not_rounded_away_in_half_precision(tiny_llm: Path) -> None:
    """At a learning rate of 1e-5, one step in bfloat16 changes no weight of 0.2; thirty in float32 do."""
    model = loaded(tiny_llm, tuner_type="full", dtype="bfloat16", learning_rate=1e-5)
    updates = OptimizerStep(
        model, spec_for(tiny_llm, tuner_type="full", dtype="bfloat16", learning_rate=1e-5)
    )
    name, weight = next((n, p) for n, p in model.trainable if "q_proj" in n)
    before = weight.detach().clone()
    for _ in range(30):
        updates.backward(weight.float().sum())
        updates.update(1e-5)
    assert dict(updates.parameters)[name].dtype == torch.float32
    moved = before.float() - dict(updates.parameters)[name].detach()
    torch.testing.assert_close(moved, torch.full_like(moved, 30e-5), rtol=0.01, atol=1e-7)
    assert weight.dtype == torch.bfloat16
    torch.testing.assert_close(weight.detach(), (before.float() - 30e-5).to(torch.bfloat16))


def test_float16_scales_the_loss_and_leaves_out_what_overflows(tiny_llm: Path, tmp_path: Path) -> None:
    spec = spec_for(tiny_llm, dtype="float16")
    model = loaded(tiny_llm, dtype="float16")
    updates = OptimizerStep(model, spec)
    parameter = model.trainable[0][1]
    before = parameter.detach().clone()
    scale = updates.scaler.get_scale()
    updates.backward(parameter.sum() * 1e-6)
    assert updates.update(1e-3) == pytest.approx(1e-6 * math.sqrt(parameter.numel()), rel=1e-3)
    assert not torch.equal(parameter, before)
    moved = parameter.detach().clone()
    updates.backward(parameter.sum() * 3e38)
    updates.update(1e-3)
    assert torch.equal(parameter, moved)
    assert updates.scaler.get_scale() == scale / 2
    from comfyloop.train.run.checkpoints import RandomState

    updates.save_checkpoint(tmp_path, 2, RandomState.now(), "f")
    again = OptimizerStep(model, spec)
    assert again.restore_checkpoint(tmp_path, "f") == 2
    assert again.scaler.get_scale() == scale / 2


def test_gradients_that_are_no_numbers_reach_no_weight(tiny_llm: Path) -> None:
    model = loaded(tiny_llm)
    updates = OptimizerStep(model, spec_for(tiny_llm))
    before = [parameter.detach().clone() for _, parameter in model.trainable]
    updates.backward(sum(p.sum() for _, p in model.trainable) * math.inf)
    with pytest.raises(RunFailed, match=r"no longer numbers .* Lower learning_rate"):
        updates.update(1e-3)
    assert all(torch.equal(p, b) for (_, p), b in zip(model.trainable, before, strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns_too(dtype: str, tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path) -> None:
    lines = run_recipe(sft, tiny_llm, ROWS, **{**holdout(tmp_path), "dtype": dtype})
    assert lines[-1]["holdout_loss"] < 0.9 * lines[0]["holdout_loss"]


def test_unfrozen_parts_of_a_vision_model(tiny_vlm: Path) -> None:
    def trained(**values: Any) -> dict[str, set[str]]:
        model = loaded(tiny_vlm, **values)
        parts, found = Parts(model.whole), {}
        for name, parameter in model.whole.named_parameters():
            if parameter.requires_grad:
                kind = "lora" if "lora_" in name else "whole"
                found.setdefault(parts.of(name), set()).add(kind)
        return found

    assert trained() == {"llm": {"lora"}}
    assert trained(freeze_vit=False) == {"llm": {"lora"}, "vit": {"lora"}}
    assert trained(freeze_aligner=False, freeze_llm=True) == {"aligner": {"lora"}}
    every = {"freeze_vit": False, "freeze_aligner": False, "adapter": {"target_modules": "all-linear"}}
    assert trained(**every) == {"llm": {"lora"}, "vit": {"lora"}, "aligner": {"lora"}}
    assert trained(adapter={"modules_to_save": ["multi_modal_projector"]})["aligner"] == {"whole"}
    assert trained(tuner_type="full") == {"llm": {"whole"}}
    assert trained(tuner_type="full", freeze_llm=True, freeze_aligner=False) == {"aligner": {"whole"}}


def test_what_cannot_be_trained_is_said(tiny_llm: Path, tiny_vlm: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no vit"):
        loaded(tiny_llm, freeze_vit=False)
    with pytest.raises(ModelError, match="no linear layer of the llm"):
        loaded(tiny_llm, adapter={"target_modules": ["k_prj"]})
    with pytest.raises(ModelError, match="lm_head"):
        loaded(tiny_llm, adapter={"target_modules": ".*(q_proj|lm_head)"})
    for values, why in (
        ({"freeze_llm": True}, "leave nothing to train"),
        ({"tuner_type": "full", "quant_method": "bnb"}, "4-bit weights"),
        ({"tuner_type": "full", "adapter": {"init_from": "x"}}, "not from an adapter"),
        ({"tuner_type": "full", "dtype": "float16"}, "overflows"),
    ):
        with pytest.raises(ValueError, match=why):
            spec_for(tiny_llm, **values)
    parent = loaded(tiny_vlm)
    assert parent.peft is not None
    parent.peft.save_pretrained(str(tmp_path / "parent"))
    with pytest.raises(InvalidInput, match="trains nothing of the vit"):
        load(spec_for(tiny_vlm, freeze_vit=False), describe(str(tiny_vlm)), tmp_path / "parent")


@pytest.mark.parametrize("values", [{"freeze_vit": False, "freeze_aligner": False}, {"tuner_type": "full",
                         "freeze_vit": False, "freeze_aligner": False, "learning_rate": 1e-3}])  # fmt: skip
def test_a_trained_tower_is_looked_through_every_time(
    values: dict[str, Any], tiny_vlm: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    """It learns, checkpointing changes nothing, and features of the untrained tower are not kept."""
    rows = []
    for i, thing in enumerate(THINGS):
        Image.new("RGB", (40, 30), (40 * i, 200, 90)).save(tmp_path / f"{thing}.png")
        row = pair_row(thing, images=[f"../{thing}.png"])
        row["messages"][0]["content"] = "<image>What is it?"
        rows.append(row)
    told = {"max_steps": 4, "learning_rate": 0.01} | values
    lines = run_recipe(sft, tiny_vlm, rows, **told)
    assert lines[-1]["loss"] < lines[0]["loss"]
    saved = load_file(next((tmp_path / "run").glob("*/*model.safetensors")))
    vision = [name for name in saved if "vision_tower" in name and ("lora_B" in name or "lora" not in name)]
    start = load_file(tiny_vlm / "model.safetensors")
    assert any(name not in start or not torch.equal(saved[name], start[name]) for name in vision)
    assert all(saved[name].abs().max() > 0 for name in vision if "lora_B" in name and "post" not in name)
    checkpointed = run_recipe(
        sft, tiny_vlm, rows, name="less", gradient_checkpointing=True, vit_gradient_checkpointing=True, **told
    )
    assert [line["loss"] for line in checkpointed] == pytest.approx(
        [line["loss"] for line in lines], abs=1e-5
    )


def test_checkpointed_layers_are_those_that_were_asked_for(tiny_vlm: Path) -> None:
    def checkpointing(**values: Any) -> set[str]:
        model = loaded(tiny_vlm, **values)
        model.train()
        return {
            Parts(model.whole).of(name)
            for name, module in model.whole.named_modules()
            if getattr(module, "gradient_checkpointing", False) and module.training
        }

    assert checkpointing(gradient_checkpointing=True) == {"llm"}
    assert checkpointing(gradient_checkpointing=True, vit_gradient_checkpointing=True) == {"llm"}
    assert checkpointing(vit_gradient_checkpointing=True, freeze_vit=False) == {"vit"}


def test_noise_on_the_embeddings(tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path) -> None:
    embedding = nn.Embedding(10, 1000)
    ids = torch.arange(9)[None]
    with noise(embedding, 5.0, (1, 8)):
        spread = (embedding(ids) - embedding.weight[ids[0]])[0].detach().abs()
    assert torch.equal(embedding(ids)[0], embedding.weight[ids[0]])
    for rows, length in ((spread[:1], 1), (spread[1:], 8)):
        bound = 5.0 / math.sqrt(length * 1000)
        assert rows.max() <= bound
        assert rows.mean() == pytest.approx(bound / 2, rel=0.1)
    values = holdout(tmp_path)
    plain = run_recipe(sft, tiny_llm, ROWS, **values)
    noisy = run_recipe(sft, tiny_llm, ROWS, name="noisy", neftune_noise_alpha=5.0, **values)
    assert noisy[0]["holdout_loss"] == plain[0]["holdout_loss"]  # no noise where nothing is learnt
    assert noisy[1]["loss"] != plain[1]["loss"]
    run_recipe(sft, tiny_llm, ROWS, name="again", neftune_noise_alpha=5.0, die_at=4, save_steps=3, **values)
    again = run_recipe(sft, tiny_llm, ROWS, name="again", neftune_noise_alpha=5.0, save_steps=3, **values)
    assert curve(again) == curve(noisy)


def test_the_share_that_is_trained_is_told(
    tiny_llm: Path, run_recipe: RunRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    run_recipe(sft, tiny_llm, ROWS, max_steps=1)
    assert "training 16,384 of 117,632 parameters (13.93%)" in capsys.readouterr().out


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_of_a_changed_base_is_not_gone_on_from(
    start: str, tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj"], init_lora_weights=start
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llm), config).save_pretrained(tmp_path / "old")
    with pytest.raises(InvalidInput, match=f"init_lora_weights = {start}, .* plain LoRA"):
        run_recipe(sft, tiny_llm, ROWS, adapter={"init_from": str(tmp_path / "old")})


def test_an_adapter_for_more_words_is_refused_by_the_layer_that_has_them(
    tiny_llm: Path, run_recipe: RunRecipe, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llm)
    model.resize_token_embeddings(model.get_input_embeddings().num_embeddings + 5)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    get_peft_model(model, config).save_pretrained(tmp_path / "old")
    with pytest.raises(
        InvalidInput, match=r"does not fit the base model: .*size mismatch for .*embed_tokens"
    ):
        run_recipe(sft, tiny_llm, ROWS, adapter={"init_from": str(tmp_path / "old")})


def test_that_no_engine_serves_modules_to_save_is_said_before_training(
    tiny_llm: Path, run_recipe: RunRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    run_recipe(sft, tiny_llm, ROWS, adapter={"modules_to_save": ["norm"]}, max_steps=1)
    said, steps, _ = capsys.readouterr().out.partition("step 1")
    assert (
        "modules_to_save (norm): PEFT loads what comes of this run, but no engine of ours" in said and steps
    )


def test_adam_s_memory_of_gradients_is_as_the_spec_says(tiny_llm: Path) -> None:
    """0.95 in commands of ms-swift that do not say it."""
    assert OptimizerStep(loaded(tiny_llm), spec_for(tiny_llm)).optimizer.param_groups[0]["betas"] == (
        0.9,
        0.999,
    )
    shorter = OptimizerStep(loaded(tiny_llm), spec_for(tiny_llm, adam_beta2=0.95))
    assert shorter.optimizer.param_groups[0]["betas"] == (0.9, 0.95)
