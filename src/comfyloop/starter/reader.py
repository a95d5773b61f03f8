"""The reader: fixed blocks behind the vision tower that spell, in word embeddings, what a picture shows.

The language model is left as it is, so a picture has to reach it as text would. Sixteen image tokens stand for

    The image shows WORD, WORD, WORD, WORD, WORD, WORD.

Each word has two places: its first piece, and its second piece or, for most words, the comma. The words are the
six best of some twelve hundred: a linear head (ours) scores words from the tower's mean features, and a class of
the tower's own classifier that stands out adds to the score of its name.

Sorting is done with what an EfficientNet block has: a depthwise convolution, ReLU6 and a 1 x 1 convolution. The
7 x 7 positions of the map are 49 thresholds at a time: how many words lie above each tells the threshold
that parts rank k from rank k+1, and a word between two of those has rank k. Nothing here is trained; it all
follows from the head, the classifier and the language model's embeddings.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SIDE = 7
POSITIONS = SIDE * SIDE
KERNEL = 2 * SIDE - 1  # covers the whole map from every position
TOKENS = 16  # the last block's stride of 2 keeps every second row and column
FEATURES = 1280  # of the tower; also the width of its output
EXPANDED = 1600

SENTENCE = ("The image shows", ",", ".\n")  # before the words, between them, after them
RANKS = 6
FIRST_PLACE = 3  # tokens before the first word
STEEP = 4096.0  # turns a difference of scores into a step of ReLU6, which is full at 6
FULL = 6.0

SCORE_SCALE = 4.0
CLASS_FLOOR, CLASS_GAIN = 6.0, 0.25  # a logit counts from here on: below it the classifier only guesses
# Runs of 49 thresholds: fine where the weaker words lie. All are sums of few powers of two, exact in bfloat16.
LOWEST, SPACINGS = 0.25, (1 / 256, 1 / 128, 1 / 16)


@dataclass(frozen=True)
class WordHead:
    """What was trained: scores of words from the tower's mean features, and each class's word (or -1)."""

    weight: Tensor  # (words, 1280)
    bias: Tensor  # (words,)
    class_words: Tensor  # (1000,)
    pieces: tuple[tuple[int, ...], ...]  # one or two tokens a word


@dataclass(frozen=True)
class Block:
    """What one block computes: [expand, ReLU6,] depthwise, ReLU6, project."""

    inputs: int
    kernel: Tensor  # (channels, side, side)
    project: Tensor  # (outputs, channels)
    bias: Tensor
    stride: int = 1
    expand_ratio: int = 1


def padded(channels: int) -> int:
    """Transformers rounds the channels of a stage to multiples of 8."""
    return -(-channels // 8) * 8


def centre(channels: int, side: int = 1) -> Tensor:
    kernel = torch.zeros(channels, side, side)
    kernel[:, side // 2, side // 2] = 1
    return kernel


def position_kernels() -> Tensor:
    """(49, 13, 13): over a map of ones, kernel p gives one at position p and zero elsewhere."""
    line = torch.zeros(SIDE, KERNEL)
    for at in range(SIDE):
        line[at, SIDE - 1 - at] = 1
        if at < SIDE - 1:
            line[at, SIDE - 2 - at] = -1
    return torch.einsum("ai,bj->abij", line, line).reshape(POSITIONS, KERNEL, KERNEL)


def place(token: int) -> int:
    """The position on the 7 x 7 map that becomes this token."""
    return 2 * (token // 4) * SIDE + 2 * (token % 4)


def blocks(
    head: WordHead, rows: Tensor, offsets: Tensor, embeddings: Tensor, fixed: list[int]
) -> list[Block]:
    """`rows`, `offsets`: the classifier's; `embeddings` (tokens, width); `fixed`: SENTENCE's ids."""
    words, classes, runs = len(head.weight), len(rows), len(SPACINGS)
    chain: list[Block] = []

    def layer(
        outputs: int, channels: int, kernel: Tensor, stride: int = 1, inputs: int = 0, ratio: int = 1
    ) -> tuple[Tensor, Tensor]:
        project, bias = torch.zeros(padded(outputs), channels), torch.zeros(padded(outputs))
        chain.append(Block(inputs or channels, kernel, project, bias, stride, ratio))
        return project, bias

    def keep(project: Tensor, count: int, to: int = 0, source: int = 0) -> None:
        project[to : to + count, source : source + count] = torch.eye(count)

    # 1. mean features, then scores of words, logits of classes, and the positions
    kernel = torch.zeros(EXPANDED, KERNEL, KERNEL)
    kernel[:FEATURES] = 1 / POSITIONS
    kernel[FEATURES : FEATURES + POSITIONS] = position_kernels()
    project, bias = layer(words + classes + POSITIONS, EXPANDED, kernel, inputs=320, ratio=5)
    project[:words, :FEATURES] = head.weight * SCORE_SCALE
    bias[:words] = head.bias * SCORE_SCALE
    project[words : words + classes, :FEATURES] = rows * CLASS_GAIN
    bias[words : words + classes] = (offsets - CLASS_FLOOR) * CLASS_GAIN
    keep(project, POSITIONS, words + classes, FEATURES)

    # 2. one score a word; from here on the channels begin with the scores and the positions
    project, bias = layer(words + POSITIONS, len(bias), centre(len(bias)))
    keep(project, words)
    for index, word in enumerate(head.class_words.tolist()):
        if word >= 0:
            project[word, words + index] = 1
    keep(project, POSITIONS, words, words + classes)
    common = words + POSITIONS

    # 3. for every word, whether it reaches the threshold of this position
    project, bias = layer(common + runs * words, len(bias), centre(len(bias)))
    keep(project, common)
    start = LOWEST
    for run, spacing in enumerate(SPACINGS):
        thresholds = start + spacing * torch.arange(1, POSITIONS + 1)
        start += spacing * POSITIONS
        at = slice(common + run * words, common + (run + 1) * words)
        project[at, :words] = STEEP * torch.eye(words)
        project[at, words:common] = -STEEP * thresholds
        bias[at] = FULL

    # 4. for every rank, whether enough words reach it
    project, bias = layer(common + runs * RANKS, len(bias), centre(len(bias)))
    keep(project, common)
    for run in range(runs):
        for rank in range(RANKS):
            row = common + run * RANKS + rank
            project[row, common + run * words : common + (run + 1) * words] = 2.0
            bias[row] = -12 * (rank + 0.5)
    channels = len(bias)

    # 5. nothing but the ReLU6 of that
    project, _ = layer(channels, channels, centre(channels))
    keep(project, channels)

    # 6. the number of thresholds reached is the threshold of the rank; each word's places get their two
    kernel = centre(channels, KERNEL)
    kernel[common : common + runs * RANKS] = 1 / 64
    project, bias = layer(common + 2 * RANKS, channels, kernel)
    keep(project, common)
    for rank in range(RANKS):
        elsewhere = torch.full((POSITIONS,), -8.0)
        elsewhere[[place(FIRST_PLACE + 2 * rank), place(FIRST_PLACE + 2 * rank + 1)]] = 0.0
        for row, of in ((common + rank, rank), (common + RANKS + rank, rank - 1)):
            project[row, words:common] = elsewhere
            bias[row] = LOWEST if of >= 0 else FULL  # nothing ranks before the first
            for run, spacing in enumerate(SPACINGS if of >= 0 else ()):
                project[row, common + run * RANKS + of] = spacing * 64 / FULL

    # 7. at every place, which word lies between its two thresholds: first pieces, then second pieces
    double = [word for word, pieces in enumerate(head.pieces) if len(pieces) == 2]
    units = words + len(double)
    sources = torch.tensor([*range(words), *double])
    project, bias = layer(2 * units + POSITIONS, len(bias), centre(len(bias)))
    open_at = torch.full((units, POSITIONS), -8 * STEEP)
    for rank in range(RANKS):
        open_at[:words, place(FIRST_PLACE + 2 * rank)] = 0.0
        open_at[words:, place(FIRST_PLACE + 2 * rank + 1)] = 0.0
    for side in range(2):
        whose = torch.arange(units) + side * units
        project[whose, sources] = STEEP
        project[whose, words:common] = open_at
        first = common + side * RANKS
        project[whose, first : first + RANKS] = -STEEP
        bias[whose] = FULL
    keep(project, POSITIONS, 2 * units, words)

    # 8. the embeddings of the sentence
    width = embeddings.shape[1]
    project, bias = layer(width, len(bias), centre(len(bias)), stride=2)
    *before, comma, stop, line = (embeddings[token].float() for token in fixed)
    heads = torch.stack([embeddings[pieces[0]].float() for pieces in head.pieces])
    project[:, :words] = heads.T / FULL
    if double:
        seconds = torch.stack([embeddings[head.pieces[word][1]].float() - comma for word in double])
        project[:, words:units] = seconds.T / FULL
    project[:, units : 2 * units] = -project[:, :units]
    sentence = [*before, *([torch.zeros(width), comma] * RANKS)]
    sentence[-1:] = [stop, line]
    for token, embedding in enumerate(sentence):
        project[:, 2 * units + place(token)] = embedding
    return chain


def weights(chain: list[Block], top: dict[str, Tensor], first: int) -> dict[str, Tensor]:
    """The blocks as parameters of transformers' EfficientNet, from block number `first` on.

    `top` is the tower's last convolution and norm, which become the first block's expansion; the output of
    the last block is handed on as its positive and its negative part.
    """
    out: dict[str, Tensor] = {}

    def norm(name: str, bias: Tensor) -> None:
        ones = torch.ones(len(bias))
        out.update(
            {
                f"{name}.weight": ones,
                f"{name}.bias": bias,
                f"{name}.running_mean": torch.zeros(len(bias)),
                f"{name}.running_var": ones - 1e-3,
                f"{name}.num_batches_tracked": torch.tensor(0),
            }
        )

    for number, block in enumerate(chain):
        to = f"encoder.blocks.{first + number}"
        channels = block.project.shape[1]
        if block.expand_ratio > 1:
            extra_channels = channels - FEATURES
            conv = top["top_conv.weight"]
            out[f"{to}.expansion.expand_conv.weight"] = torch.cat(
                [conv, torch.zeros(extra_channels, *conv.shape[1:])]
            )
            bias = torch.zeros(extra_channels)
            bias[:POSITIONS] = 1  # a map of ones for each position's kernel
            norm(f"{to}.expansion.expand_bn", torch.cat([torch.zeros(FEATURES), bias]))
            for part in ("weight", "bias", "running_mean", "running_var"):
                out[f"{to}.expansion.expand_bn.{part}"][:FEATURES] = top[f"top_bn.{part}"]
        out[f"{to}.depthwise_conv.depthwise_conv.weight"] = block.kernel[:, None]
        norm(f"{to}.depthwise_conv.depthwise_norm", torch.zeros(channels))
        out[f"{to}.projection.project_conv.weight"] = block.project[:, :, None, None]
        norm(f"{to}.projection.project_bn", block.bias)
    width = chain[-1].project.shape[0]
    final = torch.zeros(FEATURES, width)
    final[:width], final[width : 2 * width] = torch.eye(width), -torch.eye(width)
    out["encoder.top_conv.weight"] = final[:, :, None, None]
    norm("encoder.top_bn", torch.zeros(FEATURES))
    return out


def projector(width: int) -> dict[str, Tensor]:
    """FastVLM's projector puts the two parts together again."""
    joined = torch.zeros(width, FEATURES)
    joined[:, :width], joined[:, width : 2 * width] = torch.eye(width), -torch.eye(width)
    return {
        "linear_1.weight": joined,
        "linear_1.bias": torch.zeros(width),
        "linear_2.weight": torch.eye(width),
        "linear_2.bias": torch.zeros(width),
    }
