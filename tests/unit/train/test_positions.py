"""Scaled positions: the model's own arithmetic, sections of M-RoPE kept, what does not fit named, no adapter
served on positions that it was not trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from comfyloop.errors import InvalidInput, ModelError
from comfyloop.formats import Row, Turn, UnusableRow
from comfyloop.models.adapter_check import Limits, check
from comfyloop.models.rope import RopeScaling, max_positions, refuse_other_positions, scale, write_positions
from comfyloop.serve.embedded.loading import load as load_engine_model
from comfyloop.serve.embedded.lora import read_adapter
from comfyloop.settings import Settings
from comfyloop.train.recipes import sft
from comfyloop.train.specs.text import TrainSpec
from comfyloop.train.text.adapters import save_adapter
from comfyloop.train.text.features import ImageFeatures
from comfyloop.train.text.forward import prove
from comfyloop.train.text.models import describe, load
from tests.families import make_family

KINDS = ["linear", "dynamic", "yarn"]


def spec_for(model: Path, scaling: str = "", **values: object) -> TrainSpec:
    told = {
        "model": str(model),
        "train": "t.jsonl",
        "dtype": "float32",
        "rope_scaling": RopeScaling.parse(scaling),
    }
    return TrainSpec.model_validate(told | values)


def text_row(words: int, number: int = 1) -> Row:
    return Row(number, f"s{number}", (Turn("user", "cat " * words), Turn("assistant", "Dog.")))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family("qwen2_5_vl", tmp_path_factory.mktemp("models") / "qwen")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.effect_noise((48, 48), 90).convert("RGB").save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_sample_has_the_loss_that_transformers_gives_it(
    kind: str, tiny_llm: Path, tmp_path: Path
) -> None:
    """The other way to the same: `rope_scaling` written into the model's own config.json, as its makers would."""
    spec = spec_for(tiny_llm, f"{kind}:4")
    encoder = describe(spec.model, spec.rope_scaling).encoder(spec)
    examples = [encoder.encode(text_row(700)), encoder.encode(text_row(5, 2))]
    assert len(examples[0]) > 512
    torch.manual_seed(0)
    loaded = load(spec, describe(spec.model, spec.rope_scaling), None)
    prove(loaded, ImageFeatures(loaded), examples)
    assert bool(loaded.alone) == (kind == "dynamic")
    loaded.eval()
    ours = sft.answer_loss(loaded, ImageFeatures(loaded), examples).total.detach()

    shutil.copytree(tiny_llm, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config.pop("rope_parameters", None)
    config["rope_scaling"] = {"rope_type": kind, "factor": 4.0}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    theirs = 0.0
    for example in examples:
        plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        labels = torch.full_like(example.input_ids, -100)
        labels[example.answer] = example.input_ids[example.answer]
        loss = plain(input_ids=example.input_ids[None], labels=labels[None]).loss
        theirs += float(loss.detach()) * example.answer.numel()
    assert float(ours) == pytest.approx(theirs, rel=1e-5, abs=1e-4)
    unscaled = load(spec_for(tiny_llm), describe(str(tiny_llm)), None)
    unscaled.eval()
    assert float(
        sft.answer_loss(unscaled, ImageFeatures(unscaled), examples).total.detach()
    ) != pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_sections_of_mrope_are_kept(kind: str, qwen: Path, picture: Path) -> None:
    spec = spec_for(qwen, f"{kind}:2")
    description = describe(spec.model, spec.rope_scaling)
    text = description.config.get_text_config()
    assert text.rope_parameters["mrope_section"] == [2, 3, 3]
    assert text.rope_parameters["rope_theta"] == 10_000.0
    turns = (Turn("user", "<image>" + "cat " * 550), Turn("assistant", "Dog."))
    example = description.encoder(spec).encode(Row(1, "s", turns, (picture,)))
    assert int(example.positions.max()) > 512
    torch.manual_seed(0)
    loaded = load(spec, description, None)
    rotary = loaded.whole.base_model.language_model.rotary_emb
    assert (rotary.rope_type, rotary.mrope_section) == (kind, [2, 3, 3])
    short = description.encoder(spec).encode(text_row(3, 2))
    prove(loaded, ImageFeatures(loaded), [example, short])
    loaded.eval()
    ours = sft.answer_loss(loaded, ImageFeatures(loaded), [short, example]).total.detach()
    loaded.go_alone("asked")
    labels = torch.full_like(example.input_ids, -100)
    labels[example.answer] = example.input_ids[example.answer]
    inputs = {name: value[None] for name, value in example.token_kinds.items()} | example.seen()
    own = loaded.whole(input_ids=example.input_ids[None], **inputs, labels=labels[None]).loss
    alone = sft.answer_loss(loaded, ImageFeatures(loaded), [short]).total
    expected = own * example.answer.numel() + alone
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-5, atol=1e-4)


def test_what_does_not_fit_names_the_settings_that_mend_it(qwen: Path, tiny_llm: Path, picture: Path) -> None:
    with pytest.raises(UnusableRow, match=r"position \d+, more than the 512 .*set rope_scaling") as text:
        describe(str(tiny_llm)).encoder(spec_for(tiny_llm)).encode(text_row(700))
    assert "max_pixels" not in str(text.value)
    turns = (Turn("user", "<image>" + "cat " * 700), Turn("assistant", "Dog."))
    with pytest.raises(UnusableRow, match=r"with its images .*\(lower max_pixels, .* set rope_scaling"):
        describe(str(qwen)).encoder(spec_for(qwen)).encode(Row(1, "s", turns, (picture,)))
    spec = spec_for(qwen, max_length=30)
    with pytest.raises(UnusableRow, match=r"max_length allows \(lower max_pixels, or raise max_length\)"):
        describe(str(qwen)).encoder(spec).encode(Row(1, "s", turns, (picture,)))


def test_an_images_tokens_take_fewer_positions_than_they_are(qwen: Path, picture: Path) -> None:
    """A sample longer than the model's positions fits where M-RoPE gives its image few of them."""
    spec = spec_for(qwen)
    description = describe(str(qwen))
    description.config.get_text_config().max_position_embeddings = 40
    turns = (Turn("user", "<image>What is this?"), Turn("assistant", "A mug."))
    example = description.encoder(spec).encode(Row(1, "s", turns, (picture,)))
    assert len(example) > 40 >= int(example.positions.max()) + 1


def test_a_model_that_is_scaled_already_is_not_scaled_twice() -> None:
    config = transformers.LlamaConfig(
        rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    )  # fmt: skip
    with pytest.raises(ModelError, match="scaled already"):
        scale(config, RopeScaling.parse("yarn:2"))
    yarn = transformers.LlamaConfig(max_position_embeddings=512)
    scale(yarn, RopeScaling.parse("yarn:2"))
    assert max_positions(yarn) == 1024
    scale(yarn, RopeScaling.parse("yarn:2"))
    assert max_positions(yarn) == 1024
    gemma = transformers.Gemma3TextConfig()
    before = dict(gemma.rope_parameters["sliding_attention"])
    scale(gemma, RopeScaling.parse("linear:2"))
    assert gemma.rope_parameters["full_attention"]["factor"] == 2.0
    assert gemma.rope_parameters["sliding_attention"] == before
    gpt2 = transformers.GPT2Config()
    with pytest.raises(ModelError, match="no rotary positions"):
        scale(gpt2, RopeScaling.parse("linear:2"))


@pytest.mark.parametrize("text", ["yarn", "yarn:1", "yarn:x", "none:2", "longrope:2"])
def test_odd_words_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a scaling of positions"):
        RopeScaling.parse(text)
    with pytest.raises(ValueError, match="rope_scaling"):
        Settings(rope_scaling=text + ":")


def test_an_adapter_is_served_only_on_the_positions_that_it_was_trained_on(
    tiny_llm: Path, tmp_path: Path
) -> None:
    scaling = RopeScaling.parse("yarn:4")
    spec = spec_for(tiny_llm, "yarn:4")
    loaded = load(spec, describe(str(tiny_llm), scaling), None)
    save_adapter(loaded.peft, tmp_path / "adapter", scaling)
    engine = load_engine_model(str(tiny_llm), dtype="float32")
    with pytest.raises(
        InvalidInput, match=r"trained with rope_scaling = yarn:4, and the base model runs with none"
    ):
        read_adapter("a", tmp_path / "adapter", engine.model, engine.rope_scaling)
    limits = Limits(engine="vLLM")
    with pytest.raises(InvalidInput, match="rope_scaling = yarn:4"):
        check("a", str(tmp_path / "adapter"), limits)
    write_positions(tmp_path / "adapter", None)
    check("a", str(tmp_path / "adapter"), limits)
    write_positions(tmp_path / "adapter", scaling)
    scaled = load_engine_model(str(tiny_llm), dtype="float32", rope_scaling=scaling)
    assert read_adapter("a", tmp_path / "adapter", scaled.model, scaled.rope_scaling).pairs
    assert scaled.context == 2048
    ids = torch.arange(20)[None] + 5
    with torch.no_grad():
        trained = loaded.whole.get_decoder()(input_ids=ids).last_hidden_state
        served = scaled.model.get_decoder()(input_ids=ids).last_hidden_state
        other = engine.model.get_decoder()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(trained, served, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(served, other, atol=1e-2)
    with pytest.raises(ModelError, match="does not serve dynamic"):
        load_engine_model(str(tiny_llm), rope_scaling=RopeScaling.parse("dynamic:2"))


def test_an_unscaled_adapter_is_not_served_on_scaled_positions(tmp_path: Path) -> None:
    scaling = RopeScaling.parse("linear:2")
    write_positions(tmp_path, None)
    with pytest.raises(InvalidInput, match="rope_scaling = none"):
        refuse_other_positions("a", tmp_path, scaling)
    refuse_other_positions("a", tmp_path, None)
    (tmp_path / "positions.json").write_text("[]")
    with pytest.raises(InvalidInput, match="does not say how positions"):
        refuse_other_positions("a", tmp_path, None)
    (tmp_path / "positions.json").unlink()
    refuse_other_positions("a", tmp_path, scaling)  # from elsewhere: it says nothing of positions


def test_frequencies_do_not_depend_on_longer_rows_before(tiny_llm: Path) -> None:
    """transformers keeps the frequencies of the longest row so far; a resumed run would have another loss."""
    spec = spec_for(tiny_llm, "dynamic:4")
    description = describe(spec.model, spec.rope_scaling)
    loaded = load(spec, description, None)
    loaded.eval()
    loaded.go_alone("asked")
    encoder, features = description.encoder(spec), ImageFeatures(loaded)
    short, long, longer = (encoder.encode(text_row(n)) for n in (5, 600, 900))

    def losses(*examples: Any) -> list[float]:
        return [float(sft.answer_loss(loaded, features, [e]).total.detach()) for e in examples]

    first = losses(short, long, longer)
    assert losses(longer, long, short) == first[::-1]


def test_settings_reach_trainer_and_engine(tmp_path: Path) -> None:
    from comfyloop.serve.engines.kinds.embedded import launch

    settings = Settings(home=tmp_path, rope_scaling="yarn:4", max_pixels=5_000)
    spec = TrainSpec.from_settings(settings, model="m", train="t.jsonl", holdout=None)
    assert spec.rope_scaling == RopeScaling(rope_type="yarn", factor=4)
    start = SimpleNamespace(model="m", port_file=tmp_path / "p", adapters={}, python="python")
    command = launch(settings, start).argv  # type: ignore[arg-type]
    assert command[command.index("--rope-scaling") + 1] == "yarn:4"
    assert command[command.index("--max-pixels") + 1] == "5000"
