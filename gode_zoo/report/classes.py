"""What report.html shows of a run that learned classes: confusions, accuracy of each class, reliability, extremes.

Of many classes it shows what is worth seeing: the confusions that occur most, the classes that are worst.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from ..class_predictions import ClassPredictions
from .parts import Findings, table, text, thumbnails
from .svg_charts import bar_chart

__all__ = ["class_findings"]

_MATRIX_CLASSES = 30  # up to so many the confusion matrix is drawn whole
_LISTED = 100  # rows of a list, at most
_THUMBNAILS = 12


def class_findings(
    predictions: ClassPredictions,
    history: Sequence[dict[str, Any]],
    images: Tensor,
    names: Sequence[str],
    classes: Sequence[str],
    train_counts: Sequence[int],
    split: str,
) -> Findings:
    """The findings of predictions of images (N, C, H, W) uint8.

    Args:
        predictions: of the images measured.
        history: one dict an epoch.
        images: these.
        names: of these.
        classes: names of the classes.
        train_counts: training images of each class.
        split: what was measured, "test" or "validation".
    """
    score = predictions.score
    p = score.correct / score.total
    spread = 100.0 * math.sqrt(p * (1.0 - p) / score.total)
    around = f", ± {spread:.2f}" if 0.0 < p < 1.0 else ""  # of none or all wrong the size says nothing
    tiles = [
        (f"{score.error:.2f} %", f"{split} error{around} ({score.total - score.correct:,} of {score.total:,})"),
        (f"{len(classes):,}", "classes"),
    ]
    curves = {
        "training": [(row["epoch"], 100.0 - row["train_acc"]) for row in history],
        "validation": [(row["epoch"], row["val_error"]) for row in history],
    }
    sections = [
        (f"Confusions ({split})", _confusions(predictions, classes)),
        (f"Accuracy of each class ({split})", _per_class(predictions, classes, train_counts)),
        (f"Reliability ({split})", _reliability(predictions)),
        (f"Best and worst predictions ({split})", _examples(predictions, images, names, classes)),
    ]
    return Findings(tiles, curves, "Error, %", sections)


def _confusions(predictions: ClassPredictions, classes: Sequence[str]) -> str:
    counts = predictions.confusions()
    wrong = [(pair, n) for pair, n in counts.most_common() if pair[0] != pair[1]]
    rows = [
        (classes[true], classes[said], f"{n:,}")
        for (true, said), n in wrong[: _LISTED if len(classes) > _MATRIX_CLASSES else 10]
    ]
    listed = table(("is", "taken for", "images"), rows) if rows else "<p>Every image was right.</p>"
    if len(classes) > _MATRIX_CLASSES:
        return f"<p>Of {len(classes):,} classes, what is confused most:</p>{listed}"
    totals = predictions.labels.bincount(minlength=len(classes)).tolist()
    head = "".join(f'<th class="up"><span>{text(name)}</span></th>' for name in classes)
    lines = []
    for true, name in enumerate(classes):
        cells = []
        for said in range(len(classes)):
            n = counts[true, said]
            share = n / totals[true] if totals[true] else 0.0
            colour = "--right" if true == said else "--wrong"
            told = f"{text(name)} taken for {text(classes[said])}: {n}"
            cells.append(
                f'<td style="background:color-mix(in srgb,var({colour}) {100 * share**0.5:.0f}%,transparent)" title="{told}">'
                f"{n or ''}</td>"
            )
        lines.append(f'<tr><th scope="row">{text(name)}</th>{"".join(cells)}</tr>')
    matrix = (
        f'<div class="wide"><table class="matrix"><caption>Rows: the true class. Columns: what was said.</caption>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    return matrix + (f"<p>Most often confused:</p>{listed}" if rows else listed)


def _per_class(predictions: ClassPredictions, classes: Sequence[str], train_counts: Sequence[int]) -> str:
    scores = list(zip(classes, predictions.per_class(len(classes)), train_counts, strict=True))
    seen = [row for row in scores if row[1].total]
    unseen = [name for name, score, _ in scores if not score.total]
    note = ""
    if len(seen) > _LISTED:
        seen = sorted(seen, key=lambda row: row[1].correct / row[1].total)[:_LISTED]
        note = f"<p>The {_LISTED} worst of {len(classes):,} classes.</p>"
    if unseen:
        some = ", ".join(unseen[:20]) + (f" and {len(unseen) - 20:,} more" if len(unseen) > 20 else "")
        note += f"<p>Not measured, for there is no image: {text(some)}.</p>"
    rows = []
    for name, score, trained in seen:
        share = 100.0 * score.correct / score.total
        rows.append(
            f'<tr><th scope="row">{text(name)}</th><td class="bar"><i style="width:{share:.1f}%"></i></td>'
            f"<td>{share:.1f} %</td><td>{score.correct:,} of {score.total:,}</td><td>{trained:,}</td></tr>"
        )
    head = "<tr><th>class</th><th></th><th>accuracy</th><th>right</th><th>trained on</th></tr>"
    return f"{note}<table>{head}{''.join(rows)}</table>"


def _reliability(predictions: ClassPredictions) -> str:
    bins, error = predictions.calibration()
    bars = [
        (
            b.accuracy,
            f"{b.count} images, confidence {b.confidence:.2f}, right {b.accuracy:.2f}" if b.count else "no image",
        )
        for b in bins
    ]
    chart = bar_chart(bars, x_label="confidence", y_label="Share that is right (dashed: perfect)", diagonal=True)
    counts = ", ".join(f"{b.count:,}" for b in bins)
    return (
        f'<div class="charts">{chart}</div><p>Expected calibration error {100.0 * error:.1f} %: by how much confidence and '
        f"accuracy differ on average. Images in each bin: {counts}.</p>"
    )


def _examples(predictions: ClassPredictions, images: Tensor, names: Sequence[str], classes: Sequence[str]) -> str:
    best, worst = predictions.extremes(_THUMBNAILS)

    def shown(chosen: Iterable[int]) -> Iterable[tuple[Tensor, str, str, bool]]:
        for i in chosen:
            true, said = classes[int(predictions.labels[i])], classes[int(predictions.predicted[i])]
            words = true if true == said else f"{said}, is {true}"
            below = f"{text(words)}<br>{100.0 * float(predictions.true_probability[i]):.1f} %"
            yield images[i], names[i], below, true == said

    note = "<p>As the model sees them. The figure is the probability that it gave to the true class.</p>"
    return note + thumbnails("Surest and right", shown(best)) + thumbnails("Furthest from right", shown(worst))
