"""The block of a GODE model in JAX: the field written anew, diffrax's Euler, XLA's compiler. The extra `benchmark-jax`.

Images are laid out (B, H, W, C) inside, as XLA's convolutions on a CPU want them. Basis values follow from the Cox–de Boor
recursion at every call; the kernel is the product of all m coefficients, which XLA is free to rearrange.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..ode_block import ODEBlock

__all__ = ["make_solve"]


def make_solve(block: ODEBlock) -> Callable[..., Tensor]:
    """`solve(field, x, t_span, step_size)` with the weights that the block has now; x on the CPU, without gradients.

    Raises:
        ImportError: jax or diffrax is not installed.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import diffrax
    import jax
    import jax.numpy as jnp

    source: Any = block.field
    knots, degree = jnp.asarray(np.array(source.basis.knot_values, np.float32)), source.basis.degree
    coeffs = [jnp.asarray(conv.coeffs.detach().cpu().permute(2, 3, 1, 0, 4).numpy()) for conv in source.convs]
    norms = [tuple(jnp.asarray(p.detach().cpu().numpy()) for p in (n.weight, n.bias)) for n in source.norms]
    groups, eps = source.norms[0].num_groups, source.norms[0].eps

    def basis(t: Any) -> Any:
        values = jnp.where((t >= knots[:-1]) & (t < knots[1:]), 1.0, 0.0)
        for p in range(1, degree + 1):
            widths = knots[p:] - knots[:-p]
            inverse = jnp.where(widths > 0, 1 / jnp.where(widths > 0, widths, 1), 0)
            left, right = inverse[:-1] * values[:-1], inverse[1:] * values[1:]
            values = (t - knots[: -p - 1]) * left + (knots[p + 1 :] - t) * right
        return values

    def norm(x: Any, scale: Any, shift: Any) -> Any:
        grouped = x.reshape(x.shape[0], -1, groups, x.shape[3] // groups)
        mean = grouped.mean((1, 3), keepdims=True)
        variance = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
        return ((grouped - mean) * jax.lax.rsqrt(variance + eps)).reshape(x.shape) * scale + shift

    def field(t: Any, x: Any, args: Any) -> Any:
        row = basis(t)
        for (scale, shift), xi in zip(norms, coeffs, strict=True):
            hidden = jax.nn.relu(norm(x, scale, shift))
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(hidden, xi @ row, (1, 1), "SAME", dimension_numbers=layout)
        return x

    @jax.jit
    def run(x: Any) -> Any:
        x = jnp.transpose(x, (0, 2, 3, 1))
        t0, t1 = block.t_span
        end = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Euler(),
            t0,
            t1,
            None,
            x,
            stepsize_controller=diffrax.StepTo(ts=jnp.asarray(block.grid)),
            max_steps=len(block.step_sizes) + 1,
        )
        return jnp.transpose(end.ys[-1], (0, 3, 1, 2))

    def solve(field: nn.Module, x: Tensor, *_: Any) -> Tensor:
        return torch.from_numpy(np.array(run(jnp.asarray(x.detach().numpy()))))

    return solve
