"""What a recipe is made of, and the learning rate that it gives.

Learning rate at update s of S (`learning_rate`), with warm-up over the first w·S updates and peak `optimizer.lr`:
    onecycle   linear up, then linear down to `final_lr`
    cosine     linear up, then half a cosine down to `final_lr`
    step       linear up, then times `gamma` at the start of each epoch in `milestones`
    constant   linear up, then flat
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import yaml


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
    rotation: float = 0.0  # at most so many degrees, either way
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
        for key in ("alternating_flip", "rotation", "cutout", "mixup"):
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
