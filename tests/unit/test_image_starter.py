"""The image starter's checkpoint: written from packed weights, and a model that the image side trains on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from comfyloop.cli import app
from comfyloop.errors import NotFound, StarterError
from comfyloop.starter.image import __main__ as command
from comfyloop.starter.image import cache, denoiser, text
from comfyloop.starter.image.packing import pack, unpack
from comfyloop.train.image import checkpoint
from comfyloop.train.image.text import Captions
from tools.starter.image import export
from tools.starter.image.model import Prompts, make_unet, predict
from tools.starter.image.state import TrainingState
from tools.starter.image.vae import unreadable_colours

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run's folder, as if it had been stopped at once."""
    folder = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    for name, module in (("unet", UNet2DConditionModel(**denoiser.config())), ("vae", AutoencoderTiny())):
        (folder / name).mkdir()
        torch.save(module.state_dict(), folder / name / "average.pt")
    table = np.random.default_rng(0).integers(-127, 128, (text.VOCABULARY, text.TOKEN_WIDTH)).astype(np.int8)
    table[[320, text.START, text.END]] = 0  # "a" says nothing
    save_file({"tokens": table}, folder / "tokens.safetensors")
    export.export(folder, folder / "image.safetensors")
    return folder


@pytest.fixture
def shipped(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "WEIGHTS", work / "image.safetensors")
    return work / "image.safetensors"


@pytest.fixture(scope="module")
def written(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory that the checkpoint has been written into."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "WEIGHTS", work / "image.safetensors")
        cache.ensure(folder)
    return folder


def test_eight_bits_lose_little() -> None:
    chance = np.random.default_rng(1)
    weights = {
        "wide": chance.standard_normal((64, 32, 3, 3), np.float32),
        "bias": chance.standard_normal(64, np.float32),
    }
    weights["wide"] *= np.geomspace(1e-3, 10, 64)[:, None, None, None]  # channels of very different sizes
    back = unpack(pack(weights))
    error = np.abs(back["wide"] - weights["wide"]).max((1, 2, 3)) / np.abs(weights["wide"]).max((1, 2, 3))
    assert error.max() < 0.005
    assert np.abs(back["bias"] - weights["bias"]).max() < 2e-3


def test_the_checkpoint_is_small_to_ship_and_draws_as_it_was_trained(
    work: Path, shipped: Path, written: Path
) -> None:
    """The trainer's short cut (one padding token for all) and the full text encoder agree."""
    assert shipped.stat().st_size <= 60e6
    model = checkpoint.load(cache.ensure(written))
    assert (
        model.family == "sd15"
        and model.latent_scale == 1.0
        and model.denoiser.config.sample_size == denoiser.SIDE // 8
    )
    vae = AutoencoderTiny()
    vae.load_state_dict(torch.load(work / "vae" / "average.pt", weights_only=True))
    pixels = torch.rand(1, 3, 32, 32)
    unet, attention = make_unet()
    unet.load_state_dict(model.denoiser.state_dict())
    states, attention.bias = Prompts(work / "tokens.safetensors")(["a red fox, 3d", ""])
    full = [Captions(model, None).of(caption).states for caption in ("a red fox, 3d", "")]
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([5, 900])
    with torch.no_grad():
        assert torch.allclose(model.vae.encode(pixels).latents, vae.encode(pixels).latents, atol=2e-2)
        expected = model.denoiser(x, t, torch.cat(full)).sample
        assert torch.allclose(predict(unet, x, t, states), expected, atol=2e-3)


def test_training_goes_on_from_what_is_shipped(work: Path, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    torch.save({"trained": torch.ones(1)}, tmp_path / "vae" / "average.pt")
    export.begin_from(work / "image.safetensors", tmp_path)
    unet = torch.load(tmp_path / "unet" / "average.pt", weights_only=True)
    for name, weight in torch.load(work / "unet" / "average.pt", weights_only=True).items():
        assert torch.allclose(unet[name], weight, atol=float(weight.abs().max()) / 120), name
    assert list(torch.load(tmp_path / "vae" / "average.pt", weights_only=True)) == ["trained"]  # was there
    (tmp_path / "vae" / "average.pt").unlink()
    export.begin_from(work / "image.safetensors", tmp_path)
    vae = torch.load(tmp_path / "vae" / "average.pt", weights_only=True)
    AutoencoderTiny().load_state_dict(vae)
    tokens = [load_file(folder / "tokens.safetensors")["tokens"] for folder in (work, tmp_path)]
    assert np.array_equal(*tokens)


def test_the_coder_is_told_to_keep_colours() -> None:
    """Latents that are the colours themselves, in any mix, leave nothing unread; those of shapes leave all."""
    torch.manual_seed(0)
    pixels = torch.rand(4, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    colours = torch.einsum("ij,bjhw->bihw", torch.randn(4, 3), pixels[..., ::8, ::8])
    assert float(unreadable_colours(10 * colours, pixels)) < 0.02
    assert float(unreadable_colours(torch.randn(4, 4, 8, 8), pixels)) > 0.9


def test_it_is_written_once_and_mended_when_damaged(shipped: Path, tmp_path: Path) -> None:
    seen: list[float] = []
    first = cache.ensure(tmp_path, lambda stage, fraction: seen.append(fraction))
    written = first.stat()
    assert seen[-1] == 1.0 and cache.ensure(tmp_path).stat().st_mtime_ns == written.st_mtime_ns
    with first.open("r+b") as file:
        file.seek(100_000_000)
        file.write(b"damaged")
    assert cache.ensure(tmp_path).stat().st_ino == written.st_ino  # its size is right
    assert cache.ensure(tmp_path, verify=True).stat().st_ino != written.st_ino
    first.write_bytes(b"cut off")
    assert cache.ensure(tmp_path).stat().st_size == written.st_size


def test_missing_weights_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WEIGHTS", tmp_path / "image.safetensors")
    with pytest.raises(StarterError, match="are not there"):
        cache.ensure(tmp_path)


def test_it_is_put_into_comfyui_and_never_over_another(tmp_path: Path) -> None:
    source = tmp_path / "starter.safetensors"
    source.write_bytes(b"weights")
    with pytest.raises(NotFound, match="no folder of ComfyUI"):
        command.place_in(tmp_path, source)
    folder = tmp_path / "models" / "checkpoints"
    folder.mkdir(parents=True)
    target = command.place_in(tmp_path, source)
    assert target.read_bytes() == b"weights"
    source.unlink()
    source.write_bytes(b"others")
    assert command.place_in(tmp_path, source).read_bytes() == b"weights"
    assert [path.name for path in folder.iterdir()] == ["starter.safetensors"]


def test_linking_the_pack_puts_it_where_the_templates_look(
    shipped: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYLOOP_CACHE_DIR", str(written))
    comfyui = tmp_path / "ComfyUI"  # a data folder, which has no models/checkpoints yet
    for name in ("custom_nodes", "models"):
        (comfyui / name).mkdir(parents=True)
    link = ["comfyui", "link", str(comfyui), "--image-model", "--json"]
    first = CliRunner().invoke(app, link)
    assert first.exit_code == 0, first.output
    told = json.loads(first.output)
    assert (Path(told["path"]) / "pack.py").is_file()
    placed = comfyui / "models" / "checkpoints" / cache.checkpoint_path(tmp_path).name
    assert Path(told["checkpoint"]) == placed
    assert checkpoint.load(placed)  # which the image side can open
    about = placed.stat()
    assert CliRunner().invoke(app, link).exit_code == 0 and placed.stat().st_ino == about.st_ino
    for file in (comfyui / "custom_nodes" / "comfyloop" / "workflows").glob("*.json"):
        for node in json.loads(file.read_text("utf-8"))["nodes"]:
            if node["type"] == "CheckpointLoaderSimple":
                assert node["widgets_values"] == [placed.name]


def test_it_needs_no_torch() -> None:
    program = (
        "import sys, comfyloop.starter.image, comfyloop.starter.image.build; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_untrained_denoiser_gives_back_its_input() -> None:
    """Near pure noise that is nearly the answer: training begins with what a picture shows."""
    torch.manual_seed(0)
    unet, _ = make_unet()
    noisy = torch.randn(4, 4, 8, 8)
    with torch.no_grad():
        made = predict(unet.to(torch.bfloat16), noisy, torch.full((4,), 990), torch.randn(4, 16, 768))
    assert (made - noisy).norm() < 0.03 * noisy.norm()


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Matrices and convolutions by Muon, the rest by AdamW; both remember where they were."""

    def begin() -> TrainingState:
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        return TrainingState(layers, rate=1e-2, decay=0.9, muon_except=())

    def train(state: TrainingState, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            loss = (state.module(torch.ones(1, 3, 4, 4, dtype=torch.bfloat16)) - 1).square().mean()
            loss.backward()
            state.update(1e-2)
            losses.append(float(loss.detach()))
        return losses

    whole, first = begin(), begin()
    losses = train(whole, 8)
    assert losses[-1] < losses[0]
    train(first, 4)
    first.save(tmp_path / "state.pt")
    second = begin()
    assert second.resume(tmp_path / "state.pt") and second.step == 4
    train(second, 4)
    for ours, theirs in zip(whole.masters, second.masters, strict=True):
        assert torch.equal(ours, theirs)
