"""The recipes: what each is, one file a recipe, for whoever chooses one or makes data for it.

How one trains is `train/recipes/NAME.py`. Whatever lists recipes (settings, specs, curation, help, ms-swift's table,
the documentation) asks here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from comfyloop.declared import OneOf, declared
from comfyloop.recipes._recipe import Recipe, Swift

RECIPES: dict[str, Recipe] = declared(__name__, Recipe)


def of_side(side: Literal["text", "image"]) -> dict[str, Recipe]:
    return {name: recipe for name, recipe in RECIPES.items() if recipe.side == side}


TextRecipe = Annotated[str, OneOf(tuple(of_side("text")))]
ImageRecipe = Annotated[str, OneOf(tuple(of_side("image")))]
"""The name of a recipe of that side."""

__all__ = ["RECIPES", "ImageRecipe", "Recipe", "Swift", "TextRecipe", "of_side"]
