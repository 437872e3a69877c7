"""report.html: one page that shows what came of a fine-tuning run. It holds everything it shows and loads nothing.

    write_report(out, model=…, recipe=…, history=…, predictions=…, …)

Of many classes the page shows what is worth seeing: the confusions that occur most, the classes that are worst.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from .class_predictions import ClassPredictions
from .finetune_recipe import FinetuneRecipe
from .image_reading import Broken
from .layers import SplineConv2d
from .lr_range import LRRange
from .ode_block import ODEBlock
from .run_folder import atomic_write
from .svg_charts import bar_chart, line_chart

__all__ = ["write_report"]

_MATRIX_CLASSES = 30  # up to so many the confusion matrix is drawn whole
_LISTED = 100  # rows of a list, at most
_THUMBNAILS = 12
_TIMES = 101  # points of a kernel's curve


def write_report(
    out: Path,
    *,
    model: nn.Module,
    recipe: FinetuneRecipe,
    history: Sequence[dict[str, Any]],
    lr_range: LRRange | None,
    predictions: ClassPredictions,
    images: Tensor,
    names: Sequence[str],
    classes: Sequence[str],
    train_counts: Sequence[int],
    split: str,
    broken: Sequence[Broken],
    command: str,
) -> None:
    """Write `out/report.html`, beside the metrics.json that it quotes.

    Args:
        out: the run's folder.
        model: as published.
        recipe: of the run.
        history: one dict an epoch.
        lr_range: of the range test, where there was one.
        predictions: of the images measured.
        images: these, (N, C, H, W) uint8.
        names: of these.
        classes: names of the classes.
        train_counts: training images of each class.
        split: what was measured, "test" or "validation".
        broken: images that were left out.
        command: what made the run.
    """
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    sections = [
        _summary(recipe, metrics, predictions, split, classes),
        _section("Learning", _learning(history, metrics["last"]["epoch"], lr_range)),
        _section(f"Confusions ({split})", _confusions(predictions, classes)),
        _section(f"Accuracy of each class ({split})", _per_class(predictions, classes, train_counts)),
        _section(f"Reliability ({split})", _reliability(predictions)),
        _section(f"Best and worst predictions ({split})", _examples(predictions, images, names, classes)),
        _section("Kernels over t", _kernels(model)),
        _section("How it was made", _made(recipe, metrics, broken, command)),
    ]
    title = f"{recipe.model} on {recipe.dataset}"
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing is loaded and nothing runs, whatever a class or a file is called.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style></head>\n<body><main>\n"
        f"<h1>{_text(title)}</h1>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )
    atomic_write(out / "report.html", lambda file: file.write(page.encode("utf-8", "backslashreplace")))


def _summary(
    recipe: FinetuneRecipe, metrics: dict[str, Any], predictions: ClassPredictions, split: str, classes: Sequence[str]
) -> str:
    score = predictions.score
    p = score.correct / score.total
    spread = 100.0 * math.sqrt(p * (1.0 - p) / score.total)
    around = f", ± {spread:.2f}" if 0.0 < p < 1.0 else ""  # of none or all wrong the size says nothing
    chosen = (
        "The test images were read once, at the end."
        if split == "test"
        else "The weights were chosen by these images too, so on others expect a little more."
    )
    cards = [
        (f"{score.error:.2f} %", f"{split} error{around} ({score.total - score.correct:,} of {score.total:,})"),
        (f"{len(classes):,}", "classes"),
        (str(metrics["last"]["epoch"]), f"best of {metrics['epochs']} epochs"),
        (f"{metrics['parameters']:,}", "parameters"),
    ]
    tiles = "".join(f"<div><b>{_text(value)}</b><span>{_text(what)}</span></div>" for value, what in cards)
    start = f"from {recipe.finetuned_from}" if recipe.finetuned_from else "from random weights"
    return f'<p>Trained {_text(start)}. {chosen}</p><div class="tiles">{tiles}</div>'


def _learning(history: Sequence[dict[str, Any]], best: int, lr_range: LRRange | None) -> str:
    loss = {
        "training": [(row["epoch"], row["train_loss"]) for row in history],
        "validation": [(row["epoch"], row["val_loss"]) for row in history],
    }
    error = {
        "training": [(row["epoch"], 100.0 - row["train_acc"]) for row in history],
        "validation": [(row["epoch"], row["val_error"]) for row in history],
    }
    charts = [
        line_chart(loss, x_label="epoch", y_label="Loss (dashed: the epoch kept)", mark_x=best),
        line_chart(error, x_label="epoch", y_label="Error, %", mark_x=best),
    ]
    if lr_range is not None:
        charts.append(
            line_chart(
                {"loss": lr_range.curve},
                x_label="learning rate",
                y_label=f"Range test: loss while the rate rises ({lr_range.lr:g} was taken)",
                log_x=True,
                mark_x=lr_range.lr if lr_range.lr >= lr_range.curve[0][0] else None,
            )
        )
    note = "<p>Training figures are of augmented images and of the weights at that time; validation is of their average.</p>"
    return f'<div class="charts">{"".join(charts)}</div>{note}'


def _confusions(predictions: ClassPredictions, classes: Sequence[str]) -> str:
    counts = predictions.confusions()
    wrong = [(pair, n) for pair, n in counts.most_common() if pair[0] != pair[1]]
    rows = [
        (classes[true], classes[said], f"{n:,}")
        for (true, said), n in wrong[: _LISTED if len(classes) > _MATRIX_CLASSES else 10]
    ]
    listed = _table(("is", "taken for", "images"), rows) if rows else "<p>Every image was right.</p>"
    if len(classes) > _MATRIX_CLASSES:
        return f"<p>Of {len(classes):,} classes, what is confused most:</p>{listed}"
    totals = predictions.labels.bincount(minlength=len(classes)).tolist()
    head = "".join(f'<th class="up"><span>{_text(name)}</span></th>' for name in classes)
    lines = []
    for true, name in enumerate(classes):
        cells = []
        for said in range(len(classes)):
            n = counts[true, said]
            share = n / totals[true] if totals[true] else 0.0
            colour = "--right" if true == said else "--wrong"
            told = f"{_text(name)} taken for {_text(classes[said])}: {n}"
            cells.append(
                f'<td style="background:color-mix(in srgb,var({colour}) {100 * share**0.5:.0f}%,transparent)" title="{told}">'
                f"{n or ''}</td>"
            )
        lines.append(f'<tr><th scope="row">{_text(name)}</th>{"".join(cells)}</tr>')
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
        note += f"<p>Not measured, for there is no image: {_text(some)}.</p>"
    rows = []
    for name, score, trained in seen:
        share = 100.0 * score.correct / score.total
        rows.append(
            f'<tr><th scope="row">{_text(name)}</th><td class="bar"><i style="width:{share:.1f}%"></i></td>'
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

    def row(title: str, chosen: Iterable[int]) -> str:
        cells = []
        for i in chosen:
            true, said = classes[int(predictions.labels[i])], classes[int(predictions.predicted[i])]
            right = true == said
            text = f"{true}" if right else f"{said}, is {true}"
            cells.append(
                f'<figure class="{"right" if right else "wrong"}"><img alt="{_text(names[i])}" title="{_text(names[i])}" '
                f'src="{_data_url(images[i])}"><figcaption>{_text(text)}<br>'
                f"{100.0 * float(predictions.true_probability[i]):.1f} %</figcaption></figure>"
            )
        return f'<h3>{title}</h3><div class="thumbs">{"".join(cells)}</div>'

    note = "<p>As the model sees them. The figure is the probability that it gave to the true class.</p>"
    return note + row("Surest and right", best) + row("Furthest from right", worst)


def _kernels(model: nn.Module) -> str:
    """The largest kernel of each spline convolution: one curve for each of its weights, W(t) = Σ_i B_i(t) ξ_i."""
    block = next((m for m in model.modules() if isinstance(m, ODEBlock) and m.fixed), None)
    charts = []
    with torch.no_grad():
        for number, layer in enumerate(m for m in model.modules() if isinstance(m, SplineConv2d)):
            sizes = layer.coeffs.flatten(2).norm(dim=2)
            out_channel, in_channel = divmod(int(sizes.argmax()), sizes.shape[1])
            t0, t1 = layer.basis.t_span
            times = torch.linspace(t0, t1, _TIMES, dtype=torch.float64)
            table = layer.basis(times.to(layer.coeffs.device))
            weights = (layer.coeffs[out_channel, in_channel].to(table).flatten(0, 1) @ table.T).cpu()  # (kH kW, times)
            columns = layer.kernel_size[1]
            curves = {
                f"{k // columns + 1}, {k % columns + 1}": list(zip(times.tolist(), w.tolist(), strict=True))
                for k, w in enumerate(weights)
            }
            label = f"Convolution {number}, channel {in_channel} to {out_channel}: weight (row, column)"
            grid = block.grid if block is not None else ()
            charts.append(line_chart(curves, x_label="t", y_label=label, dots=False, strokes=grid))
    if not charts:
        return "<p>This model has no kernels that are splines of time.</p>"
    return f'<div class="charts">{"".join(charts)}</div><p>Strokes below: the grid on which the ODE is solved.</p>'


def _made(recipe: FinetuneRecipe, metrics: dict[str, Any], broken: Sequence[Broken], command: str) -> str:
    hardware, versions = metrics["hardware"], metrics["versions"]
    git = metrics["git"]
    rows = [
        ("device", f"{hardware['device']} ({hardware['cores']} cores, {hardware['threads']} threads)"),
        ("versions", ", ".join(f"{name} {v}" for name, v in versions.items() if v)),
        ("commit", "not recorded" if git is None else git["commit"] + (" with changes" if git["dirty"] else "")),
        ("time", f"{metrics['wall_clock_seconds']:.0f} s"),
        ("sha256 of the weights", metrics["sha256"]),
    ]
    parts = [f"<p>Command:</p><pre>{_text(command)}</pre>", _table(("environment", ""), rows)]
    parts.append(f"<p>Settings (recipe.yaml):</p><pre>{_text(recipe.to_yaml())}</pre>")
    if broken:
        items = "".join(f"<li>{_text(str(each))}</li>" for each in broken[:_LISTED])
        more = f"<p>and {len(broken) - _LISTED:,} more</p>" if len(broken) > _LISTED else ""
        parts.append(f"<p>{len(broken):,} images could not be read and were left out:</p><ul>{items}</ul>{more}")
    return "".join(parts)


# ---------------------------------------------------------------------------------------------------------------------


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{content}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{_text(cell)}</th>' for cell in head)}</tr>{cells}</table>"


def _data_url(image: Tensor) -> str:
    pixels = image.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


_STYLE = """
:root{color-scheme:light dark;--right:#2a8c55;--wrong:#d0502b;--line:#8884;
--c0:#2f78c4;--c1:#c8601a;--c2:#2a8c55;--c3:#8a56b8;--c4:#b5892a;--c5:#3a9aa6;--c6:#c2457b;--c7:#7a7a7a;--c8:#6b8e23}
body{font:16px/1.5 system-ui,sans-serif;margin:0;padding:1.5rem}
main{max-width:62rem;margin:auto}
h1{font-size:1.6rem;margin:0 0 .5rem}h2{font-size:1.2rem;margin:2.2rem 0 .6rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1rem 0 .3rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.8rem}
.tiles div{border:1px solid var(--line);border-radius:8px;padding:.6rem .9rem}
.tiles b{display:block;font-size:1.5rem}.tiles span{font-size:.85rem;opacity:.8}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:1rem}
figure{margin:0}figcaption{font-size:.85rem}
svg{width:100%;height:auto;font-size:11px;fill:currentColor}
.grid{stroke:var(--line)}.line{fill:none;stroke-width:2}.mark{stroke:currentColor;stroke-dasharray:4 4;opacity:.6}
.legend{font-size:.8rem}.legend span{margin-right:.9rem;white-space:nowrap}
.legend i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.3em}
table{border-collapse:collapse;font-size:.9rem}th,td{padding:.15rem .6rem;text-align:left;vertical-align:top}
td{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}caption{text-align:left;font-size:.85rem;opacity:.8}
.wide{overflow-x:auto}.matrix td{text-align:center;min-width:1.6rem;border:1px solid var(--line);padding:.15rem}
.matrix .up{vertical-align:bottom;padding:.2rem}
.up span{writing-mode:vertical-rl;transform:rotate(180deg);max-height:9rem;overflow:hidden}
.bar{width:14rem;padding:.35rem}.bar i{display:block;height:.8rem;background:var(--c0);border-radius:3px}
.thumbs{display:flex;flex-wrap:wrap;gap:.7rem}.thumbs figure{width:6rem}
.thumbs img{width:6rem;height:6rem;image-rendering:pixelated;border-bottom:4px solid var(--right);box-sizing:border-box}
.thumbs .wrong img{border-color:var(--wrong)}.thumbs figcaption{font-size:.75rem;overflow-wrap:anywhere}
pre{overflow-x:auto;padding:.7rem;border:1px solid var(--line);border-radius:8px;font-size:.85rem}
"""
