"""What a person did, into the store: feedback, images.

Nothing of it is lost: what a call here has returned for is on the disk.
"""

from comfyloop.capture import feedback, images

__all__ = ["feedback", "images"]
