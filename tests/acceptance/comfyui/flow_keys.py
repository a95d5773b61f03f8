"""The names by which ComfyUI knows the layers of SD3 (2 blocks) and Flux (1 double, 1 single block) in LoRA files.

Run by ComfyUI's own Python, in its folder:  python flow_keys.py OUTPUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))
output = Path(sys.argv[1])
sys.argv = [sys.argv[0], "--cpu"]
import comfy.utils  # noqa: E402

layers = {
    "sd3": comfy.utils.mmdit_to_diffusers({"depth": 2}),
    "flux": comfy.utils.flux_to_diffusers({"depth": 1, "depth_single_blocks": 1, "hidden_size": 32}),
}
# as comfy/lora.py makes them for either
names = {
    family: [
        f"lora_transformer_{k.removesuffix('.weight').replace('.', '_')}"
        for k in found
        if k.endswith(".weight")
    ]
    for family, found in layers.items()
}
output.write_text(json.dumps(names))
