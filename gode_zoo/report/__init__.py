"""report.html: one page that shows what came of a fine-tuning run. It holds everything it shows and loads nothing.

    write_report(out, model=…, recipe=…, history=…, findings=…, …)

`classes.py` and `outcomes.py` make the findings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..finetuning.lr_range import LRRange
from ..finetuning.recipe import FinetuneRecipe
from ..images.reading import Broken
from ..layers import SplineConv2d
from ..ode_block import ODEBlock
from ..provenance import hardware_text
from ..recipes import Augment
from ..run_folder import atomic_write
from .parts import Findings, section, table, text
from .svg_charts import line_chart

__all__ = ["write_report"]

_LISTED = 100  # rows of a list, at most
_TIMES = 101  # points of a kernel's curve


def write_report(
    out: Path,
    *,
    model: nn.Module,
    recipe: FinetuneRecipe,
    history: Sequence[dict[str, Any]],
    lr_range: LRRange | None,
    findings: Findings,
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
        findings: what came of it.
        split: what was measured, "test" or "validation".
        broken: images that were left out.
        command: what made the run.
    """
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    sections = [
        _summary(recipe, metrics, findings, split),
        section("Learning", _learning(history, findings, metrics["last"]["epoch"], lr_range, recipe.augment)),
        *(section(title, content) for title, content in findings.sections),
        section("Kernels over t", _kernels(model)),
        section("How it was made", _made(recipe, metrics, broken, command)),
    ]
    title = f"{recipe.model} on {recipe.dataset}"
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing is loaded and nothing runs, whatever a class or a file is called.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style></head>\n<body><main>\n"
        f"<h1>{text(title)}</h1>\n" + "\n".join(sections) + "\n</main></body></html>\n"
    )
    atomic_write(out / "report.html", lambda file: file.write(page.encode("utf-8", "backslashreplace")))


def _summary(recipe: FinetuneRecipe, metrics: dict[str, Any], findings: Findings, split: str) -> str:
    chosen = (
        "The test images were read once, at the end."
        if split == "test"
        else "The weights were chosen by these images too, so on others expect a little more."
    )
    cards = [
        *findings.tiles,
        (str(metrics["last"]["epoch"]), f"best of {metrics['epochs']} epochs"),
        (f"{metrics['parameters']:,}", "parameters"),
    ]
    tiles = "".join(f"<div><b>{text(value)}</b><span>{text(what)}</span></div>" for value, what in cards)
    start = f"from {recipe.finetuned_from}" if recipe.finetuned_from else "from random weights"
    return f'<p>Trained {text(start)}. {chosen}</p><div class="tiles">{tiles}</div>'


def _learning(
    history: Sequence[dict[str, Any]], findings: Findings, best: int, lr_range: LRRange | None, augment: Augment
) -> str:
    loss = {
        "training": [(row["epoch"], row["train_loss"]) for row in history],
        "validation": [(row["epoch"], row["val_loss"]) for row in history],
    }
    charts = [
        line_chart(loss, x_label="epoch", y_label="Loss (dashed: the epoch kept)", mark_x=best),
        line_chart(findings.curves, x_label="epoch", y_label=findings.curve_label, mark_x=best),
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
    images = "augmented images and of " if augment != Augment() else ""
    note = f"<p>Training figures are of {images}the weights at that time; validation is of their average.</p>"
    return f'<div class="charts">{"".join(charts)}</div>{note}'


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
            values = layer.basis(times.to(layer.coeffs.device))
            weights = (
                layer.coeffs[out_channel, in_channel].to(values).flatten(0, 1) @ values.T
            ).cpu()  # (kH kW, times)
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
    git, versions = metrics["git"], metrics["versions"]
    rows = [
        ("device", hardware_text(metrics["hardware"])),
        ("versions", ", ".join(f"{name} {v}" for name, v in versions.items() if v)),
        ("commit", "not recorded" if git is None else git["commit"] + (" with changes" if git["dirty"] else "")),
        ("time", f"{metrics['wall_clock_seconds']:.0f} s"),
        ("sha256 of the weights", metrics["sha256"]),
    ]
    parts = [f"<p>Command:</p><pre>{text(command)}</pre>", table(("environment", ""), rows)]
    parts.append(f"<p>Settings (recipe.yaml):</p><pre>{text(recipe.to_yaml())}</pre>")
    if broken:
        items = "".join(f"<li>{text(str(each))}</li>" for each in broken[:_LISTED])
        more = f"<p>and {len(broken) - _LISTED:,} more</p>" if len(broken) > _LISTED else ""
        parts.append(f"<p>{len(broken):,} images could not be read and were left out:</p><ul>{items}</ul>{more}")
    return "".join(parts)


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
.span{stroke:var(--c0);opacity:.3}
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
