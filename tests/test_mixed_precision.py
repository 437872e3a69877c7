"""bf16 by recipe on a chip that has none."""

import dataclasses

import pytest
import torch
from finetune_folders import FAST, make_images, start_model
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gode_zoo import mixed_precision
from gode_zoo.finetune import finetune
from gode_zoo.mixed_precision import any_chip_bf16, computes_bf16
from gode_zoo.recipes import recipe_from_dict
from gode_zoo.train import train

CPU = torch.device("cpu")


class Products(TorchDispatchMode):
    """The types in which convolutions and matrix products reach the chip."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(word in func.__name__ for word in ("conv", "mm")):
            self.types |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.fixture
def old_chip(monkeypatch):
    monkeypatch.setattr(mixed_precision, "computes_bf16", lambda device: False)


def outputs_and_gradients(context, dtype=torch.float32):
    """Of a convolution and a linear layer under autocast, or of the same numbers rounded to bf16 in `dtype`."""
    random = torch.Generator().manual_seed(0)
    x, kernel, weight = (torch.randn(*size, generator=random) for size in ((4, 8, 6, 6), (8, 8, 3, 3), (5, 8)))
    leaves = [v.bfloat16().to(dtype).requires_grad_() for v in (x, kernel, weight)]
    with context:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            hidden = F.conv2d(leaves[0], leaves[1], padding=1)
            out = F.linear(hidden.mean((2, 3)), leaves[2])
        gradients = torch.autograd.grad(out.to(dtype).square().sum(), leaves)
    return [hidden, out, *gradients]


def test_products_are_those_of_the_rounded_numbers(old_chip):
    for ours, exact in zip(
        outputs_and_gradients(any_chip_bf16(CPU, "bf16")),
        outputs_and_gradients(any_chip_bf16(CPU, "none"), torch.float64),
        strict=True,
    ):
        assert (ours - exact).norm() < 2**-7 * exact.norm()  # bf16 rounds by up to 2^-9 at each of a few places


def test_it_gives_what_torch_gives_in_bf16(old_chip):
    ours, native = outputs_and_gradients(any_chip_bf16(CPU, "bf16")), outputs_and_gradients(any_chip_bf16(CPU, "none"))
    for a, b in zip(ours, native, strict=True):
        assert a.dtype == b.dtype
        assert (a.float() - b.float()).norm() < 2**-8 * b.float().norm()


@pytest.mark.parametrize("amp", ["bf16", "none"])
def test_a_chip_without_bf16_trains_without_a_product_in_bf16(recipe_dict, tmp_path, old_chip, amp):
    recipe = dataclasses.replace(recipe_from_dict(recipe_dict), amp=amp, model="gode_mnist_m4")
    with Products() as products:
        train(recipe, tmp_path / "run", max_steps=1, progress=False)
    assert products.types == {torch.float32}


def test_a_chip_with_bf16_computes_in_it(recipe_dict, tmp_path, monkeypatch):
    monkeypatch.setattr(mixed_precision, "computes_bf16", lambda device: True)
    with Products() as products:
        train(
            dataclasses.replace(recipe_from_dict(recipe_dict), amp="bf16"),
            tmp_path / "run",
            max_steps=1,
            progress=False,
        )
    assert torch.bfloat16 in products.types


def test_a_chip_without_bf16_fine_tunes_without_a_product_in_bf16(tmp_path, old_chip):
    start, images = start_model(tmp_path / "start"), make_images(tmp_path / "images")
    with Products() as products:
        finetune(str(start), images, tmp_path / "run", **FAST | {"amp": "bf16", "epochs": 1, "lr": None})
    assert products.types == {torch.float32}


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [({"avx2": True}, False), ({"avx512_bf16": True}, True), ({"avx512_bf16": False, "amx_bf16": True}, True)],
)
def test_a_cpu_has_bf16_by_its_instructions(monkeypatch, capabilities, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert computes_bf16(CPU) is has
