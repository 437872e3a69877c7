"""bf16 by recipe on every chip: one without bf16 instructions takes the products of the same numbers in float32.

    with any_chip_bf16(device, recipe.amp):     # around forward and backward
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.amp == "bf16"):
            ...

A product of two bf16 numbers is exact in float32, and chips that have bf16 instructions add such products up in float32. So the
two ways differ in the order of a sum alone. Without it torch 2.14 took 18 times as long in bf16 as in float32 for a training
step of gode_cifar10_m8 on a CPU with AVX2; with it, the same time as in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["any_chip_bf16", "computes_bf16"]

_aten = torch.ops.aten
_PRODUCTS = {
    _aten.convolution.default,
    _aten.convolution_backward.default,
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
}


def computes_bf16(device: torch.device) -> bool:
    """Whether the chip has instructions for bf16, and torch uses them."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # torch below 2.9
        return torch.cpu._is_avx512_bf16_supported()
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is Arm's


@contextlib.contextmanager
def any_chip_bf16(device: torch.device, amp: str) -> Iterator[None]:
    """Within it products of bf16 tensors are taken in float32, if `amp` is `"bf16"` and the device is a CPU without bf16."""
    if amp == "bf16" and device.type == "cpu" and not computes_bf16(device):
        with _ProductsInFloat32():
            yield
    else:
        yield


class _ProductsInFloat32(TorchDispatchMode):
    """Convolutions and matrix products of bf16 tensors, and their gradients: in float32, rounded to bf16 at the end."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _PRODUCTS or not any(_is_bf16(arg) for arg in args):
            return func(*args, **(kwargs or {}))
        out = func(*(arg.float() if _is_bf16(arg) else arg for arg in args), **(kwargs or {}))
        return tuple(map(_rounded, out)) if isinstance(out, tuple) else _rounded(out)


def _is_bf16(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16


def _rounded(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.bfloat16()
