"""What the parts of gode3_cifar10_xs give: short runs of one variant each, measured on held-out training images.

    python results/ablation.py [--out results] [--work runs/ablation] [--epochs 1] [--only base …]

Every run is the same short recipe (RECIPE below) on 45,000 images of CIFAR-10's training set; the error is that of the other
5,000 after the last epoch. The test set is not read. A row is written when its run is done, and a row that is there is not
run again; a run that was stopped goes on. It writes ablation.csv and ablation.md.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import Any

import timm

from gode_zoo.recipes import Recipe, recipe_from_dict
from gode_zoo.run_folder import atomic_write
from gode_zoo.train import train

RECIPE: dict[str, Any] = {
    "model": "gode3_cifar10_xs",
    "dataset": "torch/cifar10",
    "batch_size": 64,
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "schedule": {"name": "onecycle", "warmup": 0.25},
    "augment": {"crop_padding": 4, "alternating_flip": True},
    "label_smoothing": 0.1,
    "amp": "bf16",
    "channels_last": True,
    "holdout": 0.1,
}
# What differs from gode3_cifar10_xs (24, 40, 48 channels; 3 linear B-splines, clamped; T = 3; 6 Euler steps a stage).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("as it is", {}),
    "T1": ("T = 1", {"t_span": [0.0, 1.0]}),
    "T6": ("T = 6: steps of size 1, as a residual net's", {"t_span": [0.0, 6.0]}),
    "T1-group": ("T = 1, spline group norm", {"t_span": [0.0, 1.0], "norm": "spline_group"}),
    "group": ("spline group norm", {"norm": "spline_group"}),
    "constant-norm": ("group norm shared by all times", {"norm": "group"}),
    "uniform": ("uniform knots, not clamped; group norm shared by all times", {"norm": "group", "knots": "uniform"}),
    "constant": (
        "constant weights, wider (36, 60, 80) to as many parameters",
        {"num_basis": 1, "degree": 0, "channels": [36, 60, 80]},
    ),
    "residual": (
        "no ODE: 3 residual blocks a stage (piecewise constant, 3 steps of size 1)",
        {"degree": 0, "num_steps": 3, "num_statistics": 3},
    ),
    "k0": ("degree 0", {"degree": 0}),
    "k2": ("degree 2", {"degree": 2}),
    "steps3": ("3 steps, as many as B-splines", {"num_steps": 3, "num_statistics": 3}),
    "coarse": ("3 steps, 6 in the last third of the epochs", {"num_steps": 3}),
    "steps12": ("12 steps", {"num_steps": 12, "num_statistics": 12}),
    "m2": ("2 B-splines, channels 16, 40, 64", {"num_basis": 2, "channels": [16, 40, 64]}),
    "statistics3": ("running statistics in the 3 B-splines of the weights", {"num_statistics": 3}),
}
COLUMNS = ["variant", "what", "parameters", "epochs", "seed", "held_out_error", "train_loss", "step_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=VARIANTS)
    args = parser.parse_args()
    file = args.out / "ablation.csv"
    for name in args.only or [name for name in VARIANTS if name != "coarse" or args.epochs > 1]:
        if (name, str(args.epochs), "0") not in {(row["variant"], row["epochs"], row["seed"]) for row in read(file)}:
            row = run(name, args.epochs, args.work / f"{name}-{args.epochs}")
            write(args.out, [*read(file), row])  # read again: another process may have added rows of its own
    write(args.out, read(file))


def read(file: Path) -> list[dict[str, Any]]:
    """The rows so far."""
    return list(csv.DictReader(file.open())) if file.exists() else []


def recipe_of(name: str, epochs: int) -> Recipe:
    """The short recipe of one variant."""
    recipe = {**RECIPE, "tag": f"ablation-{name}", "epochs": epochs, "model_args": VARIANTS[name][1]}
    if name == "coarse":
        if epochs < 2:
            raise SystemExit(
                f"--epochs {epochs}: coarse adds its steps after two thirds of the epochs, so give at least 2"
            )
        recipe["refine"] = [{"epoch": round(2 * epochs / 3), "num_steps": 6}]
    return recipe_from_dict(recipe)


def run(name: str, epochs: int, folder: Path) -> dict[str, Any]:
    """One training run, gone on with where it was stopped."""
    recipe = recipe_of(name, epochs)
    last = train(recipe, folder, resume=(folder / "checkpoint.pt").exists()).history[-1]
    model = timm.create_model(recipe.model, device="meta", **recipe.model_args)
    return {
        "variant": name,
        "what": VARIANTS[name][0],
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": epochs,
        "seed": recipe.seed,
        "held_out_error": f"{last['val_error']:.2f}",
        "train_loss": f"{last['train_loss']:.4f}",
        "step_seconds": f"{last['step_seconds']:.3f}",
    }


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """The rows, and a table of them in which the best of each length comes first."""
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    atomic_write(out / "ablation.csv", lambda file: file.write(text.getvalue().encode()))
    head = [
        "# What the parts of gode3_cifar10_xs give",
        "",
        "Error in % of 5,000 held-out training images after a short run of each variant, one seed; the test set was not read.",
        "Runs this short rank parts roughly: differences below a point are within what another seed does. Written by",
        "`python results/ablation.py`, whose head says how; rows are in ablation.csv.",
        "",
        "| variant | parameters | epochs | held-out error | training loss |",
        "|---|---|---|---|---|",
    ]
    ordered = sorted(rows, key=lambda row: (-int(row["epochs"]), float(row["held_out_error"])))
    head += [
        f"| {row['what']} | {int(row['parameters']):,} | {row['epochs']} | {row['held_out_error']} | "
        f"{row['train_loss']} |"
        for row in ordered
    ]
    atomic_write(out / "ablation.md", lambda file: file.write(("\n".join(head) + "\n").encode()))


if __name__ == "__main__":
    main()
