"""What differs between Linux, macOS and Windows, and is asked for by what it does: the only place that looks which
system this is.

Linux gives most: a warm trainer that is forked, groups of processes, locks that are handed down. The others get the
plain way to the same end. Nothing here imports what another part of ComfyLoop is made of.
"""

from __future__ import annotations

from comfyloop.platforms import forks, login
from comfyloop.platforms.files import is_private, rename, replace, sync, unlink
from comfyloop.platforms.locks import HandedDown, is_locked, lock, take_over
from comfyloop.platforms.machine import (
    MANY_FILES,
    allow_files,
    can_fork,
    cores,
    give_memory_back,
    processor_has_bfloat16,
    processor_name,
    step_back,
    user,
)
from comfyloop.platforms.ports import take_alone
from comfyloop.platforms.processes import (
    alive,
    apart,
    ask_to_end,
    end_with,
    ending_with_us,
    freeze,
    kill_group,
    python_of,
    signal_name,
    thaw,
)

__all__ = [
    "MANY_FILES",
    "HandedDown",
    "alive",
    "allow_files",
    "apart",
    "ask_to_end",
    "can_fork",
    "cores",
    "end_with",
    "ending_with_us",
    "forks",
    "freeze",
    "give_memory_back",
    "is_locked",
    "is_private",
    "kill_group",
    "lock",
    "login",
    "processor_has_bfloat16",
    "processor_name",
    "python_of",
    "rename",
    "replace",
    "signal_name",
    "step_back",
    "sync",
    "take_alone",
    "take_over",
    "thaw",
    "unlink",
    "user",
]
