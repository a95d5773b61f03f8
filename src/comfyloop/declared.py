"""What can be extended declares itself, one file each: a package of such files is read into a table, by name.

Recipes, filters, measures of the gate, engines and modalities are found so. To add one, add its file; CONTRIBUTING.md
walks through each kind.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Protocol, TypeVar


class Declaration(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Declaration)


def declared(package: str, kind: type[T]) -> dict[str, T]:
    """What the modules of a package declare, in the order of their names.

    Each module has one `kind`, in a variable of that name in capitals (`FILTER = Filter(...)`), whose `name` is the
    module's. Modules whose name begins with an underscore are helpers of the others.

    Raises:
        TypeError: A module declares none, or one by another name.
    """
    variable = kind.__name__.upper()
    found: dict[str, T] = {}
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
        found[value.name] = value
    return found
