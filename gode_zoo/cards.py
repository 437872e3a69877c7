"""Model cards and the zoo's tables, all made from `hub/*/metrics.json`: the one truth about a model's accuracy.

    python -m gode_zoo.cards           write hub/*/README.md, MODEL_CARDS.md and the table in README.md (`make cards`)
    python -m gode_zoo.cards --check   write nothing; exit 1 and name the files that differ

Beside the figures a card quotes `recipe.yaml` (how the weights were trained) and `config.json` (what goes in and comes
out). Nothing here measures anything. A card is refused where the weights or the recipe are not those that metrics.json
is about.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BEGIN", "CITATION", "END", "CardError", "Entry", "card", "main", "read_hub", "render", "stale"]

BEGIN = "<!-- zoo table: begin. Written by `make cards` from hub/*/metrics.json: do not edit. -->"
END = "<!-- zoo table: end -->"

CITATION = """\
@article{yu2023neural,
  title   = {Neural Generalized Ordinary Differential Equations with Layer-Varying Parameters},
  author  = {Yu, Duo and Miao, Hongyu and Wu, Hulin},
  journal = {Journal of Data Science},
  year    = {2023},
  doi     = {10.6339/23-JDS1093}
}"""

_NONE = "No weights are published yet."
_GENERATED = "<!-- Written by `make cards` from hub/*/metrics.json: do not edit. -->"
_CHECKOUT = Path(__file__).resolve().parent.parent

# timm's name of a data set: what people call it, and its name on the Hugging Face Hub.
_DATASETS = {"torch/mnist": ("MNIST", "ylecun/mnist"), "torch/cifar10": ("CIFAR-10", "uoft-cs/cifar10")}
_FAMILIES = {
    "gode": "Neural-GODE: one ODE block whose convolution kernels are B-splines of time",
    "odenet": "Neural-ODE: one ODE block with constant weights and time as one more channel",
    "resnet": "Residual network with the stem and head of the Neural-GODE models, for comparison",
    "stem": "The stem and head of the Neural-GODE models with nothing between, for comparison",
}
_LIMITS = {
    "torch/mnist": "It knows single, centred, upright digits, bright on black, 28×28, as in MNIST. Other framing,\n"
    "inverted colours, letters or several digits give an answer all the same, and a wrong one. On digits from\n"
    "elsewhere expect a higher error than the one above, and fine-tune, as `make demo` shows.",
    "torch/cifar10": "It knows ten kinds of things in 32×32 photographs. An image of anything else, or a large\n"
    "photograph scaled down, gets one of the ten labels all the same.",
}


class CardError(RuntimeError):
    """A folder from which no true card can be made, or a README.md without the markers of the table."""


@dataclass(frozen=True)
class Entry:
    """One folder `hub/<arch>.<tag>`: the content of its metrics.json, config.json and recipe.yaml."""

    folder: Path
    metrics: dict[str, Any]
    config: dict[str, Any]
    recipe: str

    @property
    def name(self) -> str:
        return f"{self.metrics['model']}.{self.metrics['tag']}"

    @property
    def dataset(self) -> str:
        return _DATASETS.get(self.metrics["dataset"], (self.metrics["dataset"],))[0]

    @property
    def accuracy(self) -> float:
        """Of the published weights on the test set, in %."""
        return 100.0 * self.metrics["last"]["correct"] / self.metrics["last"]["total"]


def read_hub(hub: Path) -> list[Entry]:
    """Every published model under `hub`, by name; an empty list where there is none.

    Raises:
        CardError: a file is missing or damaged, a figure is missing or contradicts another, or the weights or the
            recipe are not those that metrics.json names.
    """
    return [_read(file.parent) for file in sorted(hub.glob("*/metrics.json"))]


def _read(folder: Path) -> Entry:
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
        weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    except OSError as error:
        raise CardError(
            f"{error.filename}: {error.strerror}: a card needs it; train the model anew or restore it"
        ) from None
    except ValueError as error:
        raise CardError(f"{folder}: metrics.json or config.json is not valid JSON ({error}): restore it") from None
    entry = Entry(folder, metrics, config, recipe)
    try:
        if folder.name != entry.name:
            raise CardError(f"{folder}: metrics.json is about {entry.name}: rename the folder or restore the file")
        actual = {"sha256": weights, "recipe_sha256": hashlib.sha256(recipe.encode()).hexdigest()}
        for key, file in (("sha256", "model.safetensors"), ("recipe_sha256", "recipe.yaml")):
            if metrics[key] != actual[key]:
                raise CardError(
                    f"{folder / file}: sha256 is {actual[key]}, but metrics.json is about {metrics[key]}: its figures "
                    "are not those of this file; restore one of the two"
                )
        for which in ("last", "best"):
            score = metrics[which]
            if score and "total" in score:
                percent = 100.0 * (score["total"] - score["correct"]) / score["total"]
                if not math.isclose(score["error"], percent, abs_tol=1e-3):
                    raise CardError(
                        f"{folder / 'metrics.json'}: {which}.error = {score['error']}, but {score['correct']} correct "
                        f"of {score['total']} are an error of {percent:.4f} %: correct it"
                    )
        card(entry)  # every figure that it needs is there
    except KeyError as error:
        raise CardError(
            f"{folder / 'metrics.json'}: has no {error}: train the model anew or restore the file"
        ) from None
    return entry


# ---------------------------------------------------------------------------------------------------------------------
# What is written


def render(root: Path) -> dict[Path, str]:
    """Every generated file of the checkout `root` and what it should hold.

    Raises:
        CardError: see `read_hub`; or README.md has not the two markers.
    """
    entries = read_hub(root / "hub")
    files = {entry.folder / "README.md": card(entry) for entry in entries}
    files[root / "MODEL_CARDS.md"] = _overview(entries)
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise CardError(f"{readme}: has no lines\n{BEGIN}\n{END}\nput them where the table of models belongs")
    files[readme] = f"{before}{BEGIN}\n{_table(entries, 'hub/{name}/README.md')}\n{END}{after}"
    return files


def stale(root: Path, files: dict[Path, str]) -> list[Path]:
    """Which of `files`, as `render` gives them, are missing or differ; and cards without a metrics.json."""
    wrong = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    return sorted([*wrong, *(path for path in (root / "hub").glob("*/README.md") if path not in files)])


def card(entry: Entry) -> str:
    """The README.md of one Hub repository: metadata that the Hub reads, and text."""
    from huggingface_hub import EvalResult, ModelCardData

    metrics, last, solving = entry.metrics, entry.metrics["last"], entry.metrics["solver"]
    size = ", ".join(str(n) for n in entry.config["pretrained_cfg"]["input_size"])
    hub_name = _DATASETS.get(metrics["dataset"], ("", ""))[1]
    family = metrics["model"].partition("_")[0].rstrip("0123456789")
    result = EvalResult(
        task_type="image-classification",
        dataset_type=hub_name or metrics["dataset"],
        dataset_name=entry.dataset,
        dataset_split=metrics["split"],
        metric_type="accuracy",
        metric_name="Top-1 accuracy (%)",
        metric_value=round(entry.accuracy, 4),
    )
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "gode_zoo", *(["neural-ode"] if solving else [])],
        datasets=[hub_name] if hub_name else None,
        metrics=["accuracy"],
        model_name=entry.name,
        eval_results=[result],
    )
    facts = [
        ("Architecture", _FAMILIES.get(family, metrics["model"])),
        ("Parameters", f"{metrics['parameters']:,}"),
        ("Solver", _solver(solving)),
        ("Input", _input(entry.config["pretrained_cfg"])),
        ("Classes", ", ".join(entry.config.get("label_names", [])) or str(entry.config["num_classes"])),
        ("Licence", "Apache-2.0"),
    ]
    figures = [
        ("Error, last epoch: these weights", f"**{_score(last)}**, epoch {last['epoch']}"),
        ("Standard error of that, from the size of the test set", f"{_standard_error(last):.2f} points"),
        ("Error, best epoch", _best(metrics)),
        ("Runs", _seeds(metrics)),
    ]
    training = [
        (
            "Recipe",
            f"`{entry.name}`, {metrics['epochs']} epochs{', moving average of weights' if metrics['ema'] else ''}",
        ),
        ("Hardware", _hardware(metrics)),
        ("Time", _duration(metrics["wall_clock_seconds"])),
        ("Commit", _commit(metrics["git"])),
        *(
            ("Resumed with another commit", f"from step {later['from_step']:,}: {_commit(later['git'])}")
            for later in metrics.get("resumed_with", ())
        ),
        ("Versions, when it was finished", ", ".join(f"{name} {v}" for name, v in metrics["versions"].items() if v)),
        ("SHA-256 of model.safetensors", f"`{metrics['sha256']}`"),
    ]
    return f"""\
---
{metadata.to_yaml()}
---
{_GENERATED}

# {entry.name}

{_FAMILIES.get(family, metrics["model"])}. Trained on {entry.dataset} with
gode_zoo, which has to be installed to load it.

{_rows("Model", facts)}

## Accuracy

{_rows(f"{entry.dataset}, {metrics['split']} set", figures)}

The weights are those of the last epoch, whatever its error. The paper's own figures are in its Table 1; this recipe is
{"the paper's" if metrics["tag"] == "paper" else "not the paper's"}.

## Use

```python
import timm, torch
import gode_zoo  # registers the models

model = timm.create_model("{entry.name}", pretrained=True).eval()
images = torch.rand(2, {size})  # in [0, 1], then normalised as above
probabilities = model(images).softmax(dim=1)  # (2, {entry.config["num_classes"]})
```

Measure the figure above again, and fail where it differs: `gode-zoo evaluate {entry.name} --check`.
{_other_solver(entry.name, solving)}
## Training

{_rows("Training", training)}

`recipe.yaml`, with every default written out (`gode-zoo train recipe.yaml` runs it; `train_log.csv` has each epoch):

```yaml
{entry.recipe.rstrip()}
```

## Intended use and limits

For research and teaching on neural ODEs, as a baseline, and as a start for fine-tuning on small images.
{_LIMITS.get(metrics["dataset"], "It knows the classes above and no others: any image gets one of them.")}
Its probabilities were not calibrated, and no robustness or bias study was made: decide nothing about people by it.

## Citation

```bibtex
{CITATION}
```
"""


def _overview(entries: Sequence[Entry]) -> str:
    return f"""\
{_GENERATED}

# Model cards

{_table(entries, "hub/{name}/README.md")}

Errors are in % of the test set, of one model without test-time augmentation. *Last* is the error of the published
weights, those of the last epoch; ± is the standard error that the size of the test set gives. *Best* is the error of
the best epoch where it was measured, as information: those weights are not published.

Measure a figure again: `gode-zoo evaluate NAME --check`. The cards, which a name links to, have the recipe, the
hardware and the limits.
"""


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
                f"{metrics['last']['error']:.2f} ± {_standard_error(metrics['last']):.2f}",
                f"{best['error']:.2f} (epoch {best['epoch']})" if best and "error" in best else "not measured",
                f"{metrics['parameters']:,}",
                _solver(metrics["solver"]),
                str(metrics["epochs"]),
                str(metrics["num_seeds"]),
            ]
        )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def _rows(title: str, rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join([f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _score(score: dict[str, Any]) -> str:
    return f"{score['error']:.2f} % ({score['total'] - score['correct']:,} wrong of {score['total']:,})"


def _standard_error(score: dict[str, Any]) -> float:
    p = score["correct"] / score["total"]
    return 100.0 * math.sqrt(p * (1.0 - p) / score["total"])


def _best(metrics: dict[str, Any]) -> str:
    best = metrics["best"]
    if not best:
        return f"not measured: {metrics['best_reason']}"
    figure = _score(best) if "total" in best else f"{best['val_error']:.2f} % of the held-out images"
    return f"{figure}, epoch {best['epoch']}; selected by the {best['selected_by'].removeprefix('the ')}"


def _seeds(metrics: dict[str, Any]) -> str:
    seeds = ", ".join(str(seed) for seed in metrics["seeds"])
    if metrics["num_seeds"] == 1:
        return f"one, seed {seeds}: how much the error varies from run to run was not measured"
    return f"{metrics['num_seeds']}, seeds {seeds}"


def _solver(solving: dict[str, Any] | None) -> str:
    if solving is None:
        return "none"
    t0, t1 = (f"{t:g}" for t in solving["t_span"])
    how = (
        f"{solving['num_steps']} steps of {solving['step_size']:g}"
        if "num_steps" in solving
        else f"rtol {solving['rtol']:g}, atol {solving['atol']:g}"
    )
    return f"{solving['solver']}, {how}, t from {t0} to {t1}"


def _other_solver(name: str, solving: dict[str, Any] | None) -> str:
    if solving is None:
        return ""
    return f"""\
Another solver or grid needs no training, but has an error of its own:
`timm.create_model("{name}", pretrained=True, solver="rk4", num_steps=10)`.
"""


def _input(cfg: dict[str, Any]) -> str:
    channels, height, width = cfg["input_size"]
    colour = "grey" if channels == 1 else "RGB" if channels == 3 else f"{channels} channels"
    mean, std = (", ".join(f"{value:g}" for value in cfg[key]) for key in ("mean", "std"))
    return f"{height}×{width}, {colour}, in [0, 1], then normalised: mean {mean}, standard deviation {std}"


def _hardware(metrics: dict[str, Any]) -> str:
    hardware = metrics["hardware"]
    if hardware["device"] != hardware["cpu"]:
        return f"{hardware['device']} (host: {hardware['cpu']})"
    return f"{hardware['cpu']}, threads: {hardware['threads']}, cores: {hardware['cores']}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _commit(git: dict[str, Any] | None) -> str:
    if git is None:
        return "not recorded"
    return f"`{git['commit']}`{' with uncommitted changes' if git['dirty'] else ''}"


# ---------------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None, root: Path = _CHECKOUT) -> int:
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
        print(f"{path.relative_to(root)}: a card without metrics.json beside it; remove it", file=sys.stderr)
    if check:
        for path in wrong:
            if path not in orphans:
                print(f"{path.relative_to(root)}: is not what metrics.json says; run `make cards`", file=sys.stderr)
        return 1 if wrong else 0
    for path in wrong:
        if path not in orphans:
            path.write_text(files[path], encoding="utf-8")
            print(f"wrote {path.relative_to(root)}")
    if not wrong:
        print(f"all {len(files)} files are current")
    return 1 if orphans else 0


if __name__ == "__main__":
    sys.exit(main())
