"""Residual networks as ODEs: the paper's claim that they are special cases, carried out on trained weights.

With W(t) = W_i for i ≤ t < i + 1 (degree 0, clamped knots) and one Euler step of size 1 a block::

    x_{i+1} = x_i + F(x_i; W_i)            f(t, x) = F(x; W(t))
    x_{i+1} = ReLU(x_i + F(x_i; W_i))      f(t, x) = max(F(x; W(t)), −x),    since ReLU(x + F) = x + max(F, −x)

Shapes: x ``(B, C, H, W)``; coefficients ``(…, m)`` with m the number of blocks.

Source: Yu, Miao and Wu, "Neural Generalized Ordinary Differential Equations with Layer-Varying Parameters", section 2;
He et al., "Deep Residual Learning" (2015) for the blocks with a ReLU after the sum.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Final

import timm
import torch
from torch import Tensor, nn

from .bases import Basis
from .layers import SplineConv2d, combine, time_row
from .models.gode import GODE
from .models.resnet import ResNet
from .ode_block import ODEBlock
from .splines import BSplineBasis

__all__ = ["ResidualField", "from_resnet"]


class ResidualField(nn.Module):
    """A residual branch with batch norms folded: conv–ReLU–conv–…, all with biases, made by ``surgery.from_resnet``.

    ``F(x; W(t))`` is a chain of spline convolutions with ReLU between them, after ``ReLU(scale(t) · x + shift(t))`` where
    ``affine``. The field is F, or ``max(F, −x)`` where ``projected``, which keeps x at or above 0 (an Euler step of size 1
    is then ``ReLU(x + F)``).

    Args:
        convs: of each convolution its weight's shape ``(out, in / groups, kH, kW)``, padding, dilation and groups.
        basis: the basis of time.
        affine: whether a scale, a shift and a ReLU come first.
        projected: whether the field is ``max(F, −x)``.
    """

    projected: Final[bool]

    def __init__(
        self,
        convs: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int], int]],
        basis: Basis,
        affine: bool,
        projected: bool,
    ) -> None:
        super().__init__()
        self.basis = basis
        self.projected = projected
        self.convs = nn.ModuleList(
            SplineConv2d(shape[1] * groups, shape[0], shape[2:], basis, 1, padding, dilation, groups)
            for shape, padding, dilation, groups in convs
        )
        channels = convs[0][0][1] * convs[0][3]
        self.scale_coeffs = nn.Parameter(torch.ones(channels, basis.num_basis)) if affine else None
        self.shift_coeffs = nn.Parameter(torch.zeros(channels, basis.num_basis)) if affine else None

    def tabulate(self, times: Tensor) -> Tensor:
        """Basis values of every time: ``(S,)`` to ``(S, m)``."""
        return self.basis(times)

    def stage_weights(self, table: Tensor) -> list[list[Tensor]]:
        """Kernel and bias of each convolution at every row of the table; then scale and shift where there are."""
        weights: list[Tensor] = []
        for conv in self.convs:
            weights += [combine(table, conv.coeffs), combine(table, conv.bias_coeffs)]  # type: ignore[arg-type]
        if self.scale_coeffs is not None and self.shift_coeffs is not None:
            weights += [combine(table, self.scale_coeffs), combine(table, self.shift_coeffs)]
        return [list(weight.unbind(0)) for weight in weights]

    def forward_stage(self, x: Tensor, weights: list[list[Tensor]], stage: int) -> Tensor:
        """The field at time number ``stage``: ``(B, C, H, W)`` to the same."""
        y = x
        if self.scale_coeffs is not None:
            y = torch.relu(weights[-2][stage][:, None, None] * x + weights[-1][stage][:, None, None])
        for i, conv in enumerate(self.convs):
            y = torch.relu(y) if i > 0 else y
            y = conv.apply_weight(y, weights[2 * i][stage], weights[2 * i + 1][stage])  # type: ignore[operator]
        return torch.maximum(y, -x) if self.projected else y

    @torch.jit.unused
    def forward(self, t: Tensor, x: Tensor, args: Any = None) -> Tensor:
        """dx/dt at time ``t``: ``(B, C, H, W)`` to the same. ``args`` is torchdyn's and is not used."""
        return self.forward_stage(x, self.stage_weights(time_row(self.basis, t)), 0)


def from_resnet(resnet: nn.Module) -> nn.Module:
    """Residual blocks as one ODE block whose output is theirs: degree 0, as many basis functions as blocks, steps of 1.

    Args:
        resnet: a zoo ``ResNet`` (``resnet20_cifar10`` …), which becomes a ``GODE`` with group norms that vary with time; or
            a stage of a timm ResNet: ``nn.Sequential`` (or a module with ``blocks``) of ``BasicBlock`` or ``Bottleneck`` of
            timm/models/resnet.py, or of ``PreActBasic`` or ``PreActBottleneck`` of timm/models/resnetv2.py, with batch norm
            and ReLU, which becomes an ``nn.Sequential`` to put in its place: ``model.layer3 = from_resnet(model.layer3)``.

    A stage's leading block that changes the state's shape stays as it is, before the ODE block. Batch norms are folded into
    the weights as they are in evaluation, so the result equals the stage in evaluation, and has no batch norm to train on.

    Returns:
        A model in evaluation mode. ``compress`` gives it fewer basis functions.

    Raises:
        ValueError: if there is no block, or one that is something else: blocks of different shapes, or with stochastic
            depth, attention, anti-aliasing, DropBlock, another norm or another activation.
    """
    if isinstance(resnet, ResNet):
        return _from_zoo(resnet)
    layers = list(getattr(resnet, "blocks", resnet).children())
    leading = []
    while layers and _changes_shape(layers[0]):
        leading.append(copy.deepcopy(layers.pop(0)))
    if not layers:
        raise ValueError(
            f"{type(resnet).__name__} has no residual block that keeps its state's shape: give a zoo resnet or a stage such "
            "as timm.create_model('resnet34').layer3"
        )
    parts = [_read_block(block, i + len(leading)) for i, block in enumerate(layers)]
    if any(part.layout() != parts[0].layout() for part in parts):
        raise ValueError(
            f"the residual blocks {len(leading)} to {len(leading) + len(parts) - 1} differ in shape or kind: one ODE has "
            "blocks of one shape; give a stage whose blocks, after the first, are alike"
        )
    weight = next(resnet.parameters())
    field = _make_field(parts).to(device=weight.device, dtype=weight.dtype)
    return nn.Sequential(*leading, ODEBlock(field, (0.0, float(len(parts))), step_size=1.0)).eval()


def _from_zoo(resnet: ResNet) -> nn.Module:
    blocks = list(resnet.block.blocks)  # type: ignore[arg-type, union-attr]
    if not blocks:
        raise ValueError("the ResNet has no residual block (num_blocks=0): there is nothing to make an ODE of")
    count = len(blocks)
    arguments: dict[str, Any] = {
        "num_basis": count,
        "degree": 0,
        "knots": "clamped",
        "t_span": [0.0, float(count)],
        "norm": "spline_group",
        "step_size": 1.0,
        "num_classes": resnet.num_classes,
        "in_chans": resnet.in_chans,
        "global_pool": resnet.head.global_pool.pool_type,
        "drop_rate": resnet.drop_rate,
    }
    cfg = getattr(resnet, "pretrained_cfg", None)  # of a model that timm made
    if cfg is None:
        gode: nn.Module = GODE(**arguments)
    else:
        name = "gode_mnist_m4" if cfg["input_size"][1:] == (28, 28) else "gode_cifar10_m8"
        gode = timm.create_model(name, **arguments)
    theirs = resnet.state_dict()
    state = {key: value for key, value in theirs.items() if not key.startswith("block.")}
    for i in (1, 2):
        kinds = {f"convs.{i - 1}.coeffs": f"conv{i}.weight"}
        kinds |= {f"norms.{i - 1}.coeffs": f"norm{i}.weight", f"norms.{i - 1}.bias_coeffs": f"norm{i}.bias"}
        for ours, block_key in kinds.items():
            stacked = [theirs[f"block.blocks.{n}.{block_key}"] for n in range(count)]
            state[f"block.field.{ours}"] = torch.stack(stacked, dim=-1)
    first = next(resnet.parameters())
    gode.to(device=first.device, dtype=first.dtype).load_state_dict(state)
    return gode.eval()


class _Block:
    """What one residual block of timm is made of, batch norms folded.

    Attributes:
        affine: scale and shift ``(C,)`` before the first ReLU of a pre-activation block, or None.
        convs: of each convolution its weight, bias and (stride, padding, dilation, groups).
        projected: whether a ReLU follows the sum.
    """

    def __init__(self, affine: tuple[Tensor, Tensor] | None, convs: list[tuple[Tensor, Tensor, Any]], projected: bool):
        self.affine, self.convs, self.projected = affine, convs, projected

    def layout(self) -> Any:
        return self.projected, self.affine is not None, [(weight.shape, how) for weight, _, how in self.convs]


def _changes_shape(block: nn.Module) -> bool:
    return getattr(block, "downsample", None) is not None


def _read_block(block: nn.Module, number: int) -> _Block:
    from timm.layers import DropPath
    from timm.models import resnet, resnetv2

    name = f"block {number} ({type(block).__name__})"

    def refuse(what: str) -> ValueError:
        return ValueError(
            f"{name} has {what}: from_resnet takes timm's BasicBlock, Bottleneck, PreActBasic and PreActBottleneck with "
            "BatchNorm and ReLU, and nothing that is random or looks at the whole state"
        )

    kinds = (resnet.BasicBlock, resnet.Bottleneck, resnetv2.PreActBasic, resnetv2.PreActBottleneck)
    if type(block) not in kinds:
        raise ValueError(
            f"{name} is no residual block that from_resnet knows: it takes {', '.join(k.__name__ for k in kinds)}"
        )
    if _changes_shape(block):
        raise refuse("a shortcut that changes the state (downsample) after blocks that do not")
    if isinstance(getattr(block, "drop_path", None), DropPath):
        raise refuse("stochastic depth (drop_path_rate)")
    for part in ("se", "aa", "drop_block"):
        if not isinstance(getattr(block, part, None), (nn.Identity, type(None))):
            raise refuse(f"a layer {part} ({type(getattr(block, part)).__name__})")
    projected = type(block) in kinds[:2]
    count = 3 if type(block) in (resnet.Bottleneck, resnetv2.PreActBottleneck) else 2
    convs = [getattr(block, f"conv{i}") for i in range(1, count + 1)]
    norms = [getattr(block, f"{'bn' if projected else 'norm'}{i}") for i in range(1, count + 1)]
    # A ReLU after each norm; the last of a post-activation block follows the sum.
    acts = [getattr(block, f"act{i}") if projected else norm.act for i, norm in enumerate(norms, 1)]
    if odd := [act for act in acts if not isinstance(act, nn.ReLU)]:
        raise refuse(f"an activation {type(odd[0]).__name__}")
    if odd := [norm for norm in norms if not isinstance(norm, nn.BatchNorm2d)]:
        raise refuse(f"a norm {type(odd[0]).__name__}")
    if odd := [conv for conv in convs if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros"]:
        raise refuse(f"a convolution {type(odd[0]).__name__}")
    if convs[0].in_channels != convs[-1].out_channels or any(conv.stride != (1, 1) for conv in convs):
        raise refuse("an output of another shape than its input")
    affine = None if projected else _affine(norms[0])
    folded = []
    for conv, norm in zip(convs, norms if projected else [*norms[1:], None], strict=True):
        weight = conv.weight.detach().double()
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
        if norm is not None:
            scale, shift = _affine(norm)
            weight, bias = weight * scale[:, None, None, None], bias * scale + shift
        folded.append((weight, bias, (conv.padding, conv.dilation, conv.groups)))
    return _Block(affine, folded, projected)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift ``(C,)`` of a batch norm in evaluation, in float64."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm keeps no running statistics: it has no evaluation mode to fold")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _make_field(parts: list[_Block]) -> ResidualField:
    """One field with the weights of all blocks, piecewise constant."""
    count, first = len(parts), parts[0]
    basis = BSplineBasis(count, 0, (0.0, float(count)), "clamped")
    field = ResidualField(
        [(weight.shape, *how) for weight, _, how in first.convs], basis, first.affine is not None, first.projected
    )

    def fill(parameter: Tensor | None, values: Iterable[Tensor]) -> None:
        assert parameter is not None
        parameter.copy_(torch.stack(list(values), dim=-1))

    with torch.no_grad():
        for i, conv in enumerate(field.convs):
            fill(conv.coeffs, (part.convs[i][0] for part in parts))  # type: ignore[arg-type]
            fill(conv.bias_coeffs, (part.convs[i][1] for part in parts))  # type: ignore[arg-type]
        if first.affine is not None:
            fill(field.scale_coeffs, (part.affine[0] for part in parts))  # type: ignore[index]
            fill(field.shift_coeffs, (part.affine[1] for part in parts))  # type: ignore[index]
    return field
