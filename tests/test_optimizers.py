"""The optimiser of a recipe: which parameter is updated and decayed how."""

import pytest
import timm
import torch

import gode_zoo  # noqa: F401  (registers the models)
from gode_zoo.optimizers import make_optimizer
from gode_zoo.recipes import Optimizer

MODELS = ["gode_cifar10_m8", "gode3_cifar10_xs", "resnet6_mnist"]


def settings_of(model, optimizer):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group for group in optimizer.param_groups for parameter in group["params"]}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["sgd", "muon"])
def test_weight_decay_is_of_kernels_alone(name, kind):
    model = timm.create_model(name)
    found = settings_of(model, make_optimizer(model, Optimizer(0.1, kind, nesterov=True, weight_decay=1e-3)))
    assert found.keys() == dict(model.named_parameters()).keys()
    for key, parameter in model.named_parameters():
        kernel = parameter.dim() >= 4 or key == "head.fc.weight"
        assert found[key]["weight_decay"] == (1e-3 if kernel else 0.0), key
        assert found[key]["lr"] == 0.1


@pytest.mark.parametrize("name", MODELS)
def test_muon_orthogonalises_kernels_between_first_and_last_layer(name):
    torch.manual_seed(0)
    model = timm.create_model(name)
    optimizer = make_optimizer(model, Optimizer(0.02, "muon", momentum=0.9, weight_decay=1e-3))
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    model(torch.rand(4, *model.pretrained_cfg["input_size"])).square().mean().backward()
    optimizer.step()
    for key, parameter in model.named_parameters():
        middle = parameter.dim() >= 4 and key != "stem.conv1.weight"
        assert optimizer.state[parameter]["use_muon"] == middle, key
        if middle:
            moved = (parameter.detach() - before[key] * (1 - 0.02 * 1e-3)).flatten(1)
            values = torch.linalg.svdvals(moved)
            assert values.max() < 3 * values.median()  # of a gradient it is more: see the next line
            gradient = torch.linalg.svdvals(parameter.grad.flatten(1))
            assert gradient.max() / gradient.median() > values.max() / values.median()
