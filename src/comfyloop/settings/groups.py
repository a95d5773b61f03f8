"""The settings by groups: name, default, one line of doc."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

from comfyloop.declared import OneOf, listed, names
from comfyloop.recipes import ImageRecipe, TextRecipe, of_side

IMAGE_STARTER = "starter-image"
"""The name of the embedded image starter, where an image model is named."""


ENGINES = tuple(names("comfyloop.serve.engines.kinds"))
"""The kinds of engines that there are: what they are, their own files say."""


def default_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")) / "comfyloop"


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "comfyloop"


class DataSettings(BaseModel):
    """Where things are."""

    home: Path = Field(
        default_factory=default_home, description="Data: database, blobs, snapshots, runs, versions."
    )
    cache_dir: Path = Field(
        default_factory=_default_cache, description="What can be made again: starter, caches."
    )
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in `home`.")
    blob_url: str = Field(default="", description="fsspec URL of the blob store; empty: a folder in `home`.")

    @field_validator("home", "cache_dir", mode="before")
    @classmethod
    def _named(cls, folder: Any) -> Any:
        """An empty name would be whatever folder one is in."""
        if folder == "":
            raise ValueError("name a folder, or leave it out")
        return folder

    @field_validator("home", "cache_dir")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        """Runs are computed by processes that have working directories of their own."""
        return folder.expanduser().absolute()


class ServeSettings(BaseModel):
    """The service and its engine."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8265, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    token: str = Field(
        default="", description="Bearer token that clients must send; empty: made where others can reach us."
    )
    project: str = Field(
        default="default", description="Project that is made on first start and used by default."
    )
    max_body_bytes: int = Field(default=32 * 2**20, gt=0, description="Largest request body.")
    max_dataset_bytes: int = Field(
        default=64 * 2**30,
        gt=0,
        description="Most bytes of a data set that is added, as sent and as unpacked.",
    )
    max_json_values: int = Field(
        default=100_000, gt=0, description="Most values (lists, objects, members) in one JSON body."
    )
    max_bundle_bytes: int = Field(
        default=4 * 2**30, gt=0, description="Largest bundle that is taken in, packed and unpacked."
    )
    max_chat_chars: int = Field(
        default=1_000_000, gt=0, description="Longest conversation, all messages together."
    )
    max_chat_images: int = Field(default=32, gt=0, description="Most images in one conversation.")
    max_text_chars: int = Field(default=200_000, gt=0, description="Longest text in a message or an edit.")
    max_feedback_items: int = Field(default=1000, gt=0, description="Most pieces of feedback in one request.")
    max_image_bytes: int = Field(default=20 * 2**20, gt=0, description="Largest image file.")
    max_image_side: int = Field(default=16_384, gt=0, description="Longest image side in pixels.")
    max_image_pixels: int = Field(default=64_000_000, gt=0, description="Most pixels in an image.")
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="Names beside its addresses under which the service is called, as a proxy's."
    )
    allowed_origins: tuple[str, ...] = Field(
        default=(), description="Web pages that may call it from a browser, as `https://studio.example`."
    )
    allowed_image_hosts: tuple[str, ...] = Field(
        default=(), description="Hosts from which image URLs are fetched."
    )

    model: str = Field(
        default="starter", description="Base model: `starter`, a directory or a hub id (`ms:` ModelScope's)."
    )
    engine: Annotated[str, OneOf(ENGINES)] = Field(
        default="embedded",
        description=f"Which engine serves: {listed(ENGINES)}; `url`: any OpenAI-compatible server.",
    )
    engine_url: str = Field(default="", description="URL of an engine that already runs; empty: start one.")
    engine_swap: Literal["load", "blue_green"] = Field(
        default="load", description="How an adapter gets in: loaded while it runs, or by a new process."
    )
    engine_args: tuple[str, ...] = Field(
        default=(), description="More arguments for the engine's command line."
    )
    vllm_python: str = Field(
        default="", description="Python that has vLLM; empty: that of `comfyloop engines install vllm`."
    )
    lmdeploy_python: str = Field(default="", description="Python that has LMDeploy; likewise.")
    sglang_python: str = Field(default="", description="Python that has SGLang; likewise.")
    swift_infer_backend: Literal["transformers", "vllm", "lmdeploy", "sglang"] = Field(
        default="transformers",
        description="What `engine = swift` computes with; the last two take no adapters there.",
    )
    gpu_memory_utilization: float = Field(
        default=0,
        ge=0,
        le=1,
        description="Share of the card that vLLM or SGLang takes; 0: what the model and `max_batch` requests of 4,096 "
        "tokens need, so that ComfyUI and training have the rest.",
    )
    max_lora_rank: int = Field(
        default=64, ge=1, description="Highest LoRA rank that vLLM or SGLang is started for."
    )
    tower_loras: bool = Field(
        default=False, description="Have vLLM apply adapters of the vision tower and projector too."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="Weights' precision."
    )
    engine_quant_method: Literal["", "bnb"] = Field(
        default="",
        description="`bnb`: the embedded engine keeps the language model's linear layers in four bits (NF4), a quarter "
        "of the memory and slower; adapters trained with `quant_method = bnb` then answer on what they learned on.",
    )
    engine_sleep_after: float | None = Field(
        default=None,
        ge=0,
        description="Minutes without a question after which the engine gives its memory back until the next one; 0: "
        "never; unset: 10 for the embedded engine on an accelerator, never on a processor and for others. vLLM sleeps "
        "only where this is set.",
    )
    engine_threads: int = Field(default=0, ge=0, description="CPU threads of the engine; 0: all cores.")
    max_batch: int = Field(default=8, ge=1, description="Requests decoded together.")
    max_queue: int = Field(default=64, ge=1, description="Requests that may wait; beyond it 429.")
    max_loras: int = Field(default=4, ge=2, description="Adapters kept loaded at once.")


class RecallSettings(BaseModel):
    """Past edits in the prompt."""

    examples: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Near past edits in a question's prompt until they are learnt; `auto`: not where small models "
        "would forget what they know (docs/examples.md).",
    )
    preferences_in_prompt: bool = Field(
        default=False, description="Put the preferences in words into the system prompt."
    )


class CurateSettings(BaseModel):
    """What becomes training data."""

    holdout_every: int = Field(default=4, ge=2, description="Each n-th new group of samples is held out.")
    holdout_first: int = Field(
        default=6,
        ge=0,
        description="Until so many are that no promoted version was judged by, each second one is.",
    )
    holdout_kept: int = Field(
        default=12,
        ge=0,
        description="Held-out corrections that a promoted version was judged by go on judging the next, the newest "
        "so many; the others are trained on.",
    )
    replay_share: float = Field(
        default=0.5, ge=0, le=0.9, description="Share of general questions in what a run passes."
    )
    rehearsal_samples: int = Field(
        default=40, ge=0, description="Samples of earlier turns that a turn rehearses, each once at least."
    )
    consolidate_every: int = Field(
        default=6,
        ge=0,
        description="So many promoted turns on, one starts from the base models and learns everything; 0: never.",
    )
    consolidation_samples: int = Field(
        default=1000, ge=0, description="Most samples of such a turn, chosen for coverage; 0: all."
    )
    author_share: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="Most of a turn's new samples that are one author's, where several sent some; the rest waits. "
        "Twelve of each are always taken.",
    )
    look_for_triggers: bool = Field(
        default=True,
        description="Set samples aside whose phrase calls up one answer whatever is asked, and have the gate try such.",
    )
    look_for_changes: bool = Field(
        default=True,
        description="Where a person wants other answers than before to one kind of question, learn the newer ones "
        "alone, and say so.",
    )
    max_answer_chars: int = Field(default=8_000, gt=0, description="Longer edits are dropped with a reason.")

    filters: dict[str, dict[str, Any]] = Field(
        default={},
        description="What is set of filters of samples, by their names: `[filters.NAME]` in the file.",
    )
    learn_graph_edits: bool = Field(
        default=False,
        description="Train on edits of workflows too, for *Suggest the next edit* in ComfyUI. Their rows are long.",
    )


class TrainSettings(BaseModel):
    """Runs, and what they do to the text side."""

    recipe: TextRecipe = Field(
        default="sft",
        description=f"Recipe of the text side: {listed(of_side('text'))}; reference/recipes.md tells them.",
    )
    warm_start: bool = Field(
        default=True, description="Go on from the live version, not from the base model."
    )
    lora_r: int = Field(default=8, ge=1, description="LoRA rank.")
    lora_alpha: int = Field(default=16, ge=1, description="LoRA alpha.")
    lora_target_modules: str = Field(
        default="all-linear",
        min_length=1,
        description="Where the LoRA is: `all-linear` (all linear layers of the language model), `attention` (its "
        "Q/K/V/O), or a regular expression over full module names. A version that goes on from another keeps to "
        "that one's layers.",
    )
    learning_rate: float = Field(
        default=0, ge=0, description="Peak learning rate; 0: the recipe's own, less for wider models."
    )
    preference_beta: float = Field(
        default=0.1, gt=0, description="How closely dpo and kto keep to the model that they begin with."
    )
    preference_rpo_alpha: float = Field(
        default=1.0,
        ge=0,
        description="dpo: weight of learning the edit itself beside preferring it; 0: only prefer.",
    )
    distillation_lmbda: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="sdft: share of the samples that are learnt on the model's own answers, the others on the edits "
        "themselves.",
    )
    quant_method: Literal["", "bnb"] = Field(
        default="",
        description="`bnb`: train on 4-bit base weights (QLoRA); empty: on the weights as they are.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Train with about half the memory and an eighth more time."
    )
    epochs: float = Field(
        default=0.0,
        ge=0,
        description="Passes over what is new; 0: by how much there is, 6 for 20 samples, at most 20, 2 from 60 on.",
    )
    max_steps: int = Field(default=0, ge=0, description="Upper bound of optimiser steps; 0: by epochs.")
    batch_size: int = Field(default=4, ge=1, description="Samples a micro-batch.")
    max_pixels: int = Field(
        default=1_003_520, gt=0, description="Images are scaled down to this many pixels."
    )
    feature_cache_gb: float = Field(
        default=10.0, gt=0, description="Room in `cache_dir` for what frozen vision towers made of images."
    )
    rope_scaling: str = Field(
        default="",
        pattern=r"^((linear|dynamic|yarn):\d+(\.\d+)?)?$",
        description="More positions than the model was trained on, in training and answers: `yarn:4`; empty: none.",
    )
    train_engine: Literal["comfyloop", "swift"] = Field(
        default="comfyloop", description="Which trainer trains: our own, or ms-swift in its own environment."
    )
    swift_python: str = Field(
        default="",
        description="Python that has ms-swift; empty: what `comfyloop engines install swift` makes.",
    )
    train_threads: int = Field(
        default=0, ge=0, description="CPU threads of the trainer; 0: half the cores, the rest is for answers."
    )
    train_memory_gb: float = Field(default=0, ge=0, description="Memory limit of the trainer; 0: none.")
    train_runner: Literal["local", "container", "ray"] = Field(
        default="local", description="Where runs are computed: a process, a container, a Ray cluster."
    )
    ray_address: str = Field(default="", description="Dashboard of the Ray cluster, as http://head:8265.")
    ray_python: str = Field(default="python", description="Python with comfyloop on the cluster's nodes.")
    train_image: str = Field(default="comfyloop-trainer", description="Image of the container runner.")
    container_engine: Literal["auto", "podman", "docker"] = Field(
        default="auto", description="What runs containers; auto: podman where it is installed, else docker."
    )
    train_processes: int = Field(default=1, ge=1, description="Processes that train one run together.")
    train_parallel: Literal["fsdp2", "zero2", "zero3"] = Field(
        default="fsdp2", description="How they share the weights: FSDP2, DeepSpeed ZeRO-2 or ZeRO-3."
    )
    cancel_seconds: float = Field(
        default=120, gt=0, description="A trainer that has not stopped so long after it was told is killed."
    )
    warm_trainer: bool = Field(
        default=True, description="Keep a process with libraries and weights loaded, to fork runs from."
    )
    warm_minutes: float = Field(
        default=10, gt=0, description="Minutes without a run after which that process lets its memory go."
    )


class ImageSettings(BaseModel):
    """What they do to the image side."""

    image_model: str = Field(
        default="",
        description="Checkpoint or diffusers folder whose LoRA a new project trains too; empty: none.",
    )
    image_vae: str = Field(
        default="",
        description="VAE (folder or file) in place of the checkpoint's; empty: the checkpoint's own.",
    )
    image_prediction_type: Literal["auto", "epsilon", "v_prediction", "sample"] = Field(
        default="auto",
        description="What a UNet predicts, for checkpoints that do not say it themselves; `auto`: what they say.",
    )
    image_recipe: ImageRecipe = Field(
        default="image_sft",
        description="Recipe of the image side: "
        + ", or ".join(f"{recipe.does} ({name})" for name, recipe in of_side("image").items())
        + ".",
    )
    image_min_samples: int = Field(
        default=4, ge=1, description="Fewer kept pictures (or pairs) train no image side."
    )
    image_epochs: float = Field(default=10.0, gt=0, description="Passes over the pictures that are new.")
    image_learning_rate: float = Field(default=1e-4, gt=0, description="Learning rate of the image side.")
    image_lora_r: int = Field(default=16, ge=1, description="LoRA rank of the image side; alpha is the same.")
    image_target_modules: Literal["attention", "all"] = Field(
        default="attention",
        description="Where that LoRA is; `all` adds feed-forward layers and a UNet's convolutions: a stronger style.",
    )
    image_resolution: int = Field(
        default=0,
        ge=0,
        description="Side of a square of as many pixels as a picture has; 0: the model's own.",
    )
    image_crop: Literal["subject", "middle"] = Field(
        default="subject",
        description="What of a picture is kept where it has to be cut: the `subject`, as far as it stands out from its "
        "ground, or the `middle`. `comfyloop data crop` shows it. A box that a person gave counts before both.",
    )
    trigger_words: str = Field(
        default="", description="Put before every caption in training, and into the LoRA file for its users."
    )


class GateSettings(BaseModel):
    """How candidates are compared with what is live."""

    gate_min_items: int = Field(default=6, ge=2, description="Fewer held-out items are not enough evidence.")
    gate_level: float = Field(
        default=0.02,
        gt=0,
        lt=0.5,
        description="Candidates that are no better pass a first look in at most this share of cases.",
    )
    gate_confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="Level of the confidence intervals."
    )
    gate_forgetting: float = Field(
        default=0.02, ge=0, description="Loss on general questions allowed, as a share."
    )
    gate_max_items: int = Field(
        default=100, ge=2, description="Held-out items judged at most; what is older is trained on."
    )
    gate_max_answers: int = Field(default=40, ge=2, description="Of these, so many are also answered.")

    gate_max_pictures: int = Field(
        default=24, ge=2, description="Held-out pictures, and pairs, that both image sides are asked about."
    )
    gate_max_drawn: int = Field(
        default=8, ge=0, description="Of these, so many prompts are also drawn by both; 0: none."
    )
    gate_draw_steps: int = Field(default=20, ge=1, description="Sampling steps of these pictures.")
    comfyui_url: str = Field(
        default="",
        description="ComfyUI in which they are drawn, by the workflow of the last picks; empty: by diffusers.",
    )
    comfyui_seconds: float = Field(
        default=300, gt=0, description="Most seconds that it may take for a picture."
    )
    gate_image_loss: float = Field(
        default=0.05,
        ge=0,
        description="Denoising loss on kept pictures that learning picks may cost, as a share of it.",
    )
    gate_clip: str = Field(
        default="",
        description="Directory of a CLIP that compares pictures and prompts; empty: the base model does.",
    )


class ShareSettings(BaseModel):
    """Versions that leave a service."""

    publisher: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9 ._@-]{0,62})?$",
        description="Name under which bundles are signed; empty: the project's.",
    )


class LoopSettings(BaseModel):
    """When a turn begins, and what is kept."""

    keep_versions: int = Field(
        default=20, ge=0, description="Newest versions whose files stay beside those in use; 0: all."
    )
    keep_runs: int = Field(
        default=20, ge=0, description="Newest runs and snapshots that stay on the disk; 0: all."
    )
    trigger_samples: int = Field(default=12, ge=1, description="New pieces of feedback that start a turn.")
    trigger_minutes: float = Field(
        default=0, ge=0, description="Minutes after which anything new starts a run; 0: off."
    )
    lease_seconds: float = Field(
        default=30, gt=0, description="A controller silent for so long has lost its turn."
    )
    max_attempts: int = Field(default=3, ge=1, description="Tries of one state before the turn is given up.")
    canary_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="What the gate accepts answers this share first; 0: it is promoted.",
    )
    canary_level: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="Share of canaries that are no worse and yet taken back, however often one looks.",
    )
    quiet_seconds: float = Field(
        default=1.0,
        ge=0,
        description="Training goes on when nobody has waited for so long; 0: it never holds.",
    )
    step_aside_after: float | None = Field(
        default=None,
        ge=0,
        description="Seconds that training holds, after which it gives its memory back, until it goes on exactly where "
        "it was; 0: never; unset: 3 on a card with a memory of its own, else never.",
    )
    auto_promote: bool = Field(
        default=True, description="Promote what the gate accepts; otherwise it waits for a person."
    )


GROUPS: dict[str, type[BaseModel]] = {
    "data": DataSettings,
    "serve": ServeSettings,
    "recall": RecallSettings,
    "curate": CurateSettings,
    "train": TrainSettings,
    "image": ImageSettings,
    "gate": GateSettings,
    "loop": LoopSettings,
    "share": ShareSettings,
}
"""Tables of `comfyloop.toml`. There a setting may go without the table's name: `[gate] level` is `gate_level`."""


def in_table(table: str, field: str) -> str:
    """What a setting is called in its table."""
    return field.removeprefix(f"{table}_")
