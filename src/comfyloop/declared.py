"""What can be extended declares itself, one file each: a package of such files is read into a table, by name.

Recipes, filters, measures of the gate, engines and modalities are found so. To add one, add its file; CONTRIBUTING.md
walks through each kind.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic_core import CoreSchema, core_schema


class Declaration(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Declaration)


def declared(package: str, kind: type[T]) -> dict[str, T]:
    """What the modules of a package declare, in the order of their names.

    Each module has one `kind`, in a variable of that name in capitals (`FILTER = Filter(...)`, `ENGINE_KIND =
    EngineKind(...)`), whose `name` is the
    module's. Modules whose name begins with an underscore are helpers of the others.

    Raises:
        TypeError: A module declares none, or one by another name.
    """
    variable = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).upper()
    declarations: dict[str, T] = {}
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        if module.name.startswith("_"):
            continue
        value = getattr(importlib.import_module(f"{package}.{module.name}"), variable, None)
        if not isinstance(value, kind):
            raise TypeError(f"{package}/{module.name}.py has no {variable} = {kind.__name__}(...)")
        if value.name != module.name:
            raise TypeError(
                f"{package}/{module.name}.py declares {value.name!r}: file and declaration have one name"
            )
        declarations[value.name] = value
    return declarations


def names(package: str) -> list[str]:
    """What `declared` will find there, without importing any of it: for settings, which declarations import."""
    folder = Path(__file__).parent.joinpath(*package.split(".")[1:])
    return [module.name for module in pkgutil.iter_modules([str(folder)]) if not module.name.startswith("_")]


def listed(names: Iterable[str], last: str = "or") -> str:
    """Names as part of a sentence: "a, b or c"."""
    *some, end = names
    return f"{', '.join(some)} {last} {end}" if some else end


@dataclass(frozen=True)
class OneOf:
    """In `Annotated[str, OneOf(...)]`: what `Literal` is where the values are known when it is written."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.literal_schema(list(self.names))
