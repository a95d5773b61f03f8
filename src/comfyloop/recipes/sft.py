"""Supervised fine-tuning."""

from comfyloop.recipes._recipe import Recipe, Swift

RECIPE = Recipe(
    "sft",
    side="text",
    kind="sft",
    does="learn answers",
    learns_from="answers as they should be",
    source="edits, accepted answers, uploads",
    learning_rate=2e-3,
    replays=True,
    all_turns=True,
    swift=Swift("sft", loss="cross_entropy"),
)
