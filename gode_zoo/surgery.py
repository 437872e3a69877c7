"""Surgery: weights in, weights out, without training.

    finer = refine(model, num_basis=16)       # knots inserted: W(t), and so the output, stays as it is
    smaller = compress(model, num_basis=4)    # the W(t) with 4 functions that is nearest in the L2 norm over the span
    deeper = regrid(model, num_steps=40)      # the same weights W(t), solved in more steps
    gode = from_resnet(resnet)                # n residual blocks are n Euler steps of size 1 of piecewise constant weights
    plain = bake(model)                       # fixed weights for the model's grid: convolutions, norms and additions alone

Each takes a trained module and returns another; what it was given is left as it is. A zoo model that was refined or
compressed can be saved in timm's Hub format and loads again: its new knots stand in its ``model_args``.

Shapes: coefficients ``(…, m)``.

Source: Queiruga et al., "Continuous-in-Depth Neural Networks" (2020) and "Stateful ODE-Nets using Basis Function
Expansions" (2021) refine and project trained networks so, with piecewise constants; knot insertion is in splines.py.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .bake import bake
from .from_resnet import from_resnet
from .layers import spline_coefficients
from .ode_block import ODEBlock
from .splines import BSplineBasis, finer_knots, insert_knots, project_basis

__all__ = ["bake", "compress", "from_resnet", "refine", "refine_", "regrid", "regrid_"]

Change = Callable[[BSplineBasis], tuple[BSplineBasis, Tensor]]


def refine(model: nn.Module, num_basis: int) -> nn.Module:
    """A copy of ``model`` with more basis functions and the same output, by knot insertion.

    Every knot interval is cut into equal parts so that the widest part is as small as can be. The solver keeps its steps.

    Args:
        model: any module whose weights are B-splines of time.
        num_basis: functions of each basis, at least as many as there are.

    Raises:
        ValueError: if nothing in the model is a B-spline, or it has more functions already.
    """
    finer = copy.deepcopy(model)
    refine_(finer, num_basis)
    return finer


def refine_(model: nn.Module, num_basis: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    """``refine`` in place, for coarse-to-fine training: the model has new parameters, which take the old ones' place in its
    optimizer.

    An optimizer's averages of a parameter's shape (momentum) go through the same matrix, so that the weight functions W(t)
    move on as they did. ``DistributedDataParallel`` must be put around the model anew.

    Raises:
        ValueError: as ``refine``.
    """

    def insert(basis: BSplineBasis) -> tuple[BSplineBasis, Tensor]:
        return insert_knots(basis, finer_knots(basis, num_basis))

    _change_bases(model, insert, optimizer)


def compress(
    model: nn.Module,
    num_basis: int,
    degree: int | None = None,
    knots: str | Sequence[float] | None = None,
) -> nn.Module:
    """A copy of ``model`` with other basis functions, whose W(t) is nearest to the model's in the L2 norm over the span.

    Args:
        model: any module whose weights are B-splines of time.
        num_basis: functions of each new basis.
        degree: their degree; as it is where None.
        knots: ``"uniform"``, ``"clamped"`` or the knots themselves; the same kind as now where None. A model with explicit
            knots (one that was refined, say) needs them said.

    Raises:
        ValueError: if nothing in the model is a B-spline, or the basis is impossible.
    """

    def project(basis: BSplineBasis) -> tuple[BSplineBasis, Tensor]:
        if knots is None and basis.knot_kind == "explicit":
            raise ValueError('the model has explicit knots: say which the new basis has, knots="clamped" or "uniform"')
        chosen = basis.knot_kind if knots is None else knots
        target = BSplineBasis(num_basis, basis.degree if degree is None else degree, basis.t_span, chosen)
        return target, project_basis(basis, target)

    smaller = copy.deepcopy(model)
    _change_bases(smaller, project, None)
    return smaller


def regrid(model: nn.Module, num_steps: int) -> nn.Module:
    """A copy of ``model`` whose solves take ``num_steps`` steps of equal size, with the same weights.

    Raises:
        ValueError: if it has no solve on a fixed grid, or num_steps is below 1.
    """
    other = copy.deepcopy(model)
    regrid_(other, num_steps)
    return other


def regrid_(model: nn.Module, num_steps: int) -> None:
    """``regrid`` in place, for more steps late in training."""
    blocks = [module for module in model.modules() if isinstance(module, ODEBlock)]
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no ODE block: give a model such as gode_*")
    for block in blocks:
        block.set_num_steps(num_steps)
    if _is_of_the_zoo(model):
        kept = {key: value for key, value in model._model_args.items() if key != "step_size"}  # type: ignore[operator, union-attr]
        model._model_args = {**kept, "num_steps": num_steps}  # type: ignore[assignment]


def _is_of_the_zoo(model: nn.Module) -> bool:
    """Whether timm writes its keywords into config.json; another model that holds splines has none for them."""
    return hasattr(model, "_model_args") and type(model).__module__.startswith("gode_zoo.")


@torch.no_grad()
def _change_bases(model: nn.Module, change: Change, optimizer: torch.optim.Optimizer | None) -> None:
    """Put another basis in place of every B-spline basis of the model, and take its coefficients along."""
    changed: dict[BSplineBasis, tuple[BSplineBasis, Tensor]] = {}
    for _, _, basis in spline_coefficients(model):
        if isinstance(basis, BSplineBasis) and basis not in changed:
            changed[basis] = change(basis)
    if not changed:
        raise ValueError(
            f"{type(model).__name__} has no weights that are B-splines of time: give a model such as gode_*"
        )
    for name, coeffs, basis in list(spline_coefficients(model)):
        if basis in changed:
            _replace(model, name, coeffs, changed[basis][1].T, optimizer)
    for module in model.modules():
        old = getattr(module, "basis", None)
        if isinstance(old, BSplineBasis) and old in changed:
            module.basis = changed[old][0].to(old.knots.device)
    for module in model.modules():
        if isinstance(module, ODEBlock):
            module._apply(lambda tensor: tensor)  # makes its table of basis values anew
    if _is_of_the_zoo(model):
        basis = next(iter(changed.values()))[0]
        kind = list(basis.knot_values) if basis.knot_kind == "explicit" else basis.knot_kind
        options = {"num_basis": basis.num_basis, "degree": basis.degree, "knots": kind}
        model._model_args = {**model._model_args, **options}  # type: ignore[assignment, dict-item]


def _replace(
    model: nn.Module, name: str, coeffs: Tensor, matrix: Tensor, optimizer: torch.optim.Optimizer | None
) -> None:
    """Put ``coeffs · matrix`` in place of the parameter or buffer ``name``, in the model and in its optimizer."""
    parent, _, own_name = name.rpartition(".")
    new = _times(coeffs, matrix)
    if isinstance(coeffs, nn.Parameter):
        new = nn.Parameter(new, coeffs.requires_grad)
    setattr(model.get_submodule(parent), own_name, new)
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is coeffs else parameter for parameter in group["params"]]
    if coeffs in optimizer.state:
        optimizer.state[new] = {
            key: _times(value, matrix) if isinstance(value, Tensor) and value.shape == coeffs.shape else value
            for key, value in optimizer.state.pop(coeffs).items()
        }


def _times(coeffs: Tensor, matrix: Tensor) -> Tensor:
    """``coeffs (…, m)`` times ``matrix (m, m')``, computed in float64."""
    return (coeffs.cpu().double() @ matrix).to(coeffs).contiguous()  # some devices have no float64
