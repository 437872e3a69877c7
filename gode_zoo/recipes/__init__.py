"""Recipes: everything that decides a training run, one YAML file a published weight.

A recipe is read with `yaml.safe_load` into the frozen `Recipe`. An unknown key, a wrong type or an impossible value is
refused with one `RecipeError` that names the file, the key, the value, what is allowed and how to mend it.

    recipe = load_recipe("gode_mnist_m4.modern")   # bundled, by name
    recipe = load_recipe("mine.yaml")              # or any file

`_recipe.py` has the keys and the learning rate, `_reading.py` makes a recipe of plain values, `_checks.py` refuses
what cannot be right.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml

from ._reading import recipe_from_dict, suggest
from ._recipe import Augment, Optimizer, Penalty, Recipe, RecipeError, Refinement, Schedule, learning_rate

__all__ = [
    "Augment",
    "Optimizer",
    "Penalty",
    "Recipe",
    "RecipeError",
    "Refinement",
    "Schedule",
    "learning_rate",
    "list_recipes",
    "load_recipe",
    "recipe_from_dict",
]


def list_recipes() -> list[str]:
    """Names of the bundled recipes, `<arch>.<tag>`; `speedrun` is short for `gode3_cifar10_s.speedrun`."""
    files = resources.files(__package__).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: a YAML file, or the bare name of a bundled recipe such as `gode_mnist_m4.modern`.

    Raises:
        RecipeError: no such file or recipe, not YAML, or a key or value that cannot be right.
    """
    path = Path(name_or_path)
    bundled = list_recipes()
    bare = path.name.removesuffix(".yaml")
    if path.is_file():
        text, source = path.read_text(encoding="utf-8"), str(path)
    elif len(path.parts) == 1 and bare in bundled:
        resource = resources.files(__package__).joinpath(f"{bare}.yaml")
        text, source = resource.read_text(encoding="utf-8"), str(resource)
    else:
        raise RecipeError(
            f"recipe {str(name_or_path)!r} is neither a file nor a bundled recipe (bundled: {', '.join(bundled)})"
            f"{suggest(bare, bundled)}: give one of these names or the path of a YAML file"
        )
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    return recipe_from_dict(content, source)
