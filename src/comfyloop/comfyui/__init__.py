"""Put the node pack into a ComfyUI, take it out, and say what is missing there: `link`, `unlink`, `doctor`."""

from comfyloop.comfyui.doctor import Finding, doctor
from comfyloop.comfyui.link import link, pack_folder, starts_by_itself, unlink

__all__ = ["Finding", "doctor", "link", "pack_folder", "starts_by_itself", "unlink"]
