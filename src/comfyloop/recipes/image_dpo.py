"""Diffusion-DPO."""

from comfyloop.recipes._recipe import Recipe

RECIPE = Recipe(
    "image_dpo",
    side="image",
    kind="image_pair",
    does="prefer what was picked",
    learns_from="of two pictures of a prompt the better one (Diffusion-DPO, Wallace et al. 2023; `beta_dpo`)",
    rows='also `"rejected": "images/b.png"`',
    source="picks over others, ratings",
    learning_rate=1e-4,
)
