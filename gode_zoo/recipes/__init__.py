"""Recipes: everything that decides a training run, one YAML file a published weight.

A recipe is read with `yaml.safe_load` into the frozen `Recipe`. An unknown key, a wrong type or an impossible value is
refused with one `RecipeError` that names the file, the key, the value, what is allowed and how to mend it.

    recipe = load_recipe("gode_mnist_m4.modern")   # bundled, by name
    recipe = load_recipe("mine.yaml")              # or any file

Learning rate at update s of S (`learning_rate`), with warm-up over the first w·S updates and peak `optimizer.lr`:
    onecycle   linear up, then linear down to `final_lr`
    cosine     linear up, then half a cosine down to `final_lr`
    step       linear up, then times `gamma` at the start of each epoch in `milestones`
    constant   linear up, then flat
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..outcomes import image_family

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


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the file, the key, the value and the mend."""


@dataclass(frozen=True)
class Optimizer:
    """Optimiser, built by `optimizers.make_optimizer`; `lr` is the peak of the schedule.

    `muon` orthogonalises the updates of kernels; classifier, biases and norms are updated by AdamW then. Weight decay
    spares biases, norms and whatever the model's `no_weight_decay()` lists.
    """

    lr: float
    name: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the update; see the module's head for the four names."""

    name: str = "constant"
    warmup: float = 0.0  # fraction of all updates
    final_lr: float = 0.0  # onecycle and cosine only
    milestones: tuple[float, ...] = ()  # epochs, step only
    gamma: float = 0.1  # step only


@dataclass(frozen=True)
class Augment:
    """Augmentation, on the device; see `augmentation.py`."""

    crop_padding: int = 0
    flip: bool = False
    alternating_flip: bool = False  # every other epoch, in place of at random
    cutout: int = 0  # pixels a side
    mixup: float = 0.0  # alpha of the Beta distribution


@dataclass(frozen=True)
class Penalty:
    """Factors of the penalties on spline weights that are added to the loss; see `penalties.py`. None where all are 0."""

    roughness: float = 0.0
    roughness_order: int = 2
    difference: float = 0.0
    difference_order: int = 2
    ridge: float = 0.0

    def __bool__(self) -> bool:
        return max(self.roughness, self.difference, self.ridge) > 0


@dataclass(frozen=True)
class Refinement:
    """Coarse-to-fine training: after `epoch` epochs the model gets `num_basis` basis functions, by exact knot insertion, or
    is solved in `num_steps` steps, or both."""

    epoch: int
    num_basis: int | None = None
    num_steps: int | None = None


@dataclass(frozen=True)
class Recipe:
    """What a training run is made of. Mean and standard deviation come from the model's `pretrained_cfg`."""

    model: str
    dataset: str
    epochs: int
    batch_size: int
    optimizer: Optimizer
    tag: str
    model_args: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    penalty: Penalty = Penalty()
    refine: tuple[Refinement, ...] = ()
    family: Any = "categorical"  # of the outcomes: a name, or a mapping, as `families.get_family` takes it
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    drop_last: bool = True
    seed: int = 0
    amp: str = "none"
    compile: bool = False  # on a GPU
    channels_last: bool = False  # memory format of images, states and kernels
    holdout: float = 0.0  # fraction of the training set kept aside to choose the best epoch by
    log_test: bool = False  # also log the test error of every epoch, as information, never for selection
    notes: str = ""

    @property
    def name(self) -> str:
        """`<arch>.<tag>`, the name of the weights that this recipe makes."""
        return f"{self.model}.{self.tag}"

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain dicts, lists and scalars: `recipe_from_dict` of it is the same recipe."""
        plain = dataclasses.asdict(self)
        if self.family == "categorical":
            del plain["family"]
        plain["schedule"]["milestones"] = list(self.schedule.milestones)
        if self.schedule.name not in ("onecycle", "cosine"):
            del plain["schedule"]["final_lr"]
        if self.schedule.name != "step":
            del plain["schedule"]["milestones"], plain["schedule"]["gamma"]
        # Left out where unused, so that a recipe of before there were any is what it was.
        plain["refine"] = [{k: v for k, v in each.items() if v is not None} for each in plain["refine"]]
        for key in ("penalty", "refine", "channels_last"):
            if not getattr(self, key):
                del plain[key]
        for key in ("alternating_flip", "cutout", "mixup"):
            if not getattr(self.augment, key):
                del plain["augment"][key]
        for key in ("roughness", "difference"):
            if self.penalty and not getattr(self.penalty, key):
                del plain["penalty"][f"{key}_order"]
        return plain

    def to_yaml(self) -> str:
        """The resolved recipe (every default written out) as YAML text."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Learning rate of update `step` (from 0) of `recipe.epochs * steps_per_epoch` updates."""
    peak, schedule = recipe.optimizer.lr, recipe.schedule
    total = recipe.epochs * steps_per_epoch
    warmup = round(schedule.warmup * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.name == "step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in schedule.milestones)
        return peak * schedule.gamma**passed
    if schedule.name == "constant":
        return peak
    # 0 at the peak, 1 after the last update (clamped, for the scheduler also asks for the value after the end)
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    fall = 1.0 - done if schedule.name == "onecycle" else 0.5 * (1.0 + math.cos(math.pi * done))
    return schedule.final_lr + (peak - schedule.final_lr) * fall


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
            f"{_suggest(bare, bundled)}: give one of these names or the path of a YAML file"
        )
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    return recipe_from_dict(content, source)


def recipe_from_dict(content: Any, source: str = "recipe") -> Recipe:
    """Make a `Recipe` of plain values; `source` names the file in error messages.

    Raises:
        RecipeError: an unknown or missing key, a wrong type or an impossible value.
    """
    recipe: Recipe = _build(Recipe, content, source, "")
    _check(recipe, content, source)
    return recipe


def _suggest(word: str, known: list[str]) -> str:
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
                f"{source}: unknown key {prefix}{key} = {content[key]!r}{_suggest(str(key), known)} "
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
    if hint is Any:  # looked at by `_check`
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


def _check(recipe: Recipe, content: dict[str, Any], source: str) -> None:
    """Refuse values of the right type that cannot be right."""

    def need(ok: bool, key: str, allowed: str) -> None:
        if not ok:
            value: Any = recipe
            for part in key.split("."):
                value = getattr(value, part)
            raise RecipeError(f"{source}: {key} = {value!r} is not possible (allowed: {allowed}): change it")

    optimizer, schedule = recipe.optimizer, recipe.schedule
    file_safe = "letters, digits, _ and - (a tag also .), for it names the output folder"
    need(_is_name(recipe.model, "_-"), "model", f"a timm model name without tag: {file_safe}")
    need(_is_name(recipe.tag, "_-."), "tag", file_safe)
    need(bool(recipe.dataset.strip()), "dataset", "torch/mnist, torch/cifar10, or a folder or tar of images")
    need(recipe.epochs >= 1, "epochs", "1 or more")
    need(recipe.batch_size >= 1, "batch_size", "1 or more")
    need(0 <= recipe.seed < 2**32, "seed", "0 to 2**32 - 1")
    need(0.0 <= recipe.label_smoothing < 1.0, "label_smoothing", "0 up to, not including, 1")
    _check_family(recipe, source)
    need(recipe.ema_decay is None or 0.0 < recipe.ema_decay < 1.0, "ema_decay", "null, or between 0 and 1")
    need(recipe.amp in ("none", "bf16"), "amp", "none, bf16")
    need(0.0 <= recipe.holdout < 1.0, "holdout", "0 up to, not including, 1")
    need(optimizer.name in ("sgd", "muon"), "optimizer.name", "sgd, muon")
    need(optimizer.lr > 0.0, "optimizer.lr", "more than 0")
    need(0.0 <= optimizer.momentum < 1.0, "optimizer.momentum", "0 up to, not including, 1")
    need(optimizer.weight_decay >= 0.0, "optimizer.weight_decay", "0 or more")
    need(
        not optimizer.nesterov or optimizer.momentum > 0.0,
        "optimizer.nesterov",
        "false where momentum is 0: Nesterov's step needs momentum",
    )
    need(schedule.name in _SCHEDULE_KEYS, "schedule.name", ", ".join(_SCHEDULE_KEYS))
    need(0.0 <= schedule.warmup < 1.0, "schedule.warmup", "a fraction of all updates, 0 up to, not including, 1")
    need(0.0 <= schedule.final_lr <= optimizer.lr, "schedule.final_lr", f"0 to optimizer.lr = {optimizer.lr}")
    need(0.0 < schedule.gamma <= 1.0, "schedule.gamma", "more than 0, at most 1")
    rising = list(schedule.milestones) == sorted(set(schedule.milestones))
    inside = all(0.0 < milestone < recipe.epochs for milestone in schedule.milestones)
    need(rising and inside, "schedule.milestones", f"rising epochs between 0 and epochs = {recipe.epochs}")
    if schedule.name == "step" and not schedule.milestones:
        raise RecipeError(f"{source}: schedule.name = 'step' needs schedule.milestones, such as [60, 100]: add it")
    penalty = recipe.penalty
    for key in ("roughness", "difference", "ridge"):
        need(getattr(penalty, key) >= 0.0, f"penalty.{key}", "0 or more")
    for key in ("roughness", "difference"):
        need(getattr(penalty, f"{key}_order") >= 1, f"penalty.{key}_order", "1 or more")
        if f"{key}_order" in content.get("penalty", {}) and getattr(penalty, key) == 0.0:
            raise RecipeError(f"{source}: penalty.{key}_order has no effect without penalty.{key}: take it out")
    if "penalty" in content and not penalty:
        raise RecipeError(
            f"{source}: penalty has no factor above 0 (of roughness, difference, ridge): add one or take it out"
        )
    _check_refine(recipe, source)
    augment = recipe.augment
    need(0 <= augment.crop_padding <= 64, "augment.crop_padding", "0 to 64 pixels")
    need(not (augment.flip and augment.alternating_flip), "augment.alternating_flip", "false beside flip: true")
    need(0 <= augment.cutout <= 512, "augment.cutout", "0 to 512 pixels")
    need(0.0 <= augment.mixup <= 100.0, "augment.mixup", "0 to 100")
    need(not augment.mixup or recipe.family == "categorical", "augment.mixup", "0 with a family of outcomes")
    for key in content.get("schedule", {}):  # a setting is never accepted and ignored
        if key not in ("name", "warmup", *_SCHEDULE_KEYS[schedule.name]):
            raise RecipeError(
                f"{source}: schedule.{key} = {content['schedule'][key]!r} has no effect with schedule.name = "
                f"{schedule.name!r} (that reads: {', '.join(('warmup', *_SCHEDULE_KEYS[schedule.name]))}): take it out"
            )


def _check_refine(recipe: Recipe, source: str) -> None:
    rising = {"epoch": 0, "num_basis": 0, "num_steps": 0}
    for each in recipe.refine:
        if each.num_basis is None and each.num_steps is None:
            raise RecipeError(f"{source}: refine after epoch {each.epoch} has neither num_basis nor num_steps: add one")
        for key, before in rising.items():
            now = getattr(each, key)
            if now is not None and (now <= before or (key == "epoch" and now >= recipe.epochs)):
                raise RecipeError(
                    f"{source}: refine has {key} = {now} after {before}: epochs and numbers must rise, the epochs between 0 and "
                    f"epochs = {recipe.epochs}: change it"
                )
            rising[key] = before if now is None else now


def _check_family(recipe: Recipe, source: str) -> None:
    if "family" in recipe.model_args:
        raise RecipeError(f"{source}: model_args.family = {recipe.model_args['family']!r}: write it as the key family")
    if recipe.family == "categorical":
        return
    try:
        image_family(recipe.family, recipe.model_args.get("num_classes", 0))
    except ValueError as error:
        raise RecipeError(f"{source}: {error} (num_classes is a key of model_args)") from error
    if recipe.label_smoothing:
        raise RecipeError(
            f"{source}: label_smoothing = {recipe.label_smoothing!r} has no effect with family = {recipe.family!r}: take it out"
        )


_SCHEDULE_KEYS = {
    "onecycle": ("final_lr",),
    "cosine": ("final_lr",),
    "step": ("milestones", "gamma"),
    "constant": (),
}


def _is_name(text: str, extra: str) -> bool:
    return bool(text) and not text.startswith(".") and all(c.isascii() and (c.isalnum() or c in extra) for c in text)
