"""Uses feedback immediately, before any version has learned it.

Past edits of similar questions are put into the prompt as examples (examples.py), until the answering version has
been trained on them (learned.py). Preferences in words are derived from edits (words.py). The taste learned from
picks and ratings orders pictures (tastes.py).
"""

from comfyloop.recall.examples import PromptExample, Recall
from comfyloop.recall.learned import Learned, learned
from comfyloop.recall.preferences import Preference, merged, sentence
from comfyloop.recall.tastes import Tastes

__all__ = ["Learned", "Preference", "PromptExample", "Recall", "Tastes", "learned", "merged", "sentence"]
