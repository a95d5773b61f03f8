"""Data sets that come with ComfyLoop, or are put together from registry packages: small, and freely licensed.

A set a module; each declares its `Builtin`. `make` writes files of rows into an empty folder, which is then read like
any other.
"""

from __future__ import annotations

from collections.abc import Mapping

from comfyloop.sources.builtin import brand, emoji, pet, questions
from comfyloop.sources.builtin.declared import Builtin

BUILTIN: Mapping[str, Builtin] = {
    one.name: one
    for one in (emoji.BUILTIN, brand.BUILTIN, pet.BUILTIN, questions.BUILTIN_EN, questions.BUILTIN_ZH)
}

__all__ = ["BUILTIN", "Builtin"]
