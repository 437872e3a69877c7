"""The paper's tables as data: what was run, and the figures that were reported.

Source: Yu, Miao and Wu, "Neural Generalized Ordinary Differential Equations with Layer-Varying Parameters", Tables 1–4.
Errors are in % of the test set after the last epoch of one run; seconds are those of an iteration on a V100.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["EPOCHS", "TABLES", "PaperRow"]

EPOCHS = 160


@dataclass(frozen=True)
class PaperRow:
    """One row: a model of the zoo with its keywords, and the paper's figures for it.

    Attributes:
        labels: the row's first columns, as the paper names them.
        model: timm's name.
        model_args: keywords that differ from the model's own.
        error: test error in %.
        seconds: of an iteration.
    """

    labels: dict[str, str]
    model: str
    error: float
    seconds: float
    model_args: dict[str, Any] = field(default_factory=dict)

    @property
    def run_name(self) -> str:
        """A folder's name: rows that are the same run, such as m = 8 in Tables 1, 2 and 4, have the same."""
        return "-".join([self.model, *(f"{key}={_plain(value)}" for key, value in sorted(self.model_args.items()))])


def _plain(value: Any) -> str:
    return "_".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)


def _table1(data: str, name: str, model: str, error: float, seconds: float) -> PaperRow:
    return PaperRow({"data": data, "model": name}, model, error, seconds)


def _gode(labels: dict[str, str], error: float, seconds: float, **model_args: Any) -> PaperRow:
    """A variant of gode_cifar10_m8; keywords at its own values are left out."""
    own = {"num_basis": 8, "degree": 1, "t_span": (0.0, 1.0), "num_convs": 2}
    differing = {key: value for key, value in model_args.items() if value != own[key]}
    return PaperRow(labels, "gode_cifar10_m8", error, seconds, differing)


def _table2(m: int, k: int, end: int, error: float, seconds: float) -> PaperRow:
    labels = {"m": str(m), "k": str(k), "T": str(end)}
    return _gode(labels, error, seconds, num_basis=m, degree=k, t_span=(0.0, float(end)))


def _table3(
    data: str, name: str, model: str, dopri5: tuple[float, float], euler: tuple[float, float]
) -> list[PaperRow]:
    labels = {"data": data, "model": name}
    return [
        PaperRow({**labels, "solver": "dopri5"}, model, *dopri5, {"solver": "dopri5"}),
        PaperRow({**labels, "solver": "euler"}, model, *euler),
    ]


TABLES: dict[str, tuple[PaperRow, ...]] = {
    "table1": (
        _table1("MNIST", "Neural-GODE", "gode_mnist_m4", 0.31, 0.035),
        _table1("MNIST", "ResNet (6)", "resnet6_mnist", 0.33, 0.012),
        _table1("MNIST", "Neural-ODE", "odenet_mnist", 0.40, 0.038),
        _table1("CIFAR-10", "Neural-GODE", "gode_cifar10_m8", 13.49, 0.038),
        _table1("CIFAR-10", "ResNet (20)", "resnet20_cifar10", 13.47, 0.026),
        _table1("CIFAR-10", "Neural-ODE", "odenet_cifar10", 15.32, 0.041),
    ),
    "table2": (
        _table2(2, 1, 1, 14.68, 0.039),
        _table2(4, 1, 1, 14.19, 0.038),
        _table2(6, 1, 1, 13.97, 0.037),
        _table2(8, 1, 1, 13.49, 0.038),
        _table2(10, 1, 1, 13.65, 0.037),
        _table2(12, 1, 1, 13.64, 0.038),
        _table2(8, 2, 1, 14.16, 0.038),
        _table2(8, 3, 1, 14.10, 0.036),
        _table2(8, 4, 1, 13.80, 0.036),
        _table2(8, 5, 1, 14.22, 0.037),
        _table2(8, 1, 2, 13.79, 0.064),
        _table2(8, 1, 3, 13.84, 0.093),
    ),
    "table3": (
        *_table3("MNIST", "Neural-GODE", "gode_mnist_m4", (0.37, 0.153), (0.31, 0.035)),
        *_table3("MNIST", "Neural-ODE", "odenet_mnist", (0.37, 0.063), (0.40, 0.038)),
        *_table3("CIFAR-10", "Neural-GODE", "gode_cifar10_m8", (13.99, 0.224), (13.49, 0.038)),
        *_table3("CIFAR-10", "Neural-ODE", "odenet_cifar10", (15.40, 0.072), (15.32, 0.041)),
    ),
    "table4": tuple(
        _gode({"m": str(m), "L": str(convs)}, error, seconds, num_basis=m, num_convs=convs)
        for m, rows in {
            2: ((15.83, 0.024), (14.68, 0.039), (14.31, 0.047), (14.37, 0.061)),
            4: ((16.26, 0.024), (14.19, 0.038), (13.89, 0.047), (14.40, 0.062)),
            6: ((15.67, 0.025), (13.97, 0.037), (14.07, 0.048), (14.59, 0.062)),
            8: ((15.41, 0.025), (13.49, 0.038), (13.95, 0.047), (14.02, 0.063)),
        }.items()
        for convs, (error, seconds) in enumerate(rows, start=1)
    ),
}
