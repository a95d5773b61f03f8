"""The gate: is a candidate better than the live version, through the serving path and beyond chance?"""

from comfyloop.gate.asking import Scorer, wire
from comfyloop.gate.canary import Outcome, compared
from comfyloop.gate.decision import Decision, decide
from comfyloop.gate.images import decide_images, evidence, gate_items, held_out, to_draw
from comfyloop.gate.judging import Progress, judge, prescore, write_prompts
from comfyloop.gate.kept import Kept
from comfyloop.gate.metrics import edit_distance
from comfyloop.gate.pair import together
from comfyloop.gate.pairs import Evidence, General, Pairs
from comfyloop.gate.report import render_text, summary
from comfyloop.gate.standing import Standing, standings

__all__ = [
    "Decision",
    "Evidence",
    "General",
    "Kept",
    "Outcome",
    "Pairs",
    "Progress",
    "Scorer",
    "Standing",
    "compared",
    "decide",
    "decide_images",
    "edit_distance",
    "evidence",
    "gate_items",
    "held_out",
    "judge",
    "prescore",
    "render_text",
    "standings",
    "summary",
    "to_draw",
    "together",
    "wire",
    "write_prompts",
]
