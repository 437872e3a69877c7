"""Whether one row of a table is better than another, or only luckier.

    for line in orderings(results):     # the rows of Table 1 that share a data set, two and two
        print(line)

With two seeds or more on both sides the errors' means differ by Welch's t-test, which counts the spread over seeds. With
one seed nothing is known of that spread: the two errors are then compared as shares of the test images, which counts the
sampling of those images alone.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .reproduce import RowResult

__all__ = ["Difference", "difference", "orderings"]


@dataclass(frozen=True)
class Difference:
    """Of two mean errors.

    Attributes:
        points: first minus second, in percentage points.
        standard_error: of that, in points.
        p: of so great a difference, up or down, where there is none; NaN where every run has the same error.
        over_seeds: the spread over seeds was counted, not only the sampling of test images.
    """

    points: float
    standard_error: float
    p: float
    over_seeds: bool


def difference(first: Sequence[float], second: Sequence[float], images: int) -> Difference:
    """Compare test errors in %, one a seed, measured on `images` test images.

    Raises:
        ValueError: no error on a side, one that is no percentage, or no images.
    """
    if not first or not second or images < 1 or not all(0 <= error <= 100 for error in (*first, *second)):
        raise ValueError(f"errors {first!r} and {second!r} of {images} images: need percentages, one or more each")
    points = statistics.fmean(first) - statistics.fmean(second)
    over_seeds = min(len(first), len(second)) > 1
    if over_seeds:
        from scipy import stats  # takes a second to import, for which most cards need not wait

        variance = sum(statistics.variance(errors) / len(errors) for errors in (first, second))
        p = float(stats.ttest_ind(first, second, equal_var=False).pvalue) if variance > 0 else math.nan
    else:
        shares = (statistics.fmean(errors) / 100 for errors in (first, second))
        variance = 1e4 * sum(share * (1 - share) for share in shares) / images
        p = math.erfc(abs(points) / math.sqrt(2 * variance)) if variance > 0 else math.nan
    return Difference(points, math.sqrt(variance), p, over_seeds)


def orderings(results: Sequence[RowResult]) -> list[str]:
    """A sentence for every two finished rows of Table 1 that share a data set; none for other tables."""
    comparable = [result for result in results if result.errors and set(result.row.labels) == {"data", "model"}]
    lines = []
    for first, second in itertools.combinations(comparable, 2):
        a, b = first.row.labels, second.row.labels
        if a["data"] == b["data"]:
            found = difference(first.errors, second.errors, first.images)
            lines.append(f"{a['data']}, {a['model']} − {b['model']}: {_sentence(found)}")
    return lines


def _sentence(found: Difference) -> str:
    basis = "Welch's t-test over seeds" if found.over_seeds else "one seed: sampling of the test images only"
    verdict = "a difference" if found.p < 0.05 else "no difference that can be told from chance"
    return f"{found.points:+.2f} ± {found.standard_error:.2f} points, p = {found.p:.2g} ({basis}): {verdict}"
