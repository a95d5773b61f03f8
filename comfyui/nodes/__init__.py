"""The nodes, one file each, which ends in `NODE = ` its class; what several need is in `shared.py`."""

from __future__ import annotations

import pkgutil
from importlib import import_module

NODES: list[type] = [
    import_module(f"{__name__}.{module.name}").NODE
    for module in pkgutil.iter_modules(__path__)
    if module.name != "shared"
]
