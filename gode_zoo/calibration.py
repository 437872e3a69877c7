"""Calibrated predictive intervals: how often they hold an outcome, and levels that make it as often as promised.

    report = measure(family, y_test, eta_test)                         # coverage at 50, 80 and 95 %, as the model stands
    report = measure(family, y_test, eta_test, y_held, eta_held)       # and after calibration on held-out outcomes
    report = calibrate(family, y, eta)                                 # where the same have to do for both

The score of an outcome is the least level whose interval holds it (`Family.interval_level`). Where the model is right it
is uniform. Calibration asks for the interval at the level that held a share `level` of the n held-out outcomes, the
⌈(n + 1) level⌉-th smallest score, so that a new outcome is held with probability `level` or more whatever the model.

Source: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005), split conformal prediction, with the
score of Chernozhukov, Wüthrich and Zhu, "Distributional conformal prediction" (2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .families import Family
from .families.base import check_level

__all__ = ["LEVELS", "Coverage", "calibrate", "calibrated_level", "coverage", "measure"]

LEVELS = (0.5, 0.8, 0.95)
_WIDEST = 1 - 1e-9  # an interval of level 1 would be the whole line


@dataclass(frozen=True)
class Coverage:
    """Of intervals of one level: the share of outcomes that they hold, as they stand and after calibration.

    `asked` is the level that calibration asks the family for; it and `calibrated` are None without held-out outcomes.
    """

    level: float
    plain: float
    asked: float | None = None
    calibrated: float | None = None


def coverage(family: Family, y: Tensor, eta: Tensor, level: float) -> float:
    """The share of outcomes that lie in the family's interval of ``level``: y and η as for `Family.log_prob`."""
    check_level(level)
    return float((family.interval_level(y, eta) <= level).double().mean())


def calibrated_level(scores: Tensor, level: float) -> float:
    """The level to ask `Family.interval` for, so that it holds an outcome with probability ``level`` or more.

    Args:
        scores: `Family.interval_level` of n held-out outcomes, ``(n,)``.
        level: the coverage wanted.

    Raises:
        ValueError: unless 0 < level < 1, or where n is too small for such a level.
    """
    check_level(level)
    count = scores.numel()
    place = math.ceil((count + 1) * level - 1e-9)
    if place > count:
        raise ValueError(f"{count} held-out outcomes cannot calibrate level={level}: it takes at least {_least(level)}")
    # A hair more, so that rounding does not lose the outcome whose score it is.
    return min(float(scores.flatten().double().sort().values[place - 1]) + 1e-9, _WIDEST)


def measure(
    family: Family,
    y: Tensor,
    eta: Tensor,
    y_held: Tensor | None = None,
    eta_held: Tensor | None = None,
    levels: Sequence[float] = LEVELS,
) -> list[Coverage]:
    """Coverage on outcomes that the model has not seen, with calibration where other such outcomes are given.

    Args:
        family: with its dispersion.
        y: outcomes to measure on, and ``eta`` their predictors.
        y_held: outcomes to calibrate on, and ``eta_held`` their predictors; both or neither, and not those measured on.
        levels: levels of the intervals.

    Raises:
        ValueError: one of ``y_held`` and ``eta_held`` alone, or a level that is not possible.
    """
    if (y_held is None) != (eta_held is None):
        raise ValueError("y_held and eta_held: give both, or neither")
    rows = []
    for level in levels:
        plain = coverage(family, y, eta, level)
        if y_held is None or eta_held is None:
            rows.append(Coverage(level, plain))
            continue
        asked = calibrated_level(family.interval_level(y_held, eta_held), level)
        rows.append(Coverage(level, plain, asked, coverage(family, y, eta, asked)))
    return rows


def calibrate(
    family: Family,
    y: Tensor,
    eta: Tensor,
    held: tuple[Tensor, Tensor] | None = None,
    levels: Sequence[float] = LEVELS,
) -> list[Coverage]:
    """What to ask for from now on, and how often that holds an outcome.

    Args:
        family: with its dispersion.
        y: outcomes to measure on, and ``eta`` their predictors.
        held: other outcomes and their predictors, to calibrate by. Without them the level asked for is by all of ``y``,
            and its coverage that of both halves of them, each calibrated by the other.
        levels: levels of the intervals. Of one that so few cannot calibrate, `asked` and `calibrated` are None.
    """
    if held is not None:
        enough = [level for level in levels if len(held[0]) >= _least(level)]
        measured = {row.level: row for row in measure(family, y, eta, *held, enough)}
        return [measured.get(level) or Coverage(level, coverage(family, y, eta, level)) for level in levels]
    scores, rows = family.interval_level(y, eta), []
    for level in levels:
        asked = calibrated_level(scores, level) if len(y) >= _least(level) else None
        rows.append(Coverage(level, coverage(family, y, eta, level), asked, _coverage_by_halves(scores, level)))
    return rows


def _coverage_by_halves(scores: Tensor, level: float) -> float | None:
    """The share of outcomes held where each half's interval is calibrated by the other; None where these are too few.

    The halves are drawn at random but always the same.
    """
    halves = [scores[part] for part in torch.randperm(len(scores), generator=torch.Generator().manual_seed(0)).chunk(2)]
    if len(halves) < 2 or min(map(len, halves)) < _least(level):
        return None
    a, b = halves
    held = (a <= calibrated_level(b, level)).sum() + (b <= calibrated_level(a, level)).sum()
    return float(held) / len(scores)


def _least(level: float) -> int:
    """How many outcomes it takes to calibrate a level."""
    return math.ceil(level / (1 - level) - 1e-9)
