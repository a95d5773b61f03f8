"""Train the denoiser on cached latents. A run that was stopped goes on where it was, a new one from shipped weights.

    python -m tools.starter.image.unet --work DIR --hours 6

Every few minutes it writes `DIR/unet/state.pt` (to go on from), `average.pt` (what ships) and a contact sheet.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDPMScheduler
from torch import Tensor

from comfyloop.starter.image import denoiser

from . import sheet
from .data import DRAWN_STYLES, STYLES, Captions, Pictures, load, on, weight
from .export import begin_from
from .model import EXACT, FASTER, Prompts, make_unet, predict
from .state import TrainingState

RATE, WARM_STEPS, DECAY, WEIGHT_DECAY = 8e-4, 100, 0.999, 0.01
BATCH = 32
CAPTION_DROPOUT = 0.1
MOST_SNR = 5.0
NOISIER = 0.4  # exponent: strong noise is drawn more often, for there the words decide
SAVE_SECONDS, SHEET_SECONDS = 240, 900


@torch.no_grad()
def latents(work: Path, pictures: Pictures) -> Tensor:
    """float32 [picture, 4, SIDE / 8, SIDE / 8], zero where the style is not drawn; encoded once for each encoder."""
    side = denoiser.SIDE
    source, path = work / "vae" / "average.pt", work / "unet" / f"latents-{side}.pt"
    if path.exists() and path.stat().st_mtime > source.stat().st_mtime:
        cached: Tensor = torch.load(path, weights_only=True)
        return cached
    vae = AutoencoderTiny(scaling_factor=1.0)
    vae.load_state_dict(torch.load(source, weights_only=True))
    vae.to(torch.bfloat16)
    wanted = [i for i, style in enumerate(pictures.style) if STYLES[style] in DRAWN_STYLES]
    encoded = torch.zeros(len(pictures.pixels), 4, side // 8, side // 8)
    for start in range(0, len(wanted), 32):
        part = wanted[start : start + 32]
        pixels = torch.from_numpy(on((255, 255, 255), pictures.pixels[part])).permute(0, 3, 1, 2)
        scaled = F.interpolate(pixels.float() / 127.5 - 1, (side, side), mode="area")
        encoded[part] = vae.encode(scaled.to(torch.bfloat16)).latents.float()
    torch.save(encoded, path)
    return encoded


def weights_of_pictures(pictures: Pictures) -> list[float]:
    return [
        weight(pictures.concepts[concept].label) * DRAWN_STYLES.get(STYLES[style], 0.0)
        for concept, style in zip(pictures.concept, pictures.style, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.starter.image.unet", description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--cool", action="store_true", help="let the rate fall to zero over these hours")
    parser.add_argument(
        "--from", dest="begin", type=Path, help="shipped weights, where nothing was trained yet"
    )
    args = parser.parse_args()
    if args.begin:
        begin_from(args.begin, args.work)
    folder = args.work / "unet"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = load(args.work)
    stored = latents(args.work, pictures)
    captions, prompts = Captions(pictures.concepts), Prompts(args.work / "tokens.safetensors")
    shares = weights_of_pictures(pictures)
    signal_shares = DDPMScheduler(**denoiser.schedule()).alphas_cumprod
    snr = signal_shares / (1 - signal_shares)
    # Min-SNR (Hang et al. 2023) for the picture's error, which never falls below the v-prediction weight:
    # plain noise prediction hardly learns what a picture shows, which is decided near pure noise.
    loss_weights = (snr + 1).clamp(max=MOST_SNR) / snr

    torch.manual_seed(0)
    unet, attention = make_unet()
    if (folder / "average.pt").exists():
        unet.load_state_dict(torch.load(folder / "average.pt", weights_only=True))
    state = TrainingState(unet, args.rate, DECAY, WEIGHT_DECAY, FASTER, muon_except=EXACT)
    state.resume(folder / "state.pt")
    unet.to(memory_format=torch.channels_last)
    begun = saved_at = drawn_at = time.monotonic()
    start_step, losses = state.step, []
    while (spent := time.monotonic() - begun) < args.hours * 3600:
        picks = state.chance.choices(range(len(shares)), shares, k=BATCH)
        texts = [
            ""
            if state.chance.random() < CAPTION_DROPOUT
            else captions.write(int(pictures.concept[i]), STYLES[pictures.style[i]], state.chance)
            for i in picks
        ]
        context, attention.bias = prompts(texts)
        clean = stored[picks]
        noise = torch.randn_like(clean)
        # one timestep out of each of as many bands
        t = (((torch.arange(BATCH) + torch.rand(BATCH)) / BATCH) ** NOISIER * 1000).long().clamp(max=999)
        signal = signal_shares[t].view(-1, 1, 1, 1)
        noisy = (signal.sqrt() * clean + (1 - signal).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        prediction = predict(unet, noisy, t, context)
        loss = (loss_weights[t] * (prediction - noise).square().mean((1, 2, 3))).mean()
        loss.backward()
        cooling = 1 - spent / (args.hours * 3600) if args.cool else 1.0
        state.update(args.rate * min(1.0, (state.step + 1) / WARM_STEPS) * cooling)
        losses.append(float(loss.detach()))
        if state.step % 25 == 0:
            pace = spent / (state.step - start_step)
            print(
                f"step {state.step} loss {np.mean(losses[-200:]):.4f} {spent:.0f} s, {pace:.2f} s a step",
                flush=True,
            )
        now = time.monotonic()
        if now - saved_at > SAVE_SECONDS:
            saved_at = now
            state.save(folder / "state.pt")
            torch.save(state.averaged(), folder / "average.pt")
        if now - drawn_at > SHEET_SECONDS:
            drawn_at = now
            sheet.draw(args.work, folder / f"sheet-{state.step:06d}.png")
    state.save(folder / "state.pt")
    torch.save(state.averaged(), folder / "average.pt")
    sheet.draw(args.work, folder / f"sheet-{state.step:06d}.png")


if __name__ == "__main__":
    main()
