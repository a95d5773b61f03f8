"""Plans a device's memory: what serving, training and drawing each need, what fits together, and the settings for
that. Pure; the figures of models and machines come from `python -m comfyloop.memory`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from comfyloop.errors import InvalidInput, ModelError
from comfyloop.models.figures import Figures

GIB = 2**30
MIB = 2**20

CONTEXT = {"cpu": 500 * MIB, "mps": 200 * MIB}
"""What a process takes before it has a model. On a processor measured here (torch, transformers, PEFT); on cards what
CUDA's context is known to take, and not measured."""
OTHER_CONTEXT = 500 * MIB
SLACK = {"cpu": 0.25}
"""What an allocator takes beyond what is alive, as a share of that: on a processor measured (glibc, the starter)."""
OTHER_SLACK = 0.1
PIECES = {"cpu": 0.4}
"""Of what a run's proof took before the first step, what lies about in pieces too small for its steps; measured."""
SPARE = 0.05
"""Of a device, left to the system and to what the screen shows."""
REQUEST_TOKENS = 4096
"""Of prompt and answer, that each request is planned with."""
TEXT_TOKENS = 160
"""Of a sample, beside its image."""
LESS_PIXELS = (262_144, 65_536)
"""Sizes to which images are scaled down where nothing else helps: 512 and 256 squared."""
WRITTEN_OUT = 1024
"""Longest sample whose attention scores training writes out, where it does (`train.kernels.packing`)."""
EFFICIENCY = 0.5
"""Of a device's speed in large products, that a step reaches."""


@dataclass(frozen=True)
class Machine:
    """A device to plan for; bytes."""

    name: str
    kind: str  # cuda, mps, xpu, cpu
    total: int
    each: int = 2  # bytes of a weight in its best precision
    four_bits: bool = True  # whether bitsandbytes computes there
    speed: float = 0.0  # floating-point operations a second in large products, as measured; 0: not measured

    @property
    def context(self) -> int:
        return CONTEXT.get(self.kind, OTHER_CONTEXT)

    @property
    def room(self) -> int:
        return int(self.total * (1 - SPARE))

    def with_slack(self, alive: int) -> int:
        return int(alive * (1 + SLACK.get(self.kind, OTHER_SLACK)))


@dataclass(frozen=True)
class Way:
    """How a run is computed: the settings by which memory is saved."""

    quant_method: str = ""
    batch_size: int = 4
    gradient_checkpointing: bool = False
    max_pixels: int = 1_003_520


@dataclass(frozen=True)
class Step:
    """Bytes of a training step beside the weights, as a rehearsal found them."""

    fixed: int
    token: int  # of each token
    pair: float = 0.0  # of each pair of tokens of a sample of up to `WRITTEN_OUT`

    def at(self, samples: int, tokens: int) -> int:
        pairs = tokens * tokens if tokens <= WRITTEN_OUT else 0
        return self.fixed + samples * (self.token * tokens + int(self.pair * pairs))


@dataclass(frozen=True)
class Trained:
    """A way of training a model.

    Attributes:
        weights: How many are trained.
        fused, checkpointed: Its step with our own passes, without and with gradient checkpointing.
        plain: Its step by PEFT's and transformers' own modules: with weights in four bits, and when a run proves its
            gradients before the first step.
        image_tokens: Of an image, by the pixels that it is scaled down to.
        tower: Bytes that the vision tower takes for the largest of these, beside its weights.
    """

    weights: int
    fused: Step
    checkpointed: Step
    plain: Step
    image_tokens: Mapping[int, int]
    tower: int = 0

    def sample(self, pixels: int) -> int:
        """Tokens of a sample with one image."""
        return TEXT_TOKENS + self.image_tokens.get(pixels, 0)

    def looking(self, pixels: int) -> int:
        most = max(self.image_tokens.values(), default=0)
        return self.tower * self.image_tokens.get(pixels, 0) // most if most else 0


PARTS = ("weights", "cache", "activations", "optimizer", "context", "total")
"""Of a need, in the order of tables."""


@dataclass(frozen=True)
class Need:
    """Bytes of one process, by what takes them."""

    weights: int
    cache: int = 0
    activations: int = 0
    optimizer: int = 0
    context: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations + self.optimizer + self.context


def to_serve(
    model: Figures,
    machine: Machine,
    *,
    requests: int,
    kept: int = 0,
    tower: int = 0,
    four_bits: bool = False,
) -> Need:
    """Args:
    requests: Answered together, of `REQUEST_TOKENS` each.
    kept: Bytes that the engine keeps of prompts, images and weights seen before.
    tower: Bytes of looking at an image.
    four_bits: The language model's linear layers are in NF4.
    """
    prompt = 512 * model.hidden * 4 * machine.each + model.vocabulary * 4 * requests
    return Need(
        weights=model.weights(machine.each, four_bits),
        cache=model.cache(REQUEST_TOKENS * requests, machine.each) + kept,
        activations=machine.with_slack(max(tower, prompt)) + _one_in_full(model, machine, four_bits),
        context=machine.context,
    )


def to_train(model: Figures, machine: Machine, way: Way, trained: Trained) -> Need:
    """What a run takes at its peak: in the backward pass of the longest micro-batch, where it looks at an image, or
    where it proves its gradients before the first step."""
    four_bits = way.quant_method == "bnb"
    tokens = trained.sample(way.max_pixels)
    step = trained.plain if four_bits else trained.fused
    step = trained.checkpointed if way.gradient_checkpointing else step
    # the proof goes through one sample with a picture and one without, at the same time
    proof = trained.plain.at(1, tokens) + trained.plain.at(1, TEXT_TOKENS) - trained.plain.fixed
    steps = step.at(way.batch_size, tokens) + int(PIECES.get(machine.kind, 0.0) * proof)
    alive = max(steps, proof, trained.looking(way.max_pixels))
    alive += _one_in_full(model, machine, four_bits)
    return Need(
        weights=model.weights(machine.each, four_bits),
        activations=machine.with_slack(alive),
        optimizer=trained.weights * 4 * 3,  # in float32: what is trained, and AdamW's two moments
        context=machine.context,
    )


def _one_in_full(model: Figures, machine: Machine, four_bits: bool) -> int:
    """A layer's weight that is taken out of its four bits while it is multiplied by."""
    return model.largest * machine.each if four_bits else 0


def ways(machine: Machine, wanted: Way, pixels: int) -> Iterator[Way]:
    """Ways to compute a run, the fastest and finest first: as it is set, then less at a time, then with activations
    computed again, then in four bits."""
    sizes = [size for size in dict.fromkeys((wanted.batch_size, 4, 2, 1)) if size <= wanted.batch_size]
    again = [True] if wanted.gradient_checkpointing else [False, True]
    quants = [wanted.quant_method] if wanted.quant_method or not machine.four_bits else ["", "bnb"]
    for quant, checkpointing, size in product(quants, again, sizes):
        yield Way(quant, size, checkpointing, pixels)


def sizes_of_images(wanted: Way) -> list[int]:
    """Pixels that are tried, the largest first."""
    return [wanted.max_pixels, *(pixels for pixels in LESS_PIXELS if pixels < wanted.max_pixels)]


def settings_of(way: Way, wanted: Way, *, served_in_four_bits: bool = False) -> dict[str, str | int | bool]:
    """The settings that differ from what is set."""
    changed = {name: value for name, value in vars(way).items() if value != getattr(wanted, name)}
    return changed | ({"engine_quant_method": "bnb"} if served_in_four_bits else {})


@dataclass(frozen=True)
class Image:
    """An image model that draws, and is none of our processes."""

    weights: int  # how many
    pixels: int  # of a picture

    def to_draw(self, machine: Machine) -> Need:
        """Its peak is the decoder's last layers: some maps of 128 channels, as large as the picture."""
        return Need(
            self.weights * machine.each,
            activations=self.pixels * 128 * machine.each * 4,
            context=machine.context,
        )


@dataclass(frozen=True)
class MemoryPlan:
    """What fits on a device.

    Attributes:
        way: How to train.
        needs: By what takes them: `serving`, `training`, `drawing`.
        changed: Settings of `way` that are not set so.
        together: Who is in memory at the same time: groups that each fit, and take turns.
        seconds: Of the training of a turn; 0: not known.
        complaint: What does not fit in any way, as a sentence; empty: all does.
        hint: How to mend that.
    """

    machine: Machine
    way: Way
    needs: Mapping[str, Need]
    changed: Mapping[str, str | int | bool]
    together: tuple[tuple[str, ...], ...]
    seconds: float = 0.0
    complaint: str = ""
    hint: str = ""


def make(
    model: Figures,
    machine: Machine,
    wanted: Way,
    trained: Trained,
    *,
    requests: int,
    kept: int,
    four_bits: bool = False,
    passes: float = 0.0,
    image: Image | None = None,
) -> MemoryPlan:
    """The plan of a base model on a device: what is finest first, and of two equals what lets all stay in memory.

    Args:
        requests, kept, four_bits: As `to_serve` has them.
        passes: Samples that a turn goes through, each as often as it is passed.
    """

    def needs_of(way: Way, four_bits: bool) -> dict[str, Need]:
        needs = {
            "serving": to_serve(
                model,
                machine,
                requests=requests,
                kept=kept,
                tower=trained.looking(way.max_pixels),
                four_bits=four_bits,
            ),
            "training": to_train(model, machine, way, trained),
        }
        return needs | ({"drawing": image.to_draw(machine)} if image is not None else {})

    served = [False, True] if machine.four_bits and not four_bits else [four_bits]
    way, small, fits = wanted, four_bits, False
    for pixels, at_once in product(sizes_of_images(wanted), (True, False)):
        for way, small in product(ways(machine, wanted, pixels), served):
            sizes = [need.total for need in needs_of(way, small).values()]
            fits = (sum(sizes) if at_once else max(sizes)) <= machine.room
            if fits:
                break
        if fits:
            break
    needs = needs_of(way, small)
    complaint = hint = ""
    if not fits:
        name = max(needs, key=lambda one: needs[one].total)
        complaint = (
            f"{name.capitalize()} takes {needs[name].total / GIB:.1f} GiB at the least, and {machine.name} has "
            f"room for {machine.room / GIB:.1f}."
        )
        hint = f"Name a smaller {'image' if name == 'drawing' else 'base'} model."
        if not machine.four_bits:
            hint = f"{hint[:-1]}, or install bitsandbytes: pip install 'comfyloop[quant]'."
    tokens = passes * trained.sample(way.max_pixels)
    work = model.linear * (6 if way.gradient_checkpointing else 4) * tokens
    return MemoryPlan(
        machine,
        way,
        needs,
        settings_of(way, wanted, served_in_four_bits=small and not four_bits) if fits else {},
        turns(machine, needs),
        work / (machine.speed * EFFICIENCY) if machine.speed else 0.0,
        complaint,
        hint,
    )


def turns(machine: Machine, needs: Mapping[str, Need]) -> tuple[tuple[str, ...], ...]:
    """Who is in memory at the same time: each in the first group that has room for it."""
    groups: list[list[str]] = []
    for name in needs:
        for group in groups:
            if sum(needs[one].total for one in (*group, name)) <= machine.room:
                group.append(name)
                break
        else:
            groups.append([name])
    return tuple(map(tuple, groups))


def refuse_too_large(name: str, model: Figures, machine: Machine, four_bits: bool = False) -> None:
    """Raise ModelError for a model that the device cannot hold with one answer, before any of it is loaded. The hint
    says the settings under which it would fit."""
    need = to_serve(model, machine, requests=1, four_bits=four_bits)
    if need.total <= machine.room:
        return
    small = to_serve(model, machine, requests=1, four_bits=True)
    hint = "Name a smaller base model, or serve this one from another machine: engine = url."
    if machine.four_bits and not four_bits and small.total <= machine.room:
        hint = (
            f"Set engine_quant_method = bnb: in four bits it takes {small.total / GIB:.1f} GiB. Or name a "
            "smaller base model."
        )
    raise ModelError(
        f"{name} takes {need.total / GIB:.1f} GiB to serve ({need.weights / GIB:.1f} of it weights), and "
        f"{machine.name} has room for {machine.room / GIB:.1f}. It was not loaded.",
        hint,
    )


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:g|gb|gib)?\s*", re.IGNORECASE)


def bytes_of(text: str) -> int:
    """`24GB`, `24 GiB`, `24`: of memory, in which a GB is a GiB to everyone who sells it.

    Raises:
        InvalidInput: It says no size.
    """
    size = _SIZE.fullmatch(text)
    if size is None or not 0 < float(size[1]) < 100_000:
        raise InvalidInput(f"{text!r} is no size of memory.", "Say how many GB it has, such as --gpu 24GB.")
    return int(float(size[1]) * GIB)


def of_size(machine: Machine, total: int) -> Machine:
    """A card of that size in place of what is there; how fast it is, nobody knows."""
    return replace(
        machine,
        name=f"a GPU of {total / GIB:g} GB",
        kind="cuda",
        total=total,
        each=2,
        four_bits=True,
        speed=0.0,
    )
