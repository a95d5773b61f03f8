"""Supervised fine-tuning of the image model."""

from comfyloop.recipes._recipe import Recipe

RECIPE = Recipe(
    "image_sft",
    side="image",
    kind="captioned_image",
    does="draw what was kept",
    learns_from="pictures that were kept, under their prompts",
    rows='a message with the prompt, and `"chosen": "images/a.png"`',
    source="picks, good ratings",
    learning_rate=1e-4,
)
