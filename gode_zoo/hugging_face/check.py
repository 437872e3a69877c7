"""`gode-zoo hub check`: is every folder under hub/ what may go to the Hub?

The staged truth of what is published is the folder itself. It is checked file by file: the right files and no others,
hashes, a configuration that builds the model, weights that load and compute, figures that agree with the model, the
recipe and the card.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import yaml

from ..cards import CardError, card, plot_log, read_entry
from ..families import Categorical
from ..metrics import solving
from ..models._pretrained import CHECKOUT, WeightsError
from .folder import PUBLISHED_FILES, build_empty, check_names, check_weights, read_config

__all__ = ["CheckedFolder", "check_folder", "check_hub"]

_LOCAL = ("checkpoint.pt", "initial_kernels.safetensors")  # of a run: publishing leaves them out


class CheckedFolder(NamedTuple):
    """What `check_hub` found in one folder.

    Attributes:
        problems: one sentence each; none is good.
        unfinished: a training is under way here: there is a checkpoint but no result yet, so nothing to publish.
    """

    folder: Path
    problems: list[str]
    unfinished: bool = False


def check_hub(hub: Path | None = None) -> Iterator[CheckedFolder]:
    """Check every folder of `hub`, by default the checkout's; or `hub` itself where it is such a folder.

    Raises:
        ValueError: there is no such folder, or none in it.
    """
    if hub is None:
        if not (CHECKOUT / "pyproject.toml").is_file():
            raise ValueError("hub/ is checked in a checkout of gode_zoo, this is an installed package: give the folder")
        hub = CHECKOUT / "hub"
    if not hub.is_dir():
        raise ValueError(f"{hub}: is no folder: give the one that holds <arch>.<tag>/")
    one = (hub / "config.json").is_file() or (hub / "metrics.json").is_file()
    folders = [hub] if one else sorted(path for path in hub.iterdir() if path.is_dir())
    if not folders:
        raise ValueError(f"{hub}: has no folder <arch>.<tag>/: there is nothing to check")
    for folder in folders:
        if (folder / "checkpoint.pt").is_file() and not (folder / "metrics.json").is_file():
            yield CheckedFolder(folder, [], unfinished=True)
        else:
            yield CheckedFolder(folder, check_folder(folder, staged=True))


def check_folder(folder: Path, *, staged: bool) -> list[str]:
    """What keeps a folder from being published; an empty list where nothing does.

    Args:
        staged: it lies under hub/, ready to be pushed as it is: its name is that of the weight, card and plot are the
            generated ones, and there are no other files. Else it is the folder of a run, of which what is to be
            published is taken, with a card made anew.
    """
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    problems = [f"{folder / name}: is a link: put the file itself there" for name in _links(folder)]
    needed = [name for name in PUBLISHED_FILES if staged or name not in ("README.md", "train_log.svg")]
    problems += [f"{folder / name}: is missing" for name in needed if name not in present and name != "train_log.svg"]
    if staged:
        others = sorted(present - {*PUBLISHED_FILES, *_LOCAL})
        if others:
            shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
            problems.append(f"{folder}: has files that are not published: {shown}: remove them")
    if problems:
        return problems
    try:
        check_names(present, str(folder))
        config = read_config(folder / "config.json", str(folder))
        check_weights(folder / "model.safetensors", build_empty(config, str(folder)))
        entry = read_entry(folder, bundled=staged)
        text, plot = card(entry), plot_log(entry)
    except (WeightsError, CardError) as error:
        return [str(error)]
    problems += _disagreements(folder, entry.metrics, config, entry.recipe)
    if staged:
        if folder.name != entry.name:
            problems.append(f"{folder}: metrics.json is about {entry.name}: rename the folder or restore the file")
        for name, content in (("README.md", text), ("train_log.svg", plot)):
            path = folder / name
            if (path.read_bytes() if path.is_file() else None) != (None if content is None else content.encode()):
                problems.append(f"{path}: is not what metrics.json and train_log.csv say: run `make cards`")
    return problems


def _links(folder: Path) -> list[str]:
    return [name for name in PUBLISHED_FILES if (folder / name).is_symlink()]


def _disagreements(folder: Path, metrics: dict[str, Any], config: dict[str, Any], recipe: str) -> list[str]:
    """Where the loaded model is not what metrics.json says of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an adjoint on a fixed grid: a matter of training
        try:
            model = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
        except (RuntimeError, ValueError, TypeError) as error:
            return [f"{folder}: does not load: {' '.join(str(error).split())[:300]}"]
    cfg = config["pretrained_cfg"]
    pairs = [
        ("model", metrics["model"], "config.json has architecture", config["architecture"]),
        ("tag", metrics["tag"], "config.json has", cfg.get("tag")),
        ("parameters", metrics["parameters"], "the model has", sum(p.numel() for p in model.parameters())),
        ("solver", _grid(metrics["solver"]), "the model has", _grid(solving(model))),
    ]
    try:
        trained = yaml.safe_load(recipe)
        pairs.append(("model", metrics["model"], "recipe.yaml has", trained["model"]))
    except (yaml.YAMLError, KeyError, TypeError) as error:
        return [f"{folder / 'recipe.yaml'}: cannot be read ({error!r}): restore it"]
    problems = [f"{folder / 'metrics.json'}: {key} is {a!r}, but {who} {b!r}" for key, a, who, b in pairs if a != b]
    names, family = config.get("label_names"), getattr(model, "family", None)
    outcomes = family is not None and not isinstance(family, Categorical)
    if metrics.get("family") != (family.to_dict() if family is not None and outcomes else None):
        problems.append(
            f"{folder / 'metrics.json'}: family is {metrics.get('family')!r}, but the model has {family!r}: restore one"
        )
    elif outcomes and config.get("num_classes") != 1:
        problems.append(f"{folder / 'config.json'}: num_classes is {config.get('num_classes')!r}, an outcome has 1")
    elif not outcomes and (not names or len(names) != config.get("num_classes")):
        problems.append(
            f"{folder / 'config.json'}: {len(names or ())} label_names for {config.get('num_classes')} classes"
        )
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        problems.append(f"{folder / 'model.safetensors'}: has weights that are not finite")
    with torch.no_grad():
        if not model(torch.zeros(1, *cfg["input_size"])).isfinite().all():
            problems.append(f"{folder}: the model's output for a black image is not finite")
    return problems


def _grid(how: dict[str, Any] | None) -> dict[str, Any] | None:
    keys = ("solver", "t_span", "num_steps", "rtol", "atol")
    return None if how is None else {key: how[key] for key in keys if key in how}
