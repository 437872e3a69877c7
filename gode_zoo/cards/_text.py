"""The model card: README.md of a Hub repository, metadata that the Hub reads and text that people do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..metrics import mean_and_spread
from ..provenance import hardware_text
from . import _outcomes
from ._entry import CardError, Entry
from ._plot import plot_log

__all__ = ["CITATION", "GENERATED", "card", "solver_text"]

CITATION = """\
@article{yu2023neural,
  title   = {Neural Generalized Ordinary Differential Equations with Layer-Varying Parameters},
  author  = {Yu, Duo and Miao, Hongyu and Wu, Hulin},
  journal = {Journal of Data Science},
  year    = {2023},
  doi     = {10.6339/23-JDS1093}
}"""

GENERATED = "<!-- Written by gode_zoo from metrics.json (`make cards`): do not edit. -->"
_SHOWN_CLASSES = 20

_FAMILIES = {
    "gode": "Neural-GODE: one ODE block whose convolution kernels are B-splines of time",
    "gode3": "Multi-stage Neural-GODE: three ODE blocks, at full, half and quarter resolution, whose convolution kernels are "
    "B-splines of time",
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


def card(entry: Entry) -> str:
    """The README.md of one Hub repository, whose metadata huggingface_hub has read again.

    Raises:
        CardError: metrics.json or config.json lacks a figure that the card needs, or has one of the wrong kind.
    """
    from huggingface_hub import ModelCard

    try:
        return ModelCard(_card(entry)).content
    except KeyError as error:
        raise CardError(
            f"{entry.folder / 'metrics.json'}: has no {error}: train the model anew or restore the file"
        ) from None
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        raise CardError(
            f"{entry.folder}: metrics.json or config.json has a value of the wrong kind ({error}): restore it"
        ) from None


def _card(entry: Entry) -> str:
    metrics = entry.metrics
    kind = metrics["model"].partition("_")[0]
    family = _FAMILIES.get(kind) or _FAMILIES.get(kind.rstrip("0123456789"), metrics["model"])
    source = metrics.get("finetuned_from")  # there and null in a run of `finetune` that began with random weights
    how = f"Fine-tuned from `{_plain(source)}`" if source else "Trained"
    return f"""\
---
{_metadata(entry)}
---
{GENERATED}

# {_plain(entry.name)}

{family}. {how} on {_plain(entry.dataset)} with
gode_zoo, which has to be installed to load it.

{_rows("Model", _facts(entry, family))}

## {"Deviance" if entry.has_outcomes else "Accuracy"}

{_rows(f"{_plain(entry.dataset)}, {_plain(metrics['split'])} set", _figures(entry))}

{_selection(metrics)}

## Use

{_use(entry)}
## Training

{_rows("Training", _training(entry))}
{_plot(entry)}
`recipe.yaml`, with every default written out (`train_log.csv` has each epoch):

```yaml
{entry.recipe.rstrip().replace("```", "'''")}
```

## Intended use and limits

For research and teaching on neural ODEs, as a baseline, and as a start for fine-tuning on small images.
{_limits(entry)}

## Citation

```bibtex
{CITATION}
```
"""


def _metadata(entry: Entry) -> str:
    """The YAML between the dashes: what the Hub indexes."""
    from huggingface_hub import EvalResult, ModelCardData

    metrics = entry.metrics
    if entry.has_outcomes:
        measured = _outcomes.evaluation(entry)
    else:
        measured = {
            "task_type": "image-classification",
            "metric_type": "accuracy",
            "metric_name": "Top-1 accuracy (%)",
            "metric_value": round(entry.accuracy, 4),
        }
    result = EvalResult(
        dataset_type=entry.hub_dataset or "imagefolder",
        dataset_name=entry.dataset,
        dataset_split=metrics["split"],
        **measured,
    )
    tags = [measured["task_type"], "timm", "gode_zoo", *(["neural-ode"] if metrics["solver"] else [])]
    return ModelCardData(
        license="apache-2.0",
        library_name="timm",
        pipeline_tag=None if entry.has_outcomes else "image-classification",  # of outcomes the Hub has none
        tags=tags,
        datasets=[entry.hub_dataset] if entry.hub_dataset else None,
        metrics=[measured["metric_type"]],
        model_name=entry.name,
        eval_results=[result],
    ).to_yaml()


# ---------------------------------------------------------------------------------------------------------------------
# Tables of facts


def _facts(entry: Entry, family: str) -> list[tuple[str, str]]:
    return [
        ("Architecture", family),
        ("Parameters", f"{entry.metrics['parameters']:,}"),
        ("Solver", solver_text(entry.metrics["solver"])),
        ("Input", _input(entry.config["pretrained_cfg"])),
        _outcome_facts(entry) if entry.has_outcomes else ("Classes", _classes(entry.config)),
        ("Licence", "Apache-2.0"),
    ]


def _figures(entry: Entry) -> list[tuple[str, str]]:
    last, split = entry.metrics["last"], _plain(entry.metrics["split"])
    if entry.has_outcomes:
        best = ("Deviance an outcome, best epoch", _best(entry.metrics))
        return [*_outcomes.figures(entry), best, ("Runs", _seeds(entry.metrics))]
    which = "Error of these weights" if "finetuned_from" in entry.metrics else "Error, last epoch: these weights"
    mirrored = entry.metrics.get("mirrored")
    return [
        (which, f"**{_score(last)}**, epoch {last['epoch']}"),
        (f"Standard error of that, from the size of the {split} set", f"{entry.standard_error:.2f} points"),
        *(
            [("The same with test-time augmentation: mean logits of image and mirror image", _score(mirrored))]
            if mirrored
            else []
        ),
        ("Error, best epoch", _best(entry.metrics)),
        ("Runs", _seeds(entry.metrics)),
    ]


def _outcome_facts(entry: Entry) -> tuple[str, str]:
    what, value = _outcomes.facts(entry)
    return what, _plain(value)


def _training(entry: Entry) -> list[tuple[str, str]]:
    metrics = entry.metrics
    averaged = ", moving average of weights" if metrics["ema"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in metrics["versions"].items() if version)
    return [
        ("Recipe", f"`{_plain(entry.name)}`, {metrics['epochs']} epochs{averaged}"),
        ("Hardware", _plain(hardware_text(metrics["hardware"]))),
        ("Time", _duration(metrics["wall_clock_seconds"])),
        ("Commit", _commit(metrics["git"])),
        *(
            ("Resumed", f"from step {later['from_step']:,}: {_commit(later['git'])}{_on(later.get('hardware'))}")
            for later in metrics.get("resumed_with", ())
        ),
        ("Versions, when it was finished", _plain(versions)),
        ("SHA-256 of model.safetensors", f"`{metrics['sha256']}`"),
    ]


def _on(hardware: dict[str, Any] | None) -> str:
    """Where a resumed run went on; nothing where that was not recorded."""
    return f", on {_plain(hardware_text(hardware))}" if hardware else ""


def _rows(title: str, rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join([f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _plain(text: Any) -> str:
    """`text` as one line that neither ends a cell of a table nor begins markup: names of users' own data get here."""
    line = " ".join(str(text).split())
    for mark, harmless in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("`", "&#96;"), ("[", "&#91;")):
        line = line.replace(mark, harmless)
    return line


def _classes(config: dict[str, Any]) -> str:
    names = config.get("label_names") or []
    if not names:
        return str(config["num_classes"])
    shown = ", ".join(_plain(name) for name in names[:_SHOWN_CLASSES])
    more = len(names) - _SHOWN_CLASSES
    return f"{shown} and {more:,} more, which `config.json` names" if more > 0 else shown


def _score(score: dict[str, Any]) -> str:
    return f"{score['error']:.2f} % ({score['total'] - score['correct']:,} wrong of {score['total']:,})"


def _best(metrics: dict[str, Any]) -> str:
    best = metrics["best"]
    if not best:
        return f"not measured: {_plain(metrics['best_reason'])}"
    if "family" in metrics:
        figure = _outcomes.best_text(best)
    else:
        figure = _score(best) if "total" in best else f"{best['val_error']:.2f} % of the held-out images"
    return f"{figure}, epoch {best['epoch']}; selected by the {_plain(best['selected_by']).removeprefix('the ')}"


def _seeds(metrics: dict[str, Any]) -> str:
    seeds = ", ".join(str(seed) for seed in metrics["seeds"])
    if metrics["num_seeds"] == 1:
        return f"one, seed {seeds}: how much the error varies from run to run was not measured"
    errors = metrics.get("seed_errors")
    if not errors:
        return f"{metrics['num_seeds']}, seeds {seeds}: the error of each was not recorded"
    spread = f"{mean_and_spread(errors)} % (mean ± standard deviation)"
    chosen = f"; these weights: {metrics['seed_chosen_by']}" if "seed_chosen_by" in metrics else ""
    return (
        f"{metrics['num_seeds']}, seeds {seeds}: error {spread}, each {', '.join(f'{e:.2f}' for e in errors)}{chosen}"
    )


def _selection(metrics: dict[str, Any]) -> str:
    """Which split chose these weights, and what that means for the figure."""
    if "finetuned_from" in metrics:
        if metrics["split"] == "validation":
            return (
                "These images were held out of the training, but stopping and choosing the weights may have looked at\n"
                "them: expect a somewhat higher error on new images."
            )
        return "The weights were chosen without this split."
    paper = "the paper's" if metrics["tag"] == "paper" else "not the paper's"
    if metrics["tag"].startswith("paper-"):  # as `gode-zoo reproduce` tags shorter runs
        paper = "the paper's but for its epochs or precision"
    return (
        "The weights are those of the last epoch, whatever its error: no split was used to choose them. The paper's own\n"
        f"figures are in its Table 1; this recipe is {paper}."
    )


def solver_text(solving: dict[str, Any] | None) -> str:
    """Solver, grid or tolerances, and span in words."""
    if solving is None:
        return "none"
    t0, t1 = (f"{t:g}" for t in solving["t_span"])
    steps = solving.get("num_steps")
    if isinstance(steps, list):
        how = f"{', '.join(map(str, steps))} steps"
    elif steps is not None:
        how = f"{steps} steps of {solving['step_size']:g}"
    else:
        how = f"rtol {solving['rtol']:g}, atol {solving['atol']:g}"
    if "stages" in solving:
        how += f" in {'its' if isinstance(steps, list) else 'each of'} {solving['stages']} stages"
    return f"{solving['solver']}, {how}, t from {t0} to {t1}"


def _input(cfg: dict[str, Any]) -> str:
    channels, height, width = cfg["input_size"]
    colour = "grey" if channels == 1 else "RGB" if channels == 3 else f"{channels} channels"
    mean, std = (", ".join(f"{value:g}" for value in cfg[key]) for key in ("mean", "std"))
    return f"{height}×{width}, {colour}, in [0, 1], then normalised: mean {mean}, standard deviation {std}"


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
# Sections


def _plot(entry: Entry) -> str:
    """The picture of the log; nothing where nothing was logged."""
    if plot_log(entry) is None:
        return ""
    return f"\n![Training loss and error of each of {len(entry.log)} epochs: train_log.csv drawn](train_log.svg)\n"


def _limits(entry: Entry) -> str:
    if entry.has_outcomes:
        return _outcomes.limits(entry)
    known = _LIMITS.get(
        entry.metrics["dataset"], "It knows the classes above and no others: any image gets one of them."
    )
    return (
        f"{known}\n"
        "Its probabilities were not calibrated, and no robustness or bias study was made: decide nothing about people by it."
    )


def _use(entry: Entry) -> str:
    """How to load, measure and fine-tune it; a weight of the zoo by its name, any other by its repository's."""
    size = ", ".join(str(n) for n in entry.config["pretrained_cfg"]["input_size"])
    classes = entry.config["num_classes"]
    if entry.bundled:
        name, where = (
            entry.name,
            "by this name from the package; from a Hub repository of these files as `hf-hub:ORG/NAME`",
        )
    else:
        name, where = "hf-hub:ORG/NAME", "with the name of this repository for ORG/NAME"
    measured = (
        f"Measure the figure above again, and fail where it differs: `gode-zoo evaluate {name} --check`"
        f"{', or `--mirror --check` for the one with test-time augmentation' if 'mirrored' in entry.metrics else ''}."
        if entry.metrics["split"] == "test"
        else f"`gode-zoo download {name.removeprefix('hf-hub:')} --to FOLDER` fetches it and checks its SHA-256."
    )
    solver = ""
    if entry.metrics["solver"]:
        solver = f"""\
Another solver or grid needs no training, but has an error of its own:
`timm.create_model("{name}", pretrained=True, solver="rk4", num_steps=10)`.
"""
    if entry.has_outcomes:
        output, finetuning = _outcomes.output_code(entry), _outcomes.finetuning_code(entry, name)
    else:
        output, finetuning = f"probabilities = model(images).softmax(dim=1)  # (2, {classes})", _finetuning_code(name)
    return f"""\
It loads {where}:

```python
import timm, torch
import gode_zoo  # registers the models: without it timm says "Unknown model"

model = timm.create_model("{name}", pretrained=True).eval()
images = torch.rand(2, {size})  # in [0, 1], then normalised as above
{output}
```

{finetuning}

{measured}
{solver}"""


def _finetuning_code(name: str) -> str:
    return f"""\
Fine-tune it on classes of your own: the head is made anew, everything else starts from these weights.

```python
model = timm.create_model("{name}", pretrained=True, num_classes=5)
for parameter in model.stem.parameters():  # optional: keep the stem as it is
    parameter.requires_grad_(False)
optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.01, momentum=0.9)
```"""
