"""The loop: feedback -> snapshot -> run -> gate -> promotion, turn after turn, for each project.

`controller` decides when a turn begins, `cycle` knows the order of the states, `stages` calls the stages, and
`lease` ensures that only one controller at a time does so.
"""

from comfyloop.loop.controller import Controller
from comfyloop.loop.stages import Stages

__all__ = ["Controller", "Stages"]
