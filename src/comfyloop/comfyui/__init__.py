"""Put the node pack into a ComfyUI checkout, and say what is missing there: `link`, `doctor`."""

from comfyloop.comfyui.doctor import Finding, doctor
from comfyloop.comfyui.link import link, pack_folder

__all__ = ["Finding", "doctor", "link", "pack_folder"]
