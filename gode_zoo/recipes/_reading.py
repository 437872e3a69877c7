"""Plain values, as YAML gives them, as the dataclasses of a recipe."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from typing import Any

from ._checks import check
from ._recipe import Recipe, RecipeError


def recipe_from_dict(content: Any, source: str = "recipe") -> Recipe:
    """Make a `Recipe` of plain values; `source` names the file in error messages.

    Raises:
        RecipeError: an unknown or missing key, a wrong type or an impossible value.
    """
    recipe: Recipe = _build(Recipe, content, source, "")
    check(recipe, content, source)
    return recipe


def suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _build(cls: Any, content: Any, source: str, prefix: str) -> Any:
    """`content`, a mapping, as the dataclass `cls`; `prefix` is the dotted key so far."""
    where = f"key {prefix.rstrip('.')!r}" if prefix else "the file"
    if not isinstance(content, dict):
        raise RecipeError(f"{source}: {where} is {content!r}, it must be a mapping of keys to values")
    hints = typing.get_type_hints(cls)
    known = list(hints)
    for key in content:
        if key not in known:
            raise RecipeError(
                f"{source}: unknown key {prefix}{key} = {content[key]!r}{suggest(str(key), known)} "
                f"(allowed: {', '.join(known)}): rename it or take it out"
            )
    for f in dataclasses.fields(cls):
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if needed and f.name not in content:
            raise RecipeError(f"{source}: key {prefix}{f.name} is missing: add it")
    values = {key: _convert(hints[key], value, source, f"{prefix}{key}") for key, value in content.items()}
    return cls(**values)


_KINDS: dict[Any, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    """`value` as the type `hint`; an integer is a number, but true and false are neither."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, source, f"{key}.")
    if hint is Any:  # looked at by `check`
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # `float | None`
        return None if value is None else _convert(args[0], value, source, key)
    if origin is tuple:
        if not isinstance(value, list):
            raise RecipeError(f"{source}: {key} = {value!r} must be a list, such as [60, 100]")
        return tuple(_convert(args[0], item, source, key) for item in value)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
            raise RecipeError(f"{source}: {key} = {value!r} must be a mapping of names to values, such as {{}}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        mend = ""
        if hint is float and isinstance(value, str) and _is_number(value):
            mend = f" (YAML reads {value} as text: write {float(value)!r} or {float(value):.1e})"
        raise RecipeError(f"{source}: {key} = {value!r} is {type(value).__name__}, it must be {_KINDS[hint]}{mend}")
    if hint is float and not math.isfinite(value):
        raise RecipeError(f"{source}: {key} = {value!r} must be a finite number")
    return value


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
