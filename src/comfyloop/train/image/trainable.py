"""The image model with a trainable LoRA, with its encoders for pictures and captions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from comfyloop.formats import BadRow, UnusableRow
from comfyloop.models import devices
from comfyloop.train.data.rows import refuse_or_skip
from comfyloop.train.image import checkpoint, flow, kohya, lora
from comfyloop.train.image.buckets import Fit
from comfyloop.train.image.cache import Cache
from comfyloop.train.image.latents import Latents
from comfyloop.train.image.loss import Noising
from comfyloop.train.image.model import ImageModel
from comfyloop.train.image.rows import Picture, PictureRow, read_rows
from comfyloop.train.image.text import Captions, Conditions
from comfyloop.train.run.control import Control
from comfyloop.train.run.directory import RunDirectory
from comfyloop.train.run.log import RunLog
from comfyloop.train.specs.image import AdapterMetadata, ImageTrainSpec

_WITHOUT_EFFECT = {
    "threads",
    "memory_gb",
    "step_aside_after",
    "nice",
    "save_steps",
    "eval_steps",
}  # on the loss


@dataclass
class TrainableImageModel:
    model: ImageModel
    latents: Latents
    captions: Captions
    cache: Cache
    device: torch.device
    dtype: torch.dtype
    about: AdapterMetadata
    start: lora.Weights | None  # the LoRA that training begins with; None: a fresh one, which changes nothing

    @property
    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return lora.trainable(self.model)

    def count_parameters(self) -> tuple[int, int]:
        """How many parameters are trained, and how many there are."""
        total = sum(p.numel() for module in self.model.modules for p in module.parameters())
        return sum(p.numel() for _, p in self.trainable), total

    def train(self) -> None:
        self.model.denoiser.train()

    def eval(self) -> None:
        self.model.denoiser.eval()

    def save(self, place: Path) -> None:
        kohya.save(self.model, place, self.about.model_dump())

    def predict(self, noising: Noising, conditions: Conditions, frames: list[tuple[Picture, Fit]]) -> Tensor:
        """The denoiser's prediction for noisy latents: [B, channels, h, w] in float32.

        `frames` tells SDXL each picture's own size and what was cut off.
        """
        if self.model.is_flow:
            assert conditions.pooled is not None
            text_inputs = (t.to(self.device, self.dtype) for t in (conditions.states, conditions.pooled))
            noisy = noising.noisy.to(self.device, self.dtype)
            return flow.predict(self.model, noisy, noising.timesteps, *text_inputs).float()
        extra = None
        if conditions.pooled is not None:
            sizes = [
                (picture.height, picture.width, how.corner[1], how.corner[0], how.size[1], how.size[0])
                for picture, how in frames
            ]
            extra = {
                "text_embeds": conditions.pooled.to(self.device, self.dtype),
                # in float32: bfloat16 would round sizes to multiples of four and eight
                "time_ids": torch.tensor(sizes, device=self.device, dtype=torch.float32),
            }
        out: Tensor = self.model.denoiser(
            noising.noisy.to(self.device, self.dtype),
            noising.timesteps.to(self.device),
            conditions.states.to(self.device, self.dtype),
            added_cond_kwargs=extra,
        ).sample
        return out.float()


def prepare(directory: RunDirectory, spec: ImageTrainSpec) -> TrainableImageModel:
    """Read the weights and put the LoRA on.

    Raises:
        ModelError: The model, its VAE or the parent's LoRA cannot be used.
    """
    device = devices.choose()
    prediction = None if spec.prediction_type == "auto" else spec.prediction_type
    vae = directory.resolve(spec.vae) if spec.vae else None
    dtype = devices.precision(device, spec.dtype)
    model = checkpoint.load(directory.resolve(spec.model), vae, prediction, dtype)
    model.vae.to(device)  # in float32: half precision overflows in SDXL's
    for module in (model.denoiser, *(encoder.model for encoder in model.text_encoders)):
        module.to(device, dtype)
    cache = Cache(directory.resolve(spec.cache) if spec.cache else directory.path / "cache")
    # the keys are hashes of the weights as they came, so before the LoRA is put on
    latents = Latents(model, cache, spec.resolution, spec.bucket_step, spec.crop)
    captions = Captions(model, None if spec.adapter.text_encoder else cache)
    lora.add(model, spec.adapter)
    if spec.adapter.init_from is not None:
        parent = directory.resolve(spec.adapter.init_from)
        tensors, metadata = kohya.read(parent)
        kohya.refuse_another_prediction(model, metadata, parent.name)
        lora.read_into(model, tensors, parent.name)
    start = lora.copy_of(model) if spec.adapter.init_from is not None else None
    if spec.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()
    return TrainableImageModel(model, latents, captions, cache, device, dtype, spec.about, start)


def read_pictures(directory: RunDirectory, file: str, spec: ImageTrainSpec, log: RunLog) -> list[PictureRow]:
    """All rows of a file. Raises DataError that names every line that cannot be trained on."""
    pairs = spec.compares
    path = directory.resolve(file)
    rows, bad = read_rows(path, pairs=pairs, max_image_pixels=spec.max_image_pixels, note=log.say)
    held_out = file == spec.holdout
    refuse_or_skip(path, len(rows), bad, spec.skip_bad, spec.max_bad_share, may_be_none=held_out)
    log.left_out(path, bad)
    repeated = rows if held_out else [row for row in rows for _ in range(row.repeats)]
    passed = f", passed {len(repeated)} times in an epoch" if len(repeated) > len(rows) else ""
    log.say(f"{path.name}: {len(rows)} {'pairs' if pairs else 'pictures'}{passed}")
    return repeated


def encode(
    trainable: TrainableImageModel,
    path: Path,
    rows: list[PictureRow],
    spec: ImageTrainSpec,
    log: RunLog,
    control: Control,
) -> list[PictureRow]:
    """Encode every picture and caption before the first step; returns the rows whose pictures can be decoded.

    Raises:
        DataError: Pictures cannot be decoded; names each line.
    """
    computed_before, good, bad = trainable.cache.made, [], []
    for row in rows:
        control.check()
        try:
            for picture in (row.chosen, row.rejected):
                if picture is not None:
                    trainable.latents.of(picture, like=row.chosen)
        except UnusableRow as error:
            bad.append(BadRow(row.line, row.id, str(error), row.item))
            continue
        good.append(row)
        if not spec.adapter.text_encoder:
            trainable.captions.of(caption_of(row, spec))
    held_out = spec.holdout is not None and path == Path(spec.holdout)
    refuse_or_skip(path, len(good), bad, spec.skip_bad, spec.max_bad_share, may_be_none=held_out)
    log.left_out(path, bad)
    log.say(
        f"encoded {trainable.cache.made - computed_before} pictures and captions, the others were in the cache"
    )
    return good


def caption_of(row: PictureRow, spec: ImageTrainSpec) -> str:
    words = spec.about.trigger_words if spec.trigger_in_caption else ""
    return ", ".join(part for part in (words, row.caption) if part)


def fingerprint(spec: ImageTrainSpec, rows: Iterable[PictureRow], trainable: TrainableImageModel) -> str:
    """A hash of everything that a checkpoint depends on: the data, and every value that affects the loss."""
    spec_json = spec.at_once().model_dump_json(
        exclude={"train", "holdout", "prior", "cache", "about", *_WITHOUT_EFFECT}
    )
    digest = hashlib.sha256(spec_json.encode())
    digest.update(trainable.latents.weights.encode())
    for row in rows:
        digest.update(f"{row.chosen.sha256} {row.rejected and row.rejected.sha256} {row.caption}\n".encode())
    return digest.hexdigest()
