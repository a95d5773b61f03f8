"""What is exported is used unchanged by others: plain PEFT with transformers, and diffusers."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from comfyloop.records import Project, Version
from comfyloop.registry import bundle, contents
from comfyloop.registry.manifest import IMAGE_WEIGHTS, TEXT_CONFIG
from tests.acceptance.comfyui.test_image_lora import stirred
from tests.unit.serve.embedded.conftest import save_adapter

pytest.importorskip("cryptography", reason="bundles are signed with it: pip install 'comfyloop[hubs]'")


def exported(version: Version, project: Project, place: Path) -> Path:
    """The folder with the files that go out."""
    manifest, pieces = contents.gather(version, project, str, publisher="anna")
    bundle.write(manifest, pieces, place / "x.comfyloop", place / "home")
    bundle.unfold(place / "x.comfyloop", place / "files")
    return place / "files"


@torch.no_grad()
def test_peft_loads_the_folder_and_gives_the_same_logits(tiny_llm: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ours = save_adapter(AutoModelForCausalLM.from_pretrained(tiny_llm), tmp_path / "adapter")
    version = Version(project="acme", number=1, text_adapter=str(tmp_path / "adapter"))
    files = exported(version, Project(name="acme", base_model=str(tiny_llm)), tmp_path)
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_llm), (files / TEXT_CONFIG).parent
    )
    tokens = torch.arange(4, 40)[None]
    want = ours(tokens).logits
    assert torch.equal(theirs.eval()(tokens).logits, want)
    with ours.disable_adapter():
        assert not torch.allclose(ours(tokens).logits, want), "the adapter changes nothing"


@torch.no_grad()
def test_diffusers_loads_the_file_and_draws_the_same(tiny_sd15: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    from comfyloop.train.image import checkpoint

    model = checkpoint.load(tiny_sd15)
    theirs = deepcopy(model.denoiser)
    file = stirred(model, tmp_path, text_encoder=False)
    version = Version(project="acme", number=1, image_adapter=str(file))
    project = Project(name="acme", base_model="starter", image_model=str(tiny_sd15))
    weights = exported(version, project, tmp_path) / IMAGE_WEIGHTS
    chance = torch.Generator().manual_seed(2)
    noise = torch.randn(1, 4, 8, 8, generator=chance)
    states = torch.randn(1, 77, model.denoiser.config.cross_attention_dim, generator=chance)
    plain = theirs(noise, 500, states).sample
    state, alphas = StableDiffusionPipeline.lora_state_dict(str(weights))
    StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=theirs)
    want = model.denoiser(noise, 500, states).sample
    assert (theirs(noise, 500, states).sample - want).abs().max() <= 1e-5 * want.abs().max()
    assert (plain - want).abs().max() > 1e-3 * want.abs().max(), "the LoRA changes nothing"
