"""What a person taught is used at once, before any version has learnt it.

Past edits near to a question go into the prompt as examples (examples.py), until the version that answers has
been trained on them (learned.py). Beside them stand preferences in words, written from edits (words.py). What picks
and ratings say of taste orders pictures (tastes.py).
"""

from comfyloop.recall.examples import PromptExample, Recall
from comfyloop.recall.learned import Learned, learned
from comfyloop.recall.preferences import Preference, merged, sentence
from comfyloop.recall.tastes import Tastes

__all__ = ["Learned", "Preference", "PromptExample", "Recall", "Tastes", "learned", "merged", "sentence"]
