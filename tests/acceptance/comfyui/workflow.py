"""A workflow as the page saves it, in the API form that `/prompt` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def to_api(file: Path, object_info: dict[str, Any]) -> dict[str, Any]:
    """As the page makes it: widget values by the order of a class's inputs, links by their sources."""
    workflow = json.loads(file.read_text("utf-8"))
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] not in object_info:  # a note: known to the page alone
            continue
        values = iter(node.get("widgets_values") or ())
        inputs: dict[str, Any] = {}
        for part in ("required", "optional"):
            for name, spec in object_info[node["type"]]["input"].get(part, {}).items():
                options = spec[1] if len(spec) > 1 else {}
                if not (isinstance(spec[0], list) or spec[0] in WIDGETS) or options.get("forceInput"):
                    continue
                inputs[name] = next(values)
                if options.get("control_after_generate") or any(o.endswith("_upload") for o in options):
                    next(values)  # the widget that the page adds beside this one
        for plug in node.get("inputs") or ():
            if plug.get("link") is not None:
                inputs[plug["name"]] = sources[plug["link"]]
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def set_inputs(graph: dict[str, Any], class_type: str, **inputs: Any) -> None:
    """Give every node of a class these inputs."""
    found = [node for node in graph.values() if node["class_type"] == class_type]
    assert found, f"no {class_type} in the workflow"
    for node in found:
        node["inputs"] |= inputs
