"""ComfyLoop for ComfyUI: nodes, capture, and the page's extension. Start reading at `pack.py`; start.py hooks it in.

nodes/          one file a node; what several need is in nodes/shared.py
web/            the page: panels in the nodes, the sidebar tab
routes.py       what the page calls
roles.py        which text made a picture, over wiring.py and strings.py; hear.py: what a run really heard
capture.py      edits between two runs; graph.py, redact.py: what changed, and what is left out
feedback.py     what a person did, as the service takes it
spool.py        on the disk until delivered; delivery.py: from there to the service
live.py         which version is live, and its LoRA; busy.py: tells the service when ComfyUI works;
                ahead.py: wakes the model before it is asked; freeing.py: unloads ComfyUI's before a run
launch.py       starts the service, and ends it
service.py      the service's HTTP API; host.py: what is needed of ComfyUI; config.py: the settings
"""

from __future__ import annotations

import importlib.util
from typing import Any

NODE_CLASS_MAPPINGS: dict[str, Any] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
WEB_DIRECTORY = "./web"

if importlib.util.find_spec("comfy_api") is not None:  # absent where only the pack's tests run
    if importlib.util.find_spec("comfy_api.latest") is None:
        raise ImportError("ComfyLoop needs ComfyUI 0.3.64 or newer. Update ComfyUI, then start it again.")
    from . import start
    from .nodes import NODES

    _node: Any
    for _node in NODES:
        _schema = _node.GET_SCHEMA()
        NODE_CLASS_MAPPINGS[_schema.node_id] = _node
        NODE_DISPLAY_NAME_MAPPINGS[_schema.node_id] = _schema.display_name
        _node.RELATIVE_PYTHON_MODULE = "custom_nodes.comfyloop"
    start.start()

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
