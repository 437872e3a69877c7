"""Model cards, plots of training logs and the zoo's tables, all made from `metrics.json`: the truth about a model.

    python -m gode_zoo.cards           write hub/*/README.md, hub/*/train_log.svg, MODEL_CARDS.md and the table in
                                       README.md (`make cards`)
    python -m gode_zoo.cards --check   write nothing; exit 1 and name the files that differ

Beside the figures a card quotes `recipe.yaml` (how the weights were trained), `config.json` (what goes in and comes
out) and `train_log.csv` (each epoch). Nothing here measures anything, and the same folder gives the same bytes on any
machine. A card is refused where the weights or the recipe are not those that metrics.json is about.
"""

from ._entry import CardError, Entry, read_entry, read_hub
from ._files import BEGIN, END, main, render, stale
from ._plot import plot_log
from ._text import CITATION, GENERATED, card

__all__ = [
    "BEGIN",
    "CITATION",
    "END",
    "GENERATED",
    "CardError",
    "Entry",
    "card",
    "main",
    "plot_log",
    "read_entry",
    "read_hub",
    "render",
    "stale",
]
