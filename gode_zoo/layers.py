"""Layers whose weights are B-splines of time.

Each layer holds spline coefficients with the basis index last, ``coeffs (*weight_shape, m)`` as in the authors'
checkpoints, and makes ``W(t) = Σ_i B_{i,k}(t) ξ_i``. Two ways in:

- ``layer(t, x)`` evaluates the basis at one time.
- ``layer.weights_at(table)`` makes the weights of all ``S`` rows of a table of basis values ``(S, m)`` at once, as one
  matrix product ``(S × m) · (m × P)``; a fixed-grid solve does this once, before its loop.

Shapes: x ``(B, C, H, W)`` or ``(B, C)``; t 0-d or ``(1,)``; table ``(S, m)``.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bases import Basis

__all__ = [
    "SplineBatchNorm2d",
    "SplineConv2d",
    "SplineGroupNorm",
    "SplineLinear",
    "combine",
    "keeping_layout",
    "one_time",
    "spline_coefficients",
    "time_row",
]


def combine(table: Tensor, coeffs: Tensor) -> Tensor:
    """All weights of a table of basis values: ``(S, m)`` and ``(*weight_shape, m)`` to ``(S, *weight_shape)``.

    Under autocast the product stays in the precision of the coefficients; what uses the weights casts them.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  (on a line of its own: TorchScript then skips what stands under it)
        if torch.is_autocast_enabled(table.device.type):
            with torch.autocast(table.device.type, enabled=False):
                return _combine(table, coeffs)
    return _combine(table, coeffs)


def _combine(table: Tensor, coeffs: Tensor) -> Tensor:
    # linear reads the coefficients as they lie; tensordot would copy them into another order first.
    product = F.linear(table.to(coeffs.dtype), coeffs.flatten(0, -2))
    return product.unflatten(1, coeffs.shape[:-1])


def one_time(t: Tensor) -> Tensor:
    """One time as ``(1,)``.

    Raises:
        ValueError: if ``t`` holds more than one time.
    """
    if t.numel() != 1:
        raise ValueError(f"t has shape {tuple(t.shape)}: a layer takes one time, 0-d or (1,)")
    return t.reshape(1)


def time_row(basis: Basis, t: Tensor) -> Tensor:
    """The basis at one time as a table of one row ``(1, m)``; a ValueError if ``t`` holds more than one time."""
    return basis(one_time(t))


def keeping_layout(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What ``nn.Module._apply`` does to each tensor, but without a change of the memory format of 5-d coefficients.

    ``model.to(memory_format=torch.channels_last)`` converts tensors of 4 and 5 dimensions and is refused by those of 5,
    which the coefficients of a kernel ``(out, in, kH, kW, m)`` are. They stay contiguous; images and states are converted.
    """

    def convert(tensor: Tensor) -> Tensor:
        return fn(tensor.flatten(3)).contiguous().view(tensor.shape) if tensor.dim() == 5 else fn(tensor)

    return convert


def _pulls(values: Tensor) -> Tensor:
    """The columns of the pseudo-inverse of basis values: ``(S, q)`` to the same."""
    if len(values) == 1:
        return values / values.square().sum()
    return torch.linalg.pinv(values).mT


def spline_coefficients(model: nn.Module) -> Iterator[tuple[str, Tensor, Basis]]:
    """Every tensor of spline coefficients, basis index last, with its name in the state dict and its basis.

    Parameters, and the buffers that are splines in the same basis: the running statistics of ``SplineBatchNorm2d``, where
    they have no basis of their own.
    """
    for prefix, module in model.named_modules():
        basis = getattr(module, "basis", None)
        if not isinstance(basis, Basis):
            continue
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if isinstance(getattr(module, "coeffs", None), nn.ParameterList):  # a lifted module
            own = [(f"coeffs.{name}", value) for name, value in module.coeffs.named_parameters()]  # type: ignore[union-attr]
        apart = isinstance(module, SplineBatchNorm2d) and module.statistics_basis is not None
        for name, value in own:
            if "coeffs" in name and not (apart and name in ("mean_coeffs", "var_coeffs")):
                yield f"{prefix}.{name}".lstrip("."), value, basis


def _init_coeffs(coeffs: Tensor) -> None:
    """The paper's initialisation: Kaiming-uniform with a = √3 and m counted in the fan-in, bound √(1.5 / fan-in)."""
    nn.init.kaiming_uniform_(coeffs, a=math.sqrt(3))


def _pair(value: int | Sequence[int], name: str, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(part, int) or part < least for part in pair):
        raise ValueError(f"{name}={value!r}: must be one integer or two, each at least {least}")
    return pair


class SplineConv2d(nn.Module):
    """``torch.nn.Conv2d`` whose kernel (and bias) are splines of time.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: one integer or two; so ``stride``, ``padding`` and ``dilation``, as in ``torch.nn.Conv2d``.
        basis: the basis of time, such as ``BSplineBasis``.
        groups: number of blocked connections; divides both channel counts.
        bias: whether to add a bias that varies with time, ``bias_coeffs (out_channels, m)``, zero at first.

    Attributes:
        coeffs: ``(out_channels, in_channels / groups, kH, kW, m)``.

    Raises:
        ValueError: on a size below its limit, or channels that ``groups`` does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        basis: Basis,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if in_channels < 1 or out_channels < 1 or groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"in_channels={in_channels}, out_channels={out_channels}, groups={groups}: all must be at least 1 and "
                "groups must divide both channel counts"
            )
        self.basis = basis
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.channels_last = False
        self.kernel_size = _pair(kernel_size, "kernel_size", 1)
        self.stride = _pair(stride, "stride", 1)
        self.padding = _pair(padding, "padding", 0)
        self.dilation = _pair(dilation, "dilation", 1)
        shape = (out_channels, in_channels // groups, *self.kernel_size, basis.num_basis)
        self.coeffs = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias_coeffs = nn.Parameter(torch.empty(out_channels, basis.num_basis, device=device, dtype=dtype))
        else:
            self.register_parameter("bias_coeffs", None)
        self.reset_parameters()

    def _apply(self, fn: Any, recurse: bool = True) -> "SplineConv2d":
        # A change of memory format is for the kernels: those made from (out, kH, kW, in, m) are channels_last as they
        # come. Two probes tell what `fn` does to one, since coefficients of five dimensions cannot be asked.
        probes = (torch.empty(1, 2, 1, 2), torch.empty(1, 2, 1, 2).contiguous(memory_format=torch.channels_last))
        first, second = (fn(probe).is_contiguous(memory_format=torch.channels_last) for probe in probes)
        before, after = self.channels_last, first or (second and self.channels_last)

        def convert(tensor: Tensor) -> Tensor:
            if tensor.dim() != 5:
                return fn(tensor)
            laid = tensor.permute(0, 2, 3, 1, 4) if before else tensor
            plain = fn(laid.flatten(1)).view(laid.shape)
            plain = plain.permute(0, 3, 1, 2, 4) if before else plain
            return plain.permute(0, 2, 3, 1, 4).contiguous().permute(0, 3, 1, 2, 4) if after else plain.contiguous()

        super()._apply(convert, recurse)
        self.channels_last = after
        return self

    def reset_parameters(self) -> None:
        """Draw the coefficients anew by the paper's initialisation."""
        _init_coeffs(self.coeffs)
        if self.bias_coeffs is not None:
            nn.init.zeros_(self.bias_coeffs)

    def weights_at(self, table: Tensor) -> Tensor:
        """Kernels of every row of a table: ``(S, m)``, or more columns, to ``(S, out, in / groups, kH, kW)``."""
        values = table[:, : self.basis.num_basis]
        if self.channels_last:
            return combine(values, self.coeffs.permute(0, 2, 3, 1, 4)).permute(0, 1, 4, 2, 3)
        return combine(values, self.coeffs)

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution with one kernel that ``weights_at`` made."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    @torch.jit.unused
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Convolve ``x (B, C, H, W)`` with the kernel of time ``t``."""
        row = time_row(self.basis, t)
        bias = None if self.bias_coeffs is None else combine(row, self.bias_coeffs)[0]
        return self.apply_weight(x, self.weights_at(row)[0], bias)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias_coeffs is not None}"
        )


class SplineLinear(nn.Module):
    """``torch.nn.Linear`` whose weight (and bias) are splines of time.

    Attributes:
        coeffs: ``(out_features, in_features, m)``.
        bias_coeffs: ``(out_features, m)``, zero at first, or None.

    Raises:
        ValueError: if a feature count is below 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        basis: Basis,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"in_features={in_features}, out_features={out_features}: both must be at least 1")
        self.basis = basis
        self.in_features, self.out_features = in_features, out_features
        shape = (out_features, in_features, basis.num_basis)
        self.coeffs = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias_coeffs = nn.Parameter(torch.empty(out_features, basis.num_basis, device=device, dtype=dtype))
        else:
            self.register_parameter("bias_coeffs", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the coefficients anew, as the paper does for its convolutions."""
        _init_coeffs(self.coeffs)
        if self.bias_coeffs is not None:
            nn.init.zeros_(self.bias_coeffs)

    @torch.jit.unused
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Map ``x (…, in_features)`` to ``(…, out_features)`` with the weight of time ``t``."""
        row = time_row(self.basis, t)
        bias = None if self.bias_coeffs is None else combine(row, self.bias_coeffs)[0]
        return F.linear(x, combine(row, self.coeffs)[0], bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias_coeffs is not None}"


class SplineGroupNorm(nn.Module):
    """``torch.nn.GroupNorm`` whose scale and shift are splines of time.

    Attributes:
        coeffs: scale ``(num_channels, m)``, one at first: exactly 1 at every time where the basis sums to one.
        bias_coeffs: shift ``(num_channels, m)``, zero at first.

    Raises:
        ValueError: if ``num_groups`` does not divide ``num_channels``.
    """

    num_weights: Final[int]

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        basis: Basis,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels < 1 or num_channels % num_groups:
            raise ValueError(
                f"num_groups={num_groups}, num_channels={num_channels}: both must be at least 1 and num_groups must "
                "divide num_channels"
            )
        self.basis = basis
        self.num_weights = 2
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.coeffs = nn.Parameter(torch.ones(num_channels, basis.num_basis, device=device, dtype=dtype))
        self.bias_coeffs = nn.Parameter(torch.zeros(num_channels, basis.num_basis, device=device, dtype=dtype))

    def weights_at(self, table: Tensor) -> list[Tensor]:
        """Scale and shift at every row of a table: ``(S, m)`` to two tensors ``(S, C)``."""
        return [combine(table, self.coeffs), combine(table, self.bias_coeffs)]

    def apply_weights(self, x: Tensor, weights: list[list[Tensor]], stage: int) -> Tensor:
        """Normalise ``x`` with number ``stage`` of each list of rows that ``weights_at`` made."""
        return F.group_norm(x, self.num_groups, weights[0][stage], weights[1][stage], self.eps)

    @torch.jit.unused
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Normalise ``x (B, C, …)`` and apply the scale and shift of time ``t``."""
        return self.apply_weights(x, [list(w.unbind(0)) for w in self.weights_at(time_row(self.basis, t))], 0)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}"


class SplineBatchNorm2d(nn.Module):
    """``torch.nn.BatchNorm2d`` whose scale, shift and running statistics are all splines of time.

    In training a batch is normalised by its own mean and variance. The running statistics, which evaluation uses, then move
    towards the spline that fits those of all S times of the solve best, in least squares::

        c ← (1 − momentum) c + momentum · B⁺ observed,    B (S, m) the basis at those times, B⁺ its pseudo-inverse

    Each call adds its own time's share, ``momentum · (observed − spline) ⊗ pull`` with pull the time's column of B⁺; a call
    at a single time moves by the least change. For piecewise constants with one time a piece that is ``BatchNorm2d``'s own
    update of the piece. With fewer functions than times the statistics of evaluation are not quite those of training; a
    ``statistics_basis`` with as many functions as times keeps them exactly. A variance that the spline takes below zero
    between the times seen counts as zero.

    Args:
        num_channels: channels C.
        basis: the basis of time of scale and shift; its functions must sum to one over the span, as clamped B-splines do,
            since a sum of nearly zero would have to be multiplied by coefficients without bound.
        eps: added to variances.
        momentum: weight of the newest batch in the running statistics.
        statistics_basis: the basis of the running statistics, of q functions that sum to one too; ``basis`` where None.

    Attributes:
        coeffs: scale ``(C, m)``, one at first.
        bias_coeffs: shift ``(C, m)``, zero at first.
        mean_coeffs: buffer, running mean ``(C, q)``, zero at first.
        var_coeffs: buffer, running variance ``(C, q)``, one at first.

    Source: Queiruga et al., "Stateful ODE-Nets using Basis Function Expansions" (2021), which projects the statistics of a
    solve in the same way.

    Raises:
        ValueError: if num_channels is below 1, or a basis does not sum to one.
    """

    num_weights: Final[int]
    mean_coeffs: Tensor
    var_coeffs: Tensor

    def __init__(
        self,
        num_channels: int,
        basis: Basis,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        statistics_basis: Basis | None = None,
    ) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"num_channels={num_channels}: must be at least 1")
        statistics = basis if statistics_basis is None else statistics_basis
        with torch.device("cpu"):
            times = torch.linspace(*basis.t_span, 65, dtype=torch.float64)  # type: ignore[misc]
            for each in (basis, statistics):
                if not torch.allclose(each(times).sum(-1), torch.ones(65, dtype=torch.float64)):
                    raise ValueError(
                        f"basis={each}: its functions do not sum to one over the span, so running statistics cannot be "
                        'kept in it; use a B-spline basis with knots="clamped"'
                    )
        self.basis = basis
        self.statistics_basis = statistics_basis
        self.num_weights = 5
        self.num_channels, self.eps, self.momentum = num_channels, eps, momentum
        shape = (num_channels, basis.num_basis)
        self.coeffs = nn.Parameter(torch.ones(shape, device=device, dtype=dtype))
        self.bias_coeffs = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        shape = (num_channels, statistics.num_basis)
        self.register_buffer("mean_coeffs", torch.zeros(shape, device=device, dtype=dtype))
        self.register_buffer("var_coeffs", torch.ones(shape, device=device, dtype=dtype))

    @torch.jit.unused
    def tabulate(self, times: Tensor) -> Tensor:
        """All that depends on time alone, ``(S,)`` to ``(S, m + 2q)``: both bases' values, and the pulls of a solve."""
        values = self.basis(times)
        statistics = values if self.statistics_basis is None else self.statistics_basis(times)
        return torch.cat([values, statistics, _pulls(statistics)], dim=1)

    def weights_at(self, table: Tensor) -> list[Tensor]:
        """Scale, shift, running mean and variance, each ``(S, C)``, and pull ``(S, q)``, of every row of a table."""
        num_basis, num_statistics = self.basis.num_basis, self.mean_coeffs.shape[1]
        row = table[:, :num_basis]
        statistics = table[:, num_basis : num_basis + num_statistics]
        return [
            combine(row, self.coeffs),
            combine(row, self.bias_coeffs),
            combine(statistics, self.mean_coeffs),
            combine(statistics, self.var_coeffs),
            table[:, num_basis + num_statistics :].to(self.coeffs.dtype),
        ]

    def apply_weights(self, x: Tensor, weights: list[list[Tensor]], stage: int) -> Tensor:
        """Normalise ``x`` with the rows number ``stage`` of ``weights_at``; in training, move the running statistics."""
        scale, shift, old_mean, old_var = weights[0][stage], weights[1][stage], weights[2][stage], weights[3][stage]
        if not self.training:
            return F.batch_norm(x, old_mean, old_var.clamp_min(0.0), scale, shift, False, 0.0, self.eps)
        mean, var = torch.zeros_like(scale), torch.ones_like(scale)
        y = F.batch_norm(x, mean, var, scale, shift, True, 1.0, self.eps)  # fills mean and var with the batch's
        with torch.no_grad():
            step = self.momentum * weights[4][stage]
            self.mean_coeffs.add_(torch.outer(mean - old_mean, step))
            self.var_coeffs.add_(torch.outer(var - old_var, step))
        return y

    @torch.jit.unused
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Normalise ``x (B, C, H, W)`` and apply the scale and shift of time ``t``."""
        return self.apply_weights(x, [list(w.unbind(0)) for w in self.weights_at(self.tabulate(one_time(t)))], 0)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, eps={self.eps}, momentum={self.momentum}"
