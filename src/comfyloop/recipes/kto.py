"""Answers that were wanted or not."""

from comfyloop.recipes._recipe import Recipe, Swift

RECIPE = Recipe(
    "kto",
    side="text",
    kind="labelled",
    does="tell wanted answers from others",
    learns_from="answers that were wanted or not (Ethayarajh et al. 2024)",
    rows="`label`: true or false",
    source="ratings",
    learning_rate=1e-4,  # preference losses go wrong at rates that suit answers
    swift=Swift("rlhf", flags=("desirable_weight", "undesirable_weight"), loss="kto", mixes_rows=True),
)
