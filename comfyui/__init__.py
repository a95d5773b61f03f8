"""ComfyLoop for ComfyUI: nodes, capture, and the page's extension. Start reading at `pack.py`.

nodes/     one file a node                  pack.py      settings + spool + the thread to the service
web/       the page: widgets, sidebar       capture.py   edits between runs   graph.py, redact.py: what changed
routes.py  what the page calls              spool.py     on the disk until delivered   delivery.py, service.py
"""

from __future__ import annotations

import importlib.util

NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
WEB_DIRECTORY = "./web"

if importlib.util.find_spec("comfy_api") is not None:  # absent where only the pack's tests run
    from . import pack
    from .nodes import NODES

    for _node in NODES:
        _schema = _node.GET_SCHEMA()
        NODE_CLASS_MAPPINGS[_schema.node_id] = _node
        NODE_DISPLAY_NAME_MAPPINGS[_schema.node_id] = _schema.display_name
        _node.RELATIVE_PYTHON_MODULE = "custom_nodes.comfyloop"
    pack.start()

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
