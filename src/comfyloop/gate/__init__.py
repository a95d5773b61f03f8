"""The gate: is a candidate better than what is live, by the paths that will serve it, and beyond chance?"""

from comfyloop.gate.decision import Decision, Evidence, Pairs, decide
from comfyloop.gate.judging import Progress, Scorer, judge
from comfyloop.gate.report import render_text
from comfyloop.gate.sides import whole

__all__ = ["Decision", "Evidence", "Pairs", "Progress", "Scorer", "decide", "judge", "render_text", "whole"]
