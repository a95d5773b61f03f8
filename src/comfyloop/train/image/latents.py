"""Pictures as latents, computed once for each picture, cut and VAE."""

from __future__ import annotations

import math

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor

from comfyloop.train.image.buckets import Fit, cut, fit, sizes
from comfyloop.train.image.cache import Cache, key, weights_key
from comfyloop.train.image.model import ImageModel
from comfyloop.train.image.rows import Picture, decode

NATIVE = {"sd15": 512, "sd2": 768, "sdxl": 1024, "sd3": 1024, "flux": 1024}
"""The side of the squares that each family was trained on."""


class Latents:
    """The VAE's view of pictures, in float32 on the CPU."""

    def __init__(self, model: ImageModel, cache: Cache, resolution: int, bucket_step: int) -> None:
        self._model = model
        self._cache = cache
        self.weights = weights_key([model.vae])
        native = native_resolution(model)
        self.resolution = resolution or native
        step = min(bucket_step, self.resolution)
        if self.resolution == native:
            step = math.gcd(
                step, native
            )  # so that the model's own square is among them: 96 is no multiple of 64
        if model.is_flow:  # its transformer looks at two by two latents at a time
            step = -(-step // 16) * 16
        self.buckets = sizes(self.resolution, step)

    def fit(self, picture: Picture, like: Picture | None = None) -> Fit:
        """How the picture is cut; with `like`, to the size of that one."""
        if like is not None and like != picture:
            return fit(picture.width, picture.height, [self.fit(like).size])
        return fit(picture.width, picture.height, self.buckets)

    def of(
        self, picture: Picture, *, like: Picture | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """One picture's latents [4, h, w] as the UNet sees them.

        A variational VAE gives a distribution: with `generator` a sample of it, without its mean.

        Raises:
            UnusableRow: The picture cannot be decoded.
        """
        how = self.fit(picture, like)
        name = key("latents", picture.sha256, how.size, how.scaled, how.corner, self.weights)
        found = self._cache.get(name, lambda: self._encode(cut(decode(picture), how)))
        latents = found["mean"]
        if generator is not None and "std" in found:
            latents = latents + found["std"] * torch.randn(latents.shape, generator=generator)
        return (latents - self._model.latent_shift) * self._model.latent_scale

    @torch.no_grad()
    def _encode(self, picture: Image.Image) -> dict[str, Tensor]:
        vae = self._model.vae
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        pixels = pixels.to(vae.device, vae.dtype)
        if isinstance(vae, AutoencoderTiny):
            return {"mean": vae.encode(pixels).latents[0].float().cpu()}
        spread = vae.encode(pixels).latent_dist
        return {"mean": spread.mean[0].float().cpu(), "std": spread.std[0].float().cpu()}


def native_resolution(model: ImageModel) -> int:
    """From the folder's `sample_size` where there is one (a single file has none), else the family's."""
    size = getattr(model.denoiser.config, "sample_size", None)  # Flux has none
    return size * 8 if isinstance(size, int) and size > 0 else NATIVE[model.family]
