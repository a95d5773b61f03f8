"""Stores what people did: feedback, images.

Nothing is lost: when a call here returns, its data is on disk.
"""

from comfyloop.capture import feedback, images

__all__ = ["feedback", "images"]
