"""What happened, into the store: generations, feedback, images.

Nothing that a person did is lost: what a call here has returned for is on the disk.
"""

from comfyloop.capture import feedback, generations, images

__all__ = ["feedback", "generations", "images"]
