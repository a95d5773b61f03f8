"""Models that look at pictures and texts for the filters, each a program in a process of its own.

The service's process loads none of them: it starts the program, writes a question a line, reads an answer a line, and
the program is gone when it is done. What a program needs and is not installed is told before it is started.
"""

from comfyloop.sight.asking import NEEDS, Answers, Question, ask, missing

__all__ = ["NEEDS", "Answers", "Question", "ask", "missing"]
