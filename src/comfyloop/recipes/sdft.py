"""On-policy self-distillation from edits."""

from comfyloop.recipes._recipe import Recipe

RECIPE = Recipe(
    "sdft",
    side="text",
    kind="sft",
    does="learn of one's own what one would say having seen them",
    learns_from="one's own answers, of oneself having seen the wanted ones (Shenfeld et al. 2026; ms-swift's OPSD, "
    "TRL's SDFT)",
    source="edits, accepted answers, uploads",
    learning_rate=1e-3,
    replays=True,
    samples_answers=True,
)
