"""ComfyLoop: ComfyUI that learns from the person who uses it."""

__version__ = "0.1.0"
