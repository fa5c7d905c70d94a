"""Recipes: a YAML file says what a stage trains, on what, for how long; the command line may override any of it.

medsight train 4 --config training/configs/mini.yaml data.root=/data/seg stages.4.loop.steps=2000
"""

import importlib.resources
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from medsight_core.errors import InputError

Config = TypeVar("Config")


def read_recipe(path: Path | None, overrides: list[str]) -> dict[str, Any]:
    """A recipe with overrides `key.of.it=value` (values are YAML).

    Args:
        path: the YAML file, or the name of one that comes with the package ("mini").
        overrides: later ones win.

    Raises:
        InputError: when the file is missing, not a mapping, or an override does not fit.
    """
    name = path or Path("mini")
    if not name.exists():
        packaged = importlib.resources.files("training") / "configs" / f"{name.name.removesuffix('.yaml')}.yaml"
        if not packaged.is_file():
            raise InputError("missing_recipe", f"There is no recipe {name}.", "Give a YAML file, or 'mini'.")
        text = packaged.read_text(encoding="utf-8")
    else:
        text = name.read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    if not isinstance(recipe, dict):
        raise InputError("bad_recipe", f"The recipe {name} is not a mapping.", "See training/configs/mini.yaml.")
    for override in overrides:
        override_value(recipe, override)
    return recipe


def override_value(recipe: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in place.

    Raises:
        InputError: when it has no "=" or leads through something that is not a mapping.
    """
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise InputError("bad_override", f"'{override}' is not key=value.", "Write for instance data.root=/data/seg.")
    place: Any = recipe
    *path, last = key.split(".")
    for part in path:
        part_key = int(part) if part.isdecimal() else part
        place = place.setdefault(part_key, {})
        if not isinstance(place, dict):
            raise InputError("bad_override", f"'{key}' leads through '{part}', which is not a group of the recipe.")
    place[int(last) if last.isdecimal() else last] = yaml.safe_load(value)


def configure(kind: type[Config], values: dict[str, Any] | None) -> Config:
    """A config dataclass from a group of the recipe.

    Raises:
        InputError: when the group has a key that the dataclass does not know.
    """
    values = values or {}
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise InputError(
            "bad_recipe",
            f"{kind.__name__} has no setting {', '.join(unknown)}.",
            f"It has {', '.join(sorted(known))}.",
        )
    return kind(**{key: tuples(value) for key, value in values.items()})


def tuples(value: Any) -> Any:
    """Lists of YAML as tuples."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value
