"""The recipes: what each is, one file a recipe, for whoever chooses one or makes data for it.

How one trains is `train/recipes/NAME.py`. Whatever lists recipes (settings, specs, curation, help, ms-swift's table,
the documentation) asks here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from comfyloop.declared import declared
from comfyloop.recipes._recipe import Recipe, Swift

RECIPES: dict[str, Recipe] = declared(__name__, Recipe)


def of_side(side: Literal["text", "image"]) -> dict[str, Recipe]:
    return {name: recipe for name, recipe in RECIPES.items() if recipe.side == side}


def listed(names: list[str] | dict[str, Recipe], last: str = "or") -> str:
    """Names as part of a sentence: "a, b or c"."""
    *some, end = names
    return f"{', '.join(some)} {last} {end}" if some else end


def _one_of(side: Literal["text", "image"]) -> Callable[[str], str]:
    def check(name: str) -> str:
        if name not in of_side(side):
            expected = listed([repr(known) for known in of_side(side)])
            raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
        return name

    return check


TextRecipe = Annotated[
    str, AfterValidator(_one_of("text")), WithJsonSchema({"type": "string", "enum": list(of_side("text"))})
]
ImageRecipe = Annotated[
    str, AfterValidator(_one_of("image")), WithJsonSchema({"type": "string", "enum": list(of_side("image"))})
]
"""The name of a recipe of that side."""

__all__ = ["RECIPES", "ImageRecipe", "Recipe", "Swift", "TextRecipe", "listed", "of_side"]
