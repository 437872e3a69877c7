"""Finished runs into `hub/`, where the zoo's weights are: of several seeds the median one, chosen without the test set.

    python -m gode_zoo.bundle RUN [RUN ...]     RUN: folders of one recipe with different seeds

The published seed is the one with the median training loss of the last epoch (of an even number, the better of the two in
the middle). Its files go into `hub/<model>.<tag>`; metrics.json then names all seeds with the error of each. The recipe in
gode_zoo/recipes of that name gets the runs as its line of evidence. What is left to do: `make cards`, and
`gode-zoo evaluate NAME --check`.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .metrics import mean_and_spread
from .models._pretrained import CHECKOUT, WeightsError, verify_weights
from .run_folder import atomic_write

__all__ = ["BundleError", "bundle", "evidence", "main"]

_FILES = ("config.json", "model.safetensors", "recipe.yaml", "train_log.csv", "initial_kernels.safetensors")


class BundleError(ValueError):
    """The runs are unfinished, damaged, or not of one recipe; or there are weights already."""


def bundle(runs: Sequence[Path], root: Path = CHECKOUT, *, replace: bool = False) -> Path:
    """Copy the median run into `root`/hub; returns its folder there.

    Args:
        runs: folders of finished runs, of one recipe but for the seed.
        root: the checkout.
        replace: put them in the place of weights that are there.

    Raises:
        BundleError: see there; nothing was written.
    """
    if not runs:
        raise BundleError("no runs: give the folder of a finished run, or of several seeds")
    found = sorted((_read(run) for run in runs), key=lambda run: run["seed"])
    first = found[0]
    for other in found[1:]:
        if other["recipe"] != first["recipe"]:
            raise BundleError(
                f"{other['folder']}: its recipe differs from that of {first['folder']} in more than the seed"
            )
    seeds = [run["seed"] for run in found]
    if len(set(seeds)) < len(seeds):
        raise BundleError(f"seeds {', '.join(map(str, seeds))}: each must be there once")
    chosen = sorted(found, key=lambda run: run["train_loss"])[(len(found) - 1) // 2]
    metrics = chosen["metrics"]
    if len(found) > 1:
        errors = [run["metrics"]["last"]["error"] for run in found]
        metrics = metrics | {"seeds": seeds, "num_seeds": len(seeds), "seed_errors": errors}
        metrics["seed_chosen_by"] = "the median training loss of the last epoch"
    out = root / "hub" / f"{metrics['model']}.{metrics['tag']}"
    if out.exists() and not replace:
        raise BundleError(f"{out}: is there already; --replace puts these weights in its place")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".bundle-") as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        for name in _FILES:
            if (chosen["folder"] / name).is_file():
                shutil.copy(chosen["folder"] / name, new / name)
        (new / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        if out.exists():
            out.rename(old)
        new.rename(out)
    _state_evidence(root / "gode_zoo" / "recipes" / f"{out.name}.yaml", evidence(metrics))
    return out


def evidence(metrics: dict[str, Any]) -> str:
    """The line at the head of a recipe that says what it gave, from the metrics.json of bundled weights."""
    seeds = metrics["num_seeds"]
    machines = [metrics["hardware"], *(later.get("hardware") for later in metrics["resumed_with"])]
    where = ", then ".join(dict.fromkeys(_where(machine) for machine in machines if machine))  # older runs do not say
    runs = f"{seeds} seed{'s' if seeds > 1 else ''}"
    error = f"{metrics['last']['error']:.2f} % test error"
    if seeds > 1:
        error += f", all seeds {mean_and_spread(metrics['seed_errors'])} %"
    return f"# Evidence: {metrics['epochs']} epochs, {runs}, {where}: {error}.\n"


def _where(hardware: dict[str, Any]) -> str:
    """The machine in the words of a recipe's head, which needs less than `provenance.hardware_text` says."""
    if hardware["device"] != hardware["cpu"]:
        return str(hardware["device"])
    return f"{hardware['threads']} core{'s' if hardware['threads'] > 1 else ''} of an {hardware['cpu']}"


def _read(folder: Path) -> dict[str, Any]:
    """Of one finished run: its folder, metrics, recipe without the seed, seed, and last training loss."""
    try:
        verify_weights(folder / "model.safetensors", "the run is damaged")
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        with (folder / "train_log.csv").open(newline="", encoding="utf-8") as file:
            last = list(csv.DictReader(file))[-1]
        found = {"folder": folder, "metrics": metrics, "seed": recipe.pop("seed"), "recipe": recipe}
        return found | {"train_loss": float(last["train_loss"])}
    except (OSError, ValueError, LookupError, AttributeError, yaml.YAMLError, WeightsError) as error:
        raise BundleError(f"{folder}: is not the folder of a finished run ({error})") from error


def _state_evidence(recipe: Path, line: str) -> None:
    """Put `line` where the recipe states its evidence; nothing where no recipe has this name."""
    if recipe.is_file():
        lines = recipe.read_text(encoding="utf-8").splitlines(keepends=True)
        text = "".join(line if old.startswith("# Evidence: ") else old for old in lines)
        atomic_write(recipe, lambda file: file.write(text.encode()))


def main(argv: Sequence[str] | None = None, root: Path = CHECKOUT) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gode_zoo.bundle", description="Put finished runs into hub/.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run; of each seed one")
    parser.add_argument("--replace", action="store_true", help="put them in the place of weights that are there")
    given = parser.parse_args(argv)
    try:
        out = bundle(given.runs, root, replace=given.replace)
    except BundleError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {out}; now: make cards && gode-zoo evaluate {out.name} --check && gode-zoo hub check")
    return 0


if __name__ == "__main__":
    sys.exit(main())
