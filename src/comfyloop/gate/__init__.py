"""The gate: is a candidate better than what is live, by the paths that will serve it, and beyond chance?"""

from comfyloop.gate.decision import Decision, Evidence, Pairs, decide
from comfyloop.gate.images import decide_images, evidence, gate_items, held_out, to_draw
from comfyloop.gate.judging import Progress, Scorer, judge, write_prompts
from comfyloop.gate.pair import together
from comfyloop.gate.report import render_text

__all__ = [
    "Decision",
    "Evidence",
    "Pairs",
    "Progress",
    "Scorer",
    "decide",
    "decide_images",
    "evidence",
    "gate_items",
    "held_out",
    "judge",
    "render_text",
    "to_draw",
    "together",
    "write_prompts",
]
