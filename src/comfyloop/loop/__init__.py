"""The loop: feedback -> snapshot -> run -> gate -> promotion, turn after turn, for each project.

`controller` decides when a turn begins, `turn` knows the order of the states, `work` calls the stages, and
`lease` sees to it that one controller at a time does so.
"""

from comfyloop.loop.controller import Controller
from comfyloop.loop.work import Work

__all__ = ["Controller", "Work"]
