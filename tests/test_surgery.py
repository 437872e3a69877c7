"""Surgery: refinement and residual networks as ODEs give the same output; compression is the L2-best approximation."""

import copy

import pytest
import timm
import torch
from scipy.integrate import quad
from timm.models import save_for_hf
from torch import nn

from gode_zoo import BSplineBasis, ODEBlock, SplineConvField, lift
from gode_zoo.bases import FourierBasis
from gode_zoo.layers import spline_coefficients
from gode_zoo.surgery import compress, from_resnet, refine, refine_, regrid

X = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))


def randomise(module, std=0.3):
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=std), nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return module


def block(basis, num_steps=7, **options):
    return ODEBlock(randomise(SplineConvField(8, basis, **options)), basis.t_span, num_steps=num_steps).eval()


KNOTS = {"uniform": "uniform", "clamped": "clamped", "explicit": None}


@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("kind", KNOTS)
def test_refinement_keeps_the_output_of_every_degree_and_knot_kind(degree, kind):
    """Explicit knots: unequal, with a repeated one, and reaching beyond the span."""
    knots = [-0.5, -0.2, *([0.4] * min(degree + 1, 2)), 0.9, *(1.5 + 0.1 * i for i in range(degree + 3))]
    num_basis = len(knots) - degree - 1 if kind == "explicit" else 7
    basis = BSplineBasis(num_basis, degree, (0.0, 1.5), knots if kind == "explicit" else kind)
    model = block(basis)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for extra in (1, 6, num_basis):
        finer = refine(model, num_basis + extra)
        assert finer.field.basis.num_basis == num_basis + extra == finer.field.convs[0].coeffs.shape[-1]
        assert finer.field.convs[1].basis is finer.field.basis
        with torch.no_grad():
            torch.testing.assert_close(finer(X), model(X), atol=1e-5, rtol=1e-5)
            t = torch.tensor(0.61)
            torch.testing.assert_close(finer.field(t, X), model.field(t, X), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_refinement_takes_every_kind_of_spline_along():
    """Norms and their running statistics, biases and lifted modules, in a model with two bases."""
    first = block(BSplineBasis(4, 1, knots="clamped"), norm="spline_batch")
    with torch.no_grad():
        nn.init.normal_(first.field.norms[0].mean_coeffs), nn.init.uniform_(first.field.norms[0].var_coeffs, 0.5, 2.0)
    lifted = lift(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()), BSplineBasis(3, 2))
    model = nn.Sequential(first, ODEBlock(randomise(lifted), solver="rk4", num_steps=3)).eval()
    finer = refine(model, 9)
    assert {value.shape[-1] for _, value, _ in spline_coefficients(finer)} == {9}
    with torch.no_grad():
        torch.testing.assert_close(finer(X), model(X), atol=1e-5, rtol=1e-5)


def test_momentum_goes_along_and_training_goes_on():
    model = block(BSplineBasis(4, 2, knots="clamped"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = model(X).sum()  # a graph that is still alive must not matter
    loss.backward()
    optimizer.step()
    coeffs = model.field.convs[0].coeffs
    velocity = optimizer.state[coeffs]["momentum_buffer"].clone()
    old_basis = model.field.basis
    refine_(model, 8, optimizer)
    coeffs = model.field.convs[0].coeffs
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    assert len(optimizer.state) == len(list(model.parameters()))
    times = torch.linspace(0, 1, 9)
    after = optimizer.state[coeffs]["momentum_buffer"] @ model.field.basis(times).T
    torch.testing.assert_close(after, velocity @ old_basis(times).T, atol=1e-5, rtol=1e-5)
    before = coeffs.detach().clone()
    model(X).sum().backward()
    optimizer.step()
    assert not torch.equal(before, coeffs)


def test_compression_is_the_nearest_weight_function():
    """The L2 distance, by scipy's quadrature, is stationary: no change of a coefficient makes it smaller."""
    model = block(BSplineBasis(9, 1, (0.0, 2.0), "clamped"))
    smaller = compress(model, 4, degree=2)
    assert smaller.field.basis.degree == 2 and smaller.field.basis.knot_kind == "clamped"
    old, new = (m.field.convs[0].coeffs[3, 2, 1, 1].detach().double() for m in (model, smaller))

    def distance(coeffs):
        def squared(t):
            time = torch.tensor(t, dtype=torch.float64)
            return float(smaller.field.basis(time) @ coeffs - model.field.basis(time) @ old) ** 2

        return quad(squared, 0.0, 2.0, points=list(model.field.basis.breaks())[1:-1], limit=200)[0]

    least = distance(new)
    assert 0 < least < 1
    for i in range(4):
        for step in (0.01, -0.01):
            assert distance(new + step * torch.eye(4).double()[i]) > least


def test_compression_undoes_refinement():
    model = block(BSplineBasis(5, 1))
    again = compress(refine(model, 11), 5, knots="uniform")
    with torch.no_grad():
        torch.testing.assert_close(again(X), model(X), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "change", [lambda m: refine(m, 6), lambda m: compress(m, 3), lambda m: compress(refine(m, 6), 3, 2, "clamped")]
)
def test_a_zoo_model_is_saved_and_loads_again(change, tmp_path):
    model = change(timm.create_model("gode_mnist_m4", norm="spline_group", knots="clamped", num_classes=5)).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert loaded.block.field.basis.knot_values == model.block.field.basis.knot_values


@pytest.mark.parametrize("solver", ["euler", "rk4", "leapfrog"])
def test_another_grid_is_the_same_weights_loaded_with_it(solver, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("gode_mnist_m4", solver=solver, step_size=0.25).eval()
    x = torch.rand(2, 1, 28, 28)
    finer = regrid(model, 7)
    loaded = timm.create_model("gode_mnist_m4", solver=solver, num_steps=7).eval()
    loaded.load_state_dict(model.state_dict())
    save_for_hf(finer, tmp_path, safe_serialization=True)
    saved = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(finer(x), loaded(x)) and torch.equal(saved(x), loaded(x))
        assert not torch.equal(finer(x), model(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regrid(nn.Linear(2, 2), 4), "Linear has no ODE block"),
        (lambda: regrid(timm.create_model("gode_mnist_m4", solver="dopri5"), 4), "num_steps=4.*chooses its own steps"),
        (lambda: regrid(timm.create_model("gode_mnist_m4"), 0), "num_steps=0"),
        (lambda: refine(nn.Linear(2, 2), 4), "Linear has no weights that are B-splines"),
        (
            lambda: refine(ODEBlock(SplineConvField(8, FourierBasis(4)), num_steps=2), 5),
            "no weights that are B-splines",
        ),
        (lambda: refine(block(BSplineBasis(5, 1)), 4), r"num_basis=4.*at least 5, or compress"),
        (lambda: compress(refine(block(BSplineBasis(5, 1)), 7), 3), r"explicit knots: say which.*knots=\"clamped\""),
        (lambda: compress(block(BSplineBasis(5, 1)), 2, 3, "clamped"), r"num_basis=2 with degree=3"),
    ],
)
def test_what_cannot_be_done_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---------------------------------------------------------------------------------------------------------------------
# Residual networks


@pytest.mark.parametrize("name", ["resnet6_mnist", "resnet20_cifar10", "resnet1_mnist"])
def test_our_residual_networks_are_odes(name, tmp_path):
    resnet = timm.create_model(name, num_classes=7)
    randomise(resnet, std=0.1).eval()
    gode = from_resnet(resnet)
    blocks = len(resnet.block.blocks)
    basis = gode.block.field.basis
    assert (basis.num_basis, basis.degree, len(gode.block.step_sizes)) == (blocks, 0, blocks)
    x = torch.rand(2, *resnet.pretrained_cfg["input_size"])
    with torch.no_grad():
        torch.testing.assert_close(gode(x), resnet(x), atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in gode.parameters()) == sum(p.numel() for p in resnet.parameters())
    save_for_hf(gode, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(x), gode(x))
    if blocks > 1:
        fewer = compress(gode, 4, degree=1)
        assert fewer(x).shape == (2, 7) and fewer.block.field.norms[0].coeffs.shape == (64, 4)


def test_a_residual_network_made_without_timm():
    from gode_zoo.models import ResNet

    resnet = randomise(ResNet(num_blocks=2, in_chans=2), std=0.1).eval()
    x = torch.rand(2, 2, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(from_resnet(resnet)(x), resnet(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "stage", "blocks"),
    [
        ("resnet34", "layer1", 3),
        ("resnet34", "layer2", 3),  # of four, the first of which changes the shape
        ("resnet26", "layer2", 1),
        ("resnext50_32x4d", "layer1", 2),
        ("resnetv2_34", "stages.1", 3),
        ("resnetv2_50", "stages.0", 2),
    ],
)
def test_a_stage_of_a_timm_resnet_is_an_ode(name, stage, blocks):
    model = randomise(timm.create_model(name), std=0.05).eval()
    parent, _, child = stage.rpartition(".")
    theirs = model.get_submodule(stage)
    ours = from_resnet(theirs)
    x = torch.randn(2, next(iter(getattr(theirs, "blocks", theirs))).conv1.in_channels, 6, 6)
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
        assert len(ours[-1].step_sizes) == ours[-1].field.basis.num_basis == blocks
        # In its place in the whole network, and then with fewer basis functions.
        images = torch.randn(1, 3, 64, 64)
        before = model(images)
        setattr(model.get_submodule(parent), child, ours)
        torch.testing.assert_close(model(images), before, atol=1e-5 * float(before.abs().max()), rtol=1e-4)
        if blocks > 2:
            assert sum(p.numel() for p in compress(model, 2).parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (lambda: timm.create_model("resnet18"), r"block 0 \(Conv2d\) is no residual block"),
        (
            lambda: timm.create_model("resnet34", drop_path_rate=0.5).layer2,
            r"block 1 \(BasicBlock\) has stochastic depth",
        ),
        (lambda: timm.create_model("seresnet50").layer1, r"has a layer se \(SEModule\)"),
        (lambda: timm.create_model("resnet34", act_layer="gelu").layer1, "an activation GELU"),
        (lambda: timm.create_model("resnetv2_50x1_bit", pretrained=False).stages[0], "a norm GroupNormAct"),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 1)), "is no residual block that from_resnet knows"),
        (lambda: timm.create_model("resnet18").layer2[:1], "no residual block that keeps"),
        (lambda: timm.create_model("stem_mnist"), "num_blocks=0"),
        (
            lambda: nn.Sequential(*timm.create_model("resnet34").layer1, timm.create_model("resnet34").layer2[1]),
            "differ in shape",
        ),
    ],
)
def test_what_is_no_stack_of_equal_blocks_is_refused(stage, message):
    with pytest.raises(ValueError, match=message):
        from_resnet(stage())


def test_the_given_network_stays_as_it_is():
    stage = timm.create_model("resnet34").layer2
    state = copy.deepcopy(stage.state_dict())
    from_resnet(stage)[0].conv1.weight.data.zero_()
    assert all(torch.equal(value, state[name]) for name, value in stage.state_dict().items())
