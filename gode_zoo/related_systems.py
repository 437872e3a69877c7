"""Related systems side by side, from a short run of each on the same data: results/related_systems.csv and .md.

    python -m gode_zoo.related_systems --steps 200     train each, measure, write both files anew

Every row is one recipe of gode_zoo/recipes (or, for the references, the same settings), stopped after so many updates, and
measured on MNIST's whole test set. These are no published accuracies: they show that each system trains, and what it costs.

Columns: basis of time; stages (ODE blocks); parameters; accuracy in % of 10,000 test images after the updates; NFE,
evaluations of the vector fields for an image; memory, what autograd keeps for the backward pass of a batch of 64.
"""

import argparse
import csv
import dataclasses
import io
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.model_config import resolve_input_data_config
from torch import Tensor, nn

from . import data as zoo_data
from .evaluate import count_correct
from .layers import spline_coefficients
from .ode_block import solutions
from .recipes import Recipe, load_recipe
from .run_folder import atomic_write, read_checkpoint
from .splines import BSplineBasis
from .train import train

__all__ = ["SYSTEMS", "System", "cost", "measure", "render", "write"]

_logger = logging.getLogger(__name__)
COLUMNS = ("system", "model", "basis", "stages", "parameters", "accuracy", "updates", "nfe", "memory_mb")


@dataclasses.dataclass(frozen=True)
class System:
    """A row: its name, the recipe whose settings it takes, and what differs from that recipe."""

    name: str
    recipe: str
    model: str | None = None
    model_args: dict[str, Any] | None = None

    def load(self) -> Recipe:
        """The recipe of the run."""
        recipe = load_recipe(self.recipe)
        model = recipe.model if self.model is None else self.model
        model_args = recipe.model_args if self.model_args is None else self.model_args
        return dataclasses.replace(recipe, model=model, model_args=model_args)


_GALERKIN = "galerkin_mnist.short"
SYSTEMS = (
    System("Neural-GODE (Yu et al.)", _GALERKIN, "gode_mnist_m4", {}),
    System("Neural-ODE (Chen et al.)", _GALERKIN, "odenet_mnist", {}),
    System("ResNet (He et al.)", _GALERKIN, "resnet6_mnist", {}),
    System("ContinuousNet (Queiruga et al.)", "continuousnet_mnist.short"),
    System("Stateful ODE-Net (Queiruga et al.)", "statefulnet_mnist.short"),
    System("SpliNet (Günther et al.)", "splinet_mnist.short"),
    *(
        System(f"Galerkin, {basis} (Massaroli et al.)", _GALERKIN, None, {"basis": basis, "num_basis": 5})
        for basis in ("fourier", "polynomial", "chebyshev", "rbf")
    ),
    System("Augmented neural ODE (Dupont et al.)", "anode_mnist.short"),
    System("ANODEV2 (Zhang et al.)", "anodev2_mnist.short"),
)


def measure(
    system: System, steps: int, *, data_dir: str | Path | None = None, device: str | torch.device | None = None
) -> dict[str, Any]:
    """Train a system for ``steps`` updates of its recipe, and measure it.

    Returns:
        One value for each of ``COLUMNS``.
    """
    recipe = system.load()
    with tempfile.TemporaryDirectory() as folder:
        run = train(recipe, folder, data_dir=data_dir, device=device, max_steps=steps, progress=False)
        state = read_checkpoint(Path(folder, "checkpoint.pt"), recipe)
    model = timm.create_model(recipe.model, **recipe.model_args)
    model.load_state_dict(state["model"])
    inputs = resolve_input_data_config(model=model)
    test = zoo_data.load_dataset(recipe.dataset, "test", data_dir=data_dir, input_size=tuple(inputs["input_size"]))
    score = count_correct(model, test, inputs["mean"], inputs["std"])
    return {
        "system": system.name,
        "model": recipe.model,
        "basis": describe_basis(model),
        **cost(model, inputs["input_size"], recipe.batch_size),
        "accuracy": f"{100 * score.correct / score.total:.2f}",
        "updates": run.step,
    }


def describe_basis(model: nn.Module) -> str:
    """The basis of time of a model's weights, in words."""
    basis = next((basis for _, _, basis in spline_coefficients(model)), None)
    if isinstance(basis, BSplineBasis):
        return f"{basis.num_basis} B-splines of degree {basis.degree}, {basis.knot_kind}"
    if basis is not None:
        return f"{basis.num_basis} functions, {type(basis).__name__.removesuffix('Basis')}"
    if hasattr(getattr(getattr(model, "block", None), "field", None), "norm3"):
        return "constant, t as a channel"
    kinds = {"AugmentedODENet": "constant, t as a channel", "ANODEV2": "an ODE of their own"}
    return kinds.get(type(model).__name__, "none: one weight a block")


def cost(model: nn.Module, input_size: Sequence[int], batch_size: int) -> dict[str, int | str]:
    """Stages, parameters, NFE of an image, and MB that autograd keeps of a training batch besides the parameters."""
    solved = solutions(model.eval(), torch.rand(1, *input_size))

    model.train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(torch.rand(batch_size, *input_size)).sum()
    del loss
    return {
        "stages": len(solved),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "nfe": sum(solution.nfe for solution in solved),
        "memory_mb": f"{sum(kept.values()) / 2**20:.1f}",
    }


def render(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of related_systems.csv as a page of Markdown."""
    updates = sorted({int(row["updates"]) for row in rows})
    lines = [
        "# Related systems",
        "",
        "<!-- Written by `python -m gode_zoo.related_systems` from related_systems.csv: do not edit. -->",
        "",
        f"**Short runs:** {' or '.join(map(str, updates))} updates of 64 images on MNIST, one seed each, on a CPU; not what "
        "the systems reach when they are trained to the end. Accuracy is that of all 10,000 test images, in %. NFE: "
        "evaluations of the vector fields for an image. Memory: MB that autograd keeps for the backward pass of a batch of "
        "64. Each model is an entrypoint of timm, each run a recipe (`<model>.short`) in gode_zoo/recipes; the first three "
        "rows are references with the settings of galerkin_mnist.short. The learning rate is that of each recipe (0.02 for the "
        "augmented neural ODE, 0.05 for the others), and nothing was tuned, so the accuracies rank nothing.",
        "",
        "| system | model | basis of the weights in time | stages | parameters | accuracy % | NFE | memory MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = (
            row["system"],
            f"`{row['model']}`",
            row["basis"],
            row["stages"],
            f"{int(row['parameters']):,}",
            row["accuracy"],
            row["nfe"],
            row["memory_mb"],
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def write(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write related_systems.csv and related_systems.md."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "related_systems.csv", lambda file: file.write(text.getvalue().encode()))
    atomic_write(folder / "related_systems.md", lambda file: file.write(render(rows).encode()))


def main() -> None:
    """Measure every system and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200, help="updates of each run")
    parser.add_argument("--data-dir", type=Path, help="folder of datasets")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the two files")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = []
    for system in SYSTEMS:
        rows.append(measure(system, options.steps, data_dir=options.data_dir, device="cpu"))
        _logger.info("%s", rows[-1])
    write(rows, options.out)


if __name__ == "__main__":
    main()
