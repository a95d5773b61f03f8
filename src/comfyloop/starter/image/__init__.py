"""The image starter: a small text-to-image model in the shape of an SD1.5 checkpoint, for trying ComfyLoop.

ComfyUI's CheckpointLoader, KSampler and LoraLoader run it as they run any other. CARD.md says what it can and
cannot do. The checkpoint is written on first use from what ships with the package: no download, no torch.
"""

from .cache import VERSION, checkpoint_path, ensure

__all__ = ["VERSION", "checkpoint_path", "ensure"]
