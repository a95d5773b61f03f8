"""The embedded starter: a small vision-language model, put together on first use from registry packages.

It is a plain transformers directory (EfficientNet-lite0, our projector, SmolLM2-135M-Instruct). CARD.md says
what it can and cannot do. This module imports no torch; the building runs in a process of its own.
"""

from .cache import VERSION, ensure, model_directory

__all__ = ["VERSION", "ensure", "model_directory"]
