"""Turn a training run into the file that ships with the package, and that file into a run to go on from.

python -m tools.starter.image.export --work DIR --out src/comfyloop/starter/image/weights/image.safetensors
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.numpy import load_file, save_file
from torch import Tensor

from comfyloop.stable_diffusion.layout import UNetShape, rename, unet_modules
from comfyloop.starter.image import denoiser
from comfyloop.starter.image.build import UNET_PREFIX, VAE_PREFIX, read
from comfyloop.starter.image.packing import Tensors, pack, unpack

SHAPE = UNetShape(layers=1, attention=(False, True))


def unet_tensors(averaged: dict[str, Tensor]) -> dict[str, Tensor]:
    modules = {nested: single for single, nested in unet_modules(SHAPE).items()}
    expected = set(UNet2DConditionModel(**denoiser.config()).state_dict())
    assert set(averaged) == expected, "the run's UNet is not the starter's"
    return {UNET_PREFIX + rename(name, modules): weight for name, weight in averaged.items()}


def vae_tensors(averaged: dict[str, Tensor]) -> dict[str, Tensor]:
    """TAESD's names: its decoder counts the clamp in front of the layers."""
    out = {}
    for name, weight in averaged.items():
        part, _, number, rest = name.split(".", 3)
        single = f"taesd_encoder.{number}" if part == "encoder" else f"taesd_decoder.{int(number) + 1}"
        out[f"{VAE_PREFIX}{single}.{rest}"] = weight
    return out


def export(work: Path, out: Path) -> None:
    unet = torch.load(work / "unet" / "average.pt", weights_only=True)
    vae = torch.load(work / "vae" / "average.pt", weights_only=True)
    shipped: Tensors = {}
    shipped |= pack({name: w.numpy() for name, w in unet_tensors(unet).items()})
    shipped |= {name: w.half().numpy() for name, w in vae_tensors(vae).items()}
    shipped |= load_file(work / "tokens.safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(shipped, out)


def begin_from(shipped: Path, work: Path) -> None:
    """Put what was shipped where a run that ended would have left it. A part that the work folder has stays.

    The optimizers' states were not shipped: they begin anew.
    """
    packed, _ = read(shipped)
    tokens = packed.pop("tokens")
    single = {name: torch.from_numpy(w).float() for name, w in unpack(packed).items()}
    modules = unet_modules(SHAPE)
    parts = {
        "unet": {
            rename(name.removeprefix(UNET_PREFIX), modules): weight
            for name, weight in single.items()
            if name.startswith(UNET_PREFIX)
        },
        "vae": {
            diffusers_vae_name(name.removeprefix(VAE_PREFIX)): weight
            for name, weight in single.items()
            if name.startswith(VAE_PREFIX)
        },
    }
    for part, weights in parts.items():
        folder = work / part
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "average.pt").exists():
            torch.save(weights, folder / "average.pt")
    if not (work / "tokens.safetensors").exists():
        save_file({"tokens": np.ascontiguousarray(tokens)}, work / "tokens.safetensors")


def diffusers_vae_name(single: str) -> str:
    part, number, rest = single.split(".", 2)
    if part == "taesd_encoder":
        return f"encoder.layers.{number}.{rest}"
    return f"decoder.layers.{int(number) - 1}.{rest}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.starter.image.export", description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    export(args.work, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
