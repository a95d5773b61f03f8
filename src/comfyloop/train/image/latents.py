"""Pictures as latents, computed once for each picture, cut and VAE."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor

from comfyloop.media import subject
from comfyloop.train.image.buckets import Fit, cut, fit, sizes
from comfyloop.train.image.cache import Cache, key, weights_key
from comfyloop.train.image.model import ImageModel
from comfyloop.train.image.rows import Picture, decode

Crop = Literal["subject", "middle"]

NATIVE = {"sd15": 512, "sd2": 768, "sdxl": 1024, "sd3": 1024, "flux": 1024}
"""The side of the squares that each family was trained on."""


class Latents:
    """The VAE's view of pictures, in float32 on the CPU."""

    def __init__(
        self, model: ImageModel, cache: Cache, resolution: int, bucket_step: int, crop: Crop = "subject"
    ) -> None:
        self._model = model
        self._cache = cache
        self._crop = crop
        self._corners: dict[tuple[object, ...], tuple[int, int]] = {}
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

    def size(self, picture: Picture) -> tuple[int, int]:
        """Width and height that a picture is brought to."""
        return self._middle(picture).size

    def fit(self, picture: Picture, like: Picture | None = None) -> Fit:
        """How the picture is cut; with `like`, to the size of that one.

        Raises:
            UnusableRow: The picture cannot be decoded.
        """
        how = self._middle(picture, like)
        if not self._moves(how):
            return how
        if (picture.sha256, picture.box, how) not in self._corners:
            left, top = self._moments(picture, how)["corner"].tolist()
            self._corners[picture.sha256, picture.box, how] = (left, top)
        return replace(how, corner=self._corners[picture.sha256, picture.box, how])

    def _middle(self, picture: Picture, like: Picture | None = None) -> Fit:
        sizes = self.buckets if like is None or like == picture else [self.size(like)]
        return fit(picture.width, picture.height, sizes)

    def _moves(self, how: Fit) -> bool:
        return self._crop == "subject" and how.scaled != how.size

    def of(
        self, picture: Picture, *, like: Picture | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """One picture's latents [4, h, w] as the UNet sees them.

        A variational VAE gives a distribution: with `generator` a sample of it, without its mean.

        Raises:
            UnusableRow: The picture cannot be decoded.
        """
        moments = self._moments(picture, self._middle(picture, like))
        latents = moments["mean"]
        if generator is not None and "std" in moments:
            latents = latents + moments["std"] * torch.randn(latents.shape, generator=generator)
        return (latents - self._model.latent_shift) * self._model.latent_scale

    def _moments(self, picture: Picture, how: Fit) -> dict[str, Tensor]:
        """Latents, and where they were cut out."""
        crop = self._crop if self._moves(how) else "middle"
        which = (picture.sha256, picture.box) if picture.box else (picture.sha256,)
        name = key("latents", *which, how.size, how.scaled, how.corner, crop, self.weights)
        return self._cache.get(name, lambda: self._made(decode(picture), how))

    def _made(self, picture: Image.Image, how: Fit) -> dict[str, Tensor]:
        if self._moves(how):
            how = replace(how, corner=subject.corner(subject.weights(picture), how.scaled, how.size))
        return self._encode(cut(picture, how)) | {"corner": torch.tensor(how.corner)}

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
