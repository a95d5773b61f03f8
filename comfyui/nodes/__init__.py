"""The nodes, one file each; what several need is in `shared.py`."""

from .ask import Ask
from .live_lora import LiveLora
from .pick_images import PickImages
from .review import Review
from .save_sample import SaveSample
from .write_prompt import WritePrompt

NODES = [Ask, WritePrompt, Review, PickImages, LiveLora, SaveSample]
