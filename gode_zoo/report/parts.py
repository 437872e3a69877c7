"""Pieces of report.html that every page has: text made harmless, tables, thumbnails, and what a run found."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

__all__ = ["Findings", "data_url", "section", "table", "text", "thumbnails"]


@dataclass(frozen=True)
class Findings:
    """What a page shows that depends on whether labels are classes or outcomes.

    Attributes:
        tiles: (figure, what it is), the first of the page.
        curves: name to (epoch, value), of the second chart of learning.
        curve_label: what that chart shows.
        sections: (title, HTML) in their order.
    """

    tiles: Sequence[tuple[str, str]]
    curves: Mapping[str, Sequence[tuple[float, float]]]
    curve_label: str
    sections: Sequence[tuple[str, str]]


def text(value: str) -> str:
    return html.escape(value, quote=True)


def section(title: str, content: str) -> str:
    return f"<section><h2>{text(title)}</h2>{content}</section>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{text(cell)}</th>' for cell in head)}</tr>{cells}</table>"


def data_url(image: Tensor) -> str:
    pixels = image.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def thumbnails(title: str, shown: Iterable[tuple[Tensor, str, str, bool]]) -> str:
    """A row of images (C, H, W), each with its name, what stands below it as HTML, and whether it is good."""
    cells = [
        f'<figure class="{"right" if good else "wrong"}"><img alt="{text(name)}" title="{text(name)}" '
        f'src="{data_url(image)}"><figcaption>{below}</figcaption></figure>'
        for image, name, below, good in shown
    ]
    return f'<h3>{title}</h3><div class="thumbs">{"".join(cells)}</div>'
