"""Values of a recipe that have the right type and still cannot be right."""

from __future__ import annotations

from typing import Any

from ..outcomes import image_family
from ._recipe import Recipe, RecipeError

_SCHEDULE_KEYS = {
    "onecycle": ("final_lr",),
    "cosine": ("final_lr",),
    "step": ("milestones", "gamma"),
    "constant": (),
}


def check(recipe: Recipe, content: dict[str, Any], source: str) -> None:
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
    need(0.0 <= augment.rotation <= 180.0, "augment.rotation", "0 to 180 degrees")
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


def _is_name(text: str, extra: str) -> bool:
    return bool(text) and not text.startswith(".") and all(c.isascii() and (c.isalnum() or c in extra) for c in text)
