"""Preference pairs of answers."""

from comfyloop.recipes._recipe import Recipe, Swift

RECIPE = Recipe(
    "dpo",
    side="text",
    kind="preference",
    does="prefer one of two",
    learns_from="of two answers the better one (Rafailov et al. 2023; `preference.loss_type = ipo`, "
    "`label_smoothing`, `rpo_alpha`)",
    rows="`rejected_response`",
    source="edits: the edit over the model's answer",
    learning_rate=1e-4,  # preference losses go wrong at rates that suit answers
    swift=Swift("rlhf", flags=("loss_type", "label_smoothing", "rpo_alpha")),
)
