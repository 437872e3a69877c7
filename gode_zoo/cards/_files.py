"""What `make cards` writes: cards, plots, the table in README.md, and MODEL_CARDS.md with pages of results/ in it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..metrics import mean_and_spread
from ..models._pretrained import CHECKOUT
from ..run_folder import atomic_write
from ._controls import controls
from ._entry import CardError, Entry, read_hub
from ._plot import plot_log
from ._text import GENERATED, card, solver_text

__all__ = ["BEGIN", "END", "main", "render", "stale"]

BEGIN = "<!-- zoo table: begin. Written by `make cards` from hub/*/metrics.json: do not edit. -->"
END = "<!-- zoo table: end -->"

_NONE = "No weights are published yet."


def render(root: Path) -> dict[Path, str]:
    """Every generated file of the checkout `root` and what it should hold.

    Raises:
        CardError: see `read_hub`; or README.md has not the two markers.
    """
    entries = read_hub(root / "hub")
    files = {entry.folder / "README.md": card(entry) for entry in entries}
    files |= {entry.folder / "train_log.svg": plot for entry in entries if (plot := plot_log(entry)) is not None}
    files[root / "MODEL_CARDS.md"] = "".join(
        [
            _overview(entries),
            controls(entries),
            _paper(root / "results"),
            _related(root / "results" / "related_systems.md"),
        ]
    )
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise CardError(f"{readme}: has no lines\n{BEGIN}\n{END}\nput them where the table of models belongs")
    files[readme] = f"{before}{BEGIN}\n{_table(entries, 'hub/{name}/README.md')}\n{END}{after}"
    return files


def stale(root: Path, files: dict[Path, str]) -> list[Path]:
    """Which of `files`, as `render` gives them, are missing or differ; and cards or plots that none of them is."""
    wrong = [path for path, text in files.items() if not path.is_file() or path.read_bytes() != text.encode()]
    made = [*(root / "hub").glob("*/README.md"), *(root / "hub").glob("*/train_log.svg")]
    return sorted([*wrong, *(path for path in made if path not in files)])


def _overview(entries: Sequence[Entry]) -> str:
    return f"""\
{GENERATED}

# Model cards

{_table(entries, "hub/{name}/README.md")}

Errors are in % of the test set, of one model without test-time augmentation. *Last* is the error of the published
weights, those of the last epoch; ± is the standard error that the size of the test set gives. *Best* is the error of
the best epoch where it was measured, as information: those weights are not published. *Seeds* is how many runs there are,
with the mean and standard deviation of their errors where there are several; the published weights are of one of them.

Measure a figure again: `gode-zoo evaluate NAME --check`. The cards, which a name links to, have the recipe, the
hardware and the limits.
"""


def _paper(results: Path) -> str:
    """The paper's tables and figure as far as they were made again; nothing where none was."""
    pages = [path.read_text(encoding="utf-8") for path in sorted(results.glob("table?.md"))]
    parts = [f"##{page.strip()}" for page in pages]  # its heading, two levels down
    if (results / "figure2.png").is_file():
        parts.append(
            "### Figure 2 of the paper: one kernel's weights over layers or time\n\n"
            "![Weights of one 3×3 kernel over time or layers, before and after training](results/figure2.png)"
        )
    return "\n## The paper's tables again\n\n" + "\n\n".join(parts) + "\n" if parts else ""


def _related(page: Path) -> str:
    """The page of related systems as a section, without its heading and note; nothing where it is not there."""
    if not page.is_file():
        return ""
    body = "\n".join(ln for ln in page.read_text(encoding="utf-8").splitlines() if not ln.startswith(("# ", "<!--")))
    return f"\n## Related systems\n\n{body.strip()}\n"


def _table(entries: Sequence[Entry], link: str) -> str:
    if not entries:
        return _NONE
    head = ["model", "data", "error %, last", "error %, best", "parameters", "solver", "epochs", "seeds"]
    rows = []
    for entry in entries:
        metrics, best = entry.metrics, entry.metrics["best"]
        rows.append(
            [
                f"[{entry.name}]({link.format(name=entry.name)})",
                entry.dataset,
                f"deviance {metrics['last']['error']:.4g}"
                if entry.has_outcomes
                else f"{metrics['last']['error']:.2f} ± {entry.standard_error:.2f}",
                _best(entry, best) if best and "error" in best else "not measured",
                f"{metrics['parameters']:,}",
                solver_text(metrics["solver"]),
                str(metrics["epochs"]),
                str(metrics["num_seeds"]) + (f" ({mean_and_spread(entry.errors)})" if len(entry.errors) > 1 else ""),
            ]
        )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def _best(entry: Entry, best: dict[str, Any]) -> str:
    error = f"deviance {best['error']:.4g}" if entry.has_outcomes else f"{best['error']:.2f}"
    return f"{error} (epoch {best['epoch']})"


def main(argv: Sequence[str] | None = None, root: Path = CHECKOUT) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gode_zoo.cards", description="Write the model cards and tables.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and name the files that differ")
    check = parser.parse_args(argv).check
    if not (root / "README.md").is_file():
        print(
            f"{root} has no README.md: cards are made in a checkout of gode_zoo, not in an installed package",
            file=sys.stderr,
        )
        return 1
    try:
        files = render(root)
    except CardError as error:
        print(error, file=sys.stderr)
        return 1
    wrong = stale(root, files)
    orphans = [path for path in wrong if path not in files]
    for path in orphans:
        what = "a card without metrics.json" if path.name == "README.md" else "a plot without train_log.csv"
        print(f"{path.relative_to(root)}: {what} beside it; remove it", file=sys.stderr)
    if check:
        for path in wrong:
            if path not in orphans:
                print(f"{path.relative_to(root)}: is not what metrics.json says; run `make cards`", file=sys.stderr)
        return 1 if wrong else 0
    for path in wrong:
        if path not in orphans:
            text = files[path]
            atomic_write(path, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
            print(f"wrote {path.relative_to(root)}")
    if not wrong:
        print(f"all {len(files)} files are current")
    return 1 if orphans else 0
