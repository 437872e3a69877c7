"""Vector fields ``f(t, x)``: the right-hand sides of ``dx/dt = f(t, x; W(t))``.

Every field is an ``nn.Module`` with ``forward(t, x, args=None)``, which is also what torchdyn calls. A field of this
package can besides be *tabulated* on times that are known beforehand, in three steps that a fixed-grid solve uses:

1. ``tabulate(times)``: all that depends on time alone, ``(S,)`` to a table ``(S, d)``; done when a block is built.
2. ``stage_weights(table)``: the weights of all S stages, one matrix product a layer; done once a solve. A list of S tensors
   a layer: the gradient of ``unbind`` is one ``stack``, that of S selections S tensors of the size of all weights.
3. ``forward_stage(x, weights, stage)``: the field at time number ``stage``; plain tensor code.

Shapes: t 0-d or ``(1,)``; x ``(B, C, H, W)``; S distinct stage times; m basis functions.

Source: Yu, Miao and Wu, "Neural Generalized Ordinary Differential Equations with Layer-Varying Parameters".
"""

import copy
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .bases import Basis
from .layers import SplineBatchNorm2d, SplineConv2d, SplineGroupNorm, combine, keeping_layout, one_time, time_row

__all__ = ["ConcatConvField", "LiftedField", "SplineConvField", "lift"]


def _num_groups(channels: int) -> int:
    """The paper's 32 groups where they divide the channels, else the most that do."""
    if channels < 1:
        raise ValueError(f"channels={channels}: must be at least 1")
    return next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)


def _group_norm(channels: int, device: Any, dtype: Any) -> nn.GroupNorm:
    return nn.GroupNorm(_num_groups(channels), channels, device=device, dtype=dtype)


class SplineConvField(nn.Module):
    """The paper's vector field: ``num_convs`` times norm–ReLU–SplineConv (3×3, padding 1, no bias).

    Args:
        channels: channels of the state.
        basis: the basis of time, such as ``BSplineBasis``.
        num_convs: number L of spline convolutions, at least 1.
        norm: ``"group"``, the paper's: GroupNorm shared by all times, and none where ``num_convs=1``; ``"spline_group"``
            and ``"spline_batch"``: group or batch norms that vary with time, as a residual network's do from block to
            block, one before each convolution.

    Raises:
        ValueError: on a value outside these limits.
    """

    spline_norms: Final[bool]
    num_norm_weights: Final[int]

    def __init__(
        self,
        channels: int,
        basis: Basis,
        num_convs: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        norm: str = "group",
        statistics_basis: Basis | None = None,
    ) -> None:
        super().__init__()
        if isinstance(num_convs, bool) or not isinstance(num_convs, int) or num_convs < 1:
            raise ValueError(f"num_convs={num_convs!r}: must be an integer of at least 1")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        kinds: dict[str, Callable[[], nn.Module]] = {
            "group": lambda: _group_norm(channels, **dd) if num_convs > 1 else nn.Identity(),
            "spline_group": lambda: SplineGroupNorm(_num_groups(channels), channels, basis, **dd),
            "spline_batch": lambda: SplineBatchNorm2d(channels, basis, statistics_basis=statistics_basis, **dd),
        }
        if norm not in kinds:
            raise ValueError(f"norm={norm!r}: must be one of {', '.join(kinds)}")
        self.basis = basis
        self.norms = nn.ModuleList(kinds[norm]() for _ in range(num_convs))
        self.spline_norms = norm != "group"
        self.num_norm_weights = self.norms[0].num_weights if self.spline_norms else 0  # type: ignore[assignment]
        self.convs = nn.ModuleList(
            SplineConv2d(channels, channels, 3, basis, padding=1, bias=False, **dd) for _ in range(num_convs)
        )

    @torch.jit.unused
    def tabulate(self, times: Tensor) -> Tensor:
        """Basis values of every time, ``(S,)`` to ``(S, m)``, and what batch norms put beside them."""
        norm = self.norms[0]
        return norm.tabulate(times) if isinstance(norm, SplineBatchNorm2d) else self.basis(times)

    def stage_weights(self, table: Tensor) -> list[list[Tensor]]:
        """Of every row of the table the kernels ``(C, C, 3, 3)``, a list of S a convolution; then those of norms that vary."""
        weights: list[list[Tensor]] = []
        for conv in self.convs:
            weights.append(conv.weights_at(table).unbind(0))  # type: ignore[operator]
        if self.spline_norms:
            for norm in self.norms:
                for values in norm.weights_at(table):  # type: ignore[operator]
                    weights.append(values.unbind(0))
        return weights

    def forward_stage(self, x: Tensor, weights: list[list[Tensor]], stage: int) -> Tensor:
        """The field at time number ``stage``: ``(B, C, H, W)`` to the same."""
        first = len(self.convs)
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs)):  # noqa: B905 (TorchScript's zip has no strict)
            if self.spline_norms:
                x = norm.apply_weights(x, weights[first : first + self.num_norm_weights], stage)  # type: ignore[operator]
                first += self.num_norm_weights
            else:
                x = norm(x)
            x = conv.apply_weight(torch.relu(x), weights[i][stage])  # type: ignore[operator]
        return x

    @torch.jit.unused
    def forward(self, t: Tensor, x: Tensor, args: Any = None) -> Tensor:
        """dx/dt at time ``t``: ``(B, C, H, W)`` to the same. ``args`` is torchdyn's and is not used."""
        return self.forward_stage(x, self.stage_weights(self.tabulate(one_time(t))), 0)


class ConcatConv2d(nn.Module):
    """A convolution of the state with time as one more channel, put first: the Neural-ODE baseline's layer.

    The two parts are convolved apart. That of time is t times the convolution of ones, the same for every image, and
    64 channels instead of 65 suit the convolution's kernels (half the time of a training step in bf16 on a CPU).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.padding = kernel_size // 2
        self.conv = nn.Conv2d(
            in_channels + 1, out_channels, kernel_size, padding=self.padding, device=device, dtype=dtype
        )

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        weight = self.conv.weight
        ones = torch.ones(1, 1, x.shape[2], x.shape[3], dtype=x.dtype, device=x.device)
        state = F.conv2d(x, weight[:, 1:], self.conv.bias, padding=self.padding)
        return state + t.to(state.dtype).reshape(1, 1, 1, 1) * F.conv2d(ones, weight[:, :1], padding=self.padding)


class ConcatConvField(nn.Module):
    """The Neural-ODE baseline: GroupNorm–ReLU–ConcatConv–GroupNorm–ReLU–ConcatConv–GroupNorm, constant weights.

    Args:
        channels: channels of the state.

    Source: the MNIST example of torchdiffeq (Chen et al., "Neural Ordinary Differential Equations", 2018).
    """

    def __init__(
        self,
        channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = _group_norm(channels, device, dtype)
        self.conv1 = ConcatConv2d(channels, channels, 3, device, dtype)
        self.norm2 = _group_norm(channels, device, dtype)
        self.conv2 = ConcatConv2d(channels, channels, 3, device, dtype)
        self.norm3 = _group_norm(channels, device, dtype)

    @torch.jit.unused
    def tabulate(self, times: Tensor) -> Tensor:
        """The times themselves: ``(S,)`` to ``(S, 1)``."""
        return times[:, None]

    def stage_weights(self, table: Tensor) -> list[list[Tensor]]:
        """The weights are constant: only the times are handed on."""
        times: list[list[Tensor]] = []
        times.append(table.unbind(0))  # type: ignore[arg-type]
        return times

    def forward_stage(self, x: Tensor, weights: list[list[Tensor]], stage: int) -> Tensor:
        """The field at time number ``stage``."""
        return self._field(weights[0][stage], x)

    @torch.jit.unused
    def forward(self, t: Tensor, x: Tensor, args: Any = None) -> Tensor:
        """dx/dt at time ``t``: ``(B, C, H, W)`` to the same. ``args`` is torchdyn's and is not used."""
        return self._field(t, x)

    def _field(self, t: Tensor, x: Tensor) -> Tensor:
        x = self.conv1(t, torch.relu(self.norm1(x)))
        x = self.conv2(t, torch.relu(self.norm2(x)))
        return self.norm3(x)


class LiftedField(nn.Module):
    """Any module as a vector field whose parameters are splines of time; see ``lift``."""

    def __init__(self, module: nn.Module, basis: Basis) -> None:
        super().__init__()
        parameters = dict(module.named_parameters())
        if not parameters:
            raise ValueError(f"{type(module).__name__} has no parameters: there is nothing to vary with time")
        self.basis = basis
        self.parameter_names = tuple(parameters)
        # The template only lends its code: its own parameters are replaced at every call, so they go to meta.
        self._template = [copy.deepcopy(module).to("meta")]
        self.coeffs = nn.ParameterList(
            nn.Parameter(
                value.detach()[..., None].repeat(*(1,) * value.dim(), basis.num_basis),
                requires_grad=value.requires_grad,
            )
            for value in parameters.values()
        )
        self.buffer_names = tuple(name for name, _ in module.named_buffers())
        for i, (_, value) in enumerate(module.named_buffers()):
            self.register_buffer(f"buffer_{i}", value.detach().clone())

    def _apply(self, fn: Any, recurse: bool = True) -> "LiftedField":
        return super()._apply(keeping_layout(fn), recurse)

    def tabulate(self, times: Tensor) -> Tensor:
        """Basis values of every time: ``(S,)`` to ``(S, m)``."""
        return self.basis(times)

    def stage_weights(self, table: Tensor) -> list[list[Tensor]]:
        """Every parameter at every row of the table, a list of S each."""
        return [list(combine(table, coeffs).unbind(0)) for coeffs in self.coeffs]

    def forward_stage(self, x: Tensor, weights: list[list[Tensor]], stage: int) -> Tensor:
        """The field at time number ``stage``."""
        values = {name: weight[stage] for name, weight in zip(self.parameter_names, weights, strict=True)}
        buffers = {name: getattr(self, f"buffer_{i}") for i, name in enumerate(self.buffer_names)}
        template = self._template[0].train(self.training)
        return functional_call(template, {**values, **buffers}, (x,))

    def forward(self, t: Tensor, x: Tensor, args: Any = None) -> Tensor:
        """dx/dt at time ``t``. ``args`` is torchdyn's and is not used."""
        return self.forward_stage(x, self.stage_weights(time_row(self.basis, t)), 0)


def lift(module: nn.Module, basis: Basis) -> LiftedField:
    """Make any module ``x -> dx/dt`` a vector field whose parameters are splines of time.

    Every parameter p becomes coefficients ``(*p.shape, m)``, all equal to p. So with a basis that sums to one (clamped
    knots) the field starts as the module itself at every time. The module is copied and left as it is.

    Args:
        module: maps a state to one of the same shape, with parameters. Buffers are kept, constant in time.
        basis: the basis of time, such as ``BSplineBasis``.

    Raises:
        ValueError: if the module has no parameters.
    """
    return LiftedField(module, basis)
