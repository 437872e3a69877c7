"""Every model of the zoo is a timm model: what timm's own tests ask, and what the paper's architecture asks."""

import copy
import hashlib
import json

import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch.nn import functional as F

import gode_zoo  # noqa: F401
from gode_zoo.listing import list_zoo
from gode_zoo.models import _pretrained
from gode_zoo.models._pretrained import WeightsError, verify_weights

MODELS = sorted(n for n in timm.list_models() if timm.model_entrypoint(n).__module__.startswith("gode_zoo."))
GODE = [name for name in MODELS if name.startswith("gode_")]


def create(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, **options)


def image(model, batch=2):
    return torch.randn(batch, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(1))


def test_the_zoo_has_its_models():
    trained = {"gode_mnist_m4", "gode_cifar10_m8"}
    baselines = {"odenet_mnist", "odenet_cifar10", "resnet6_mnist", "resnet20_cifar10"}
    controls = {"resnet1_mnist", "resnet1_cifar10", "stem_mnist", "stem_cifar10"}
    related = {"anode_mnist", "anodev2_mnist", "galerkin_mnist", "splinet_mnist"}
    related |= {f"{name}_{data}" for name in ("continuousnet", "statefulnet") for data in ("mnist", "cifar10")}
    staged = {"gode3_mnist_xs", "gode3_cifar10_xs", "gode3_cifar10_s", "gode3_cifar10_b"}
    assert set(MODELS) == trained | baselines | controls | related | staged


def test_the_list_has_every_model():
    assert {model.arch for model in list_zoo()} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_forward_backward_and_heads(name):
    model = create(name)
    x = image(model)
    model(x).square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []
    model.eval()
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape[:2] == (2, model.num_features)
        assert torch.equal(model.forward_head(features), model(x))
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        model.reset_classifier(3)
        assert model(x).shape == (2, 3) and model.num_classes == 3
        model.reset_classifier(0)
        assert model(x).shape == (2, model.num_features)
        model.reset_classifier(0, "")
        assert model(x).shape == features.shape
        assert create(name, num_classes=0)(x).shape == (2, model.num_features)


@pytest.mark.parametrize("name", MODELS)
def test_configuration_names_what_is_there(name):
    model = create(name)
    cfg = model.pretrained_cfg
    assert set(cfg) >= {"input_size", "pool_size", "mean", "std", "first_conv", "classifier", "num_classes", "license"}
    assert len(cfg["mean"]) == len(cfg["std"]) == cfg["input_size"][0]
    modules = dict(model.named_modules())
    assert isinstance(modules[cfg["first_conv"]], torch.nn.Conv2d)
    assert modules[cfg["classifier"]] is model.get_classifier()
    assert tuple(model.forward_features(image(model)).shape[2:]) == tuple(cfg["pool_size"])
    with pytest.raises(TypeError, match="no_such_option"):
        create(name, no_such_option=1)


@pytest.mark.parametrize("name", MODELS)
def test_features_and_intermediates(name):
    model = create(name).eval()
    x = image(model)
    with torch.no_grad():
        final, middle = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x))
        features = create(name, features_only=True).eval()
        for got, info, intermediate in zip(features(x), features.feature_info, middle, strict=True):
            assert got.shape == intermediate.shape and got.shape[1] == info["num_chs"]
            torch.testing.assert_close(got, intermediate)
        (second,) = create(name, features_only=True, out_indices=(1,)).eval()(x)
        torch.testing.assert_close(second, middle[1])
        torch.testing.assert_close(model.forward_intermediates(x, indices=[0], intermediates_only=True)[0], middle[0])
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([0, 1]) == [0, 1]
        _, kept = pruned.forward_intermediates(x, indices=[0, 1])
        torch.testing.assert_close(kept[1], middle[1])
        assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_channels_last(name):
    model = create(name).double()  # a batch of 2 makes batch norm's gradients ill-conditioned in float32
    x = image(model).double()
    expected = model(x)
    expected.square().mean().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.to(memory_format=torch.channels_last)  # timm's --channels-last
    state = model.forward_features(x.contiguous(memory_format=torch.channels_last))
    assert state.is_contiguous(memory_format=torch.channels_last)
    got = model.forward_head(state)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    got.square().mean().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_torchscript_and_fx(name):
    model = create(name).eval()
    x = image(model)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.jit.script(model)(x), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gode_mnist_m4", "odenet_cifar10", "resnet6_mnist"])
def test_compile_in_one_graph_and_export(name):
    model = create(name).eval()
    x = image(model)
    with torch.no_grad():
        expected = model(x)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected, atol=1e-5, rtol=1e-4)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gode_mnist_m4", "odenet_mnist", "gode3_mnist_xs"])
def test_a_compiled_training_step_is_the_eager_one(name):
    eager = create(name).train()
    compiled = copy.deepcopy(eager)
    torch._dynamo.reset()
    forward = torch.compile(compiled, fullgraph=True, dynamic=False, backend="aot_eager")
    x, labels = image(eager), torch.tensor([3, 7])
    for call in (eager, forward):
        F.cross_entropy(call(x), labels).backward()
    for (key, parameter), other in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, atol=1e-5, rtol=1e-4, msg=key)
    for (key, buffer), other in zip(eager.named_buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(other, buffer, msg=key)  # running statistics of norms


@pytest.mark.parametrize("name", ["gode_mnist_m4", "odenet_mnist", "resnet6_mnist", "stem_mnist"])
def test_checkpointing_gives_the_same_gradients(name):
    gradients = []
    for enable in (False, True):
        model = create(name)
        model.set_grad_checkpointing(enable)
        model(image(model)).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, saving in zip(*gradients, strict=True):
        torch.testing.assert_close(saving, plain, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_parameter_groups(name):
    model = create(name)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == {n for n, _ in model.named_parameters()}
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=0.1, layer_decay=0.5)
    in_groups = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert in_groups == {id(p) for p in model.parameters()}
    assert len({group["lr_scale"] for group in optimizer.param_groups}) > 1


@pytest.mark.parametrize("name", MODELS)
def test_copies_and_moving_averages(name):
    model = create(name).eval()
    x = image(model)
    average = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        for p in model.parameters():
            p.add_(1.0)
        average.update(model, step=1)
        assert not torch.equal(average.module(x), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_needs_standard_operators_only_and_any_batch(tmp_path):
    model = create("gode_cifar10_m8", exportable=True).eval()
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(model, (image(model),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    assert {node.domain for node in program.model.graph} <= {"", "ai.onnx"}
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    x = image(model, batch=3)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(logits), model(x), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_construction_on_meta_and_in_another_dtype(name):
    assert all(p.is_meta for p in create(name, device="meta").parameters())
    model = create(name, dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(image(model).double()).dtype == torch.float64


@pytest.mark.parametrize(("name", "channels"), [("gode_mnist_m4", 3), ("gode_cifar10_m8", 1)])
def test_weights_from_a_file_adapt_to_other_channels_and_classes(name, channels, tmp_path):
    source = create(name)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    (tmp_path / "metrics.json").write_text(json.dumps({"sha256": digest}))
    overlay = {"file": str(tmp_path / "model.safetensors")}
    same = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), source.state_dict().values(), strict=True))
    other = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=channels, num_classes=5)
    assert other.get_classifier().out_features == 5 and torch.equal(
        other.block.field.convs[0].coeffs, source.block.field.convs[0].coeffs
    )
    swapped = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, solver="rk4", num_steps=3)
    assert swapped.block.solver == "rk4" and swapped(image(swapped)).isfinite().all()
    with pytest.raises(WeightsError, match=r"do not fit a model with .*num_basis=6.*convs\.0\.coeffs.*surgery\.refine"):
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_basis=6)
    with pytest.raises(WeightsError, match=r"do not fit a model with .*num_convs=3.* \(Missing key.*norms\.2"):
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_convs=3)


def test_weights_of_another_sha256_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "metrics.json").write_text(json.dumps({"sha256": "0" * 64}))
    actual = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(WeightsError, match=rf"sha256 is {actual}, but {'0' * 64}"):
        verify_weights(tmp_path / "model.safetensors")


def test_bundled_weights_are_those_published():
    for arch, tag, folder in _pretrained.list_weights():
        verify_weights(folder / "model.safetensors")
        assert timm.create_model(f"{arch}.{tag}", pretrained=True).pretrained_cfg["tag"] == tag


def test_keywords_change_the_ode():
    model = create(
        "gode_mnist_m4",
        num_basis=5,
        degree=3,
        knots="clamped",
        t_span=(0.0, 2.0),
        num_convs=3,
        solver="rk4",
        num_steps=3,
    )
    field = model.block.field
    assert len(field.convs) == 3 and field.convs[0].coeffs.shape == (64, 64, 3, 3, 5) and field.basis.degree == 3
    assert model.block.t_span == (0.0, 2.0) and len(model.block.step_sizes) == 3
    adaptive = create("gode_mnist_m4", solver="dopri5", rtol=1e-2, atol=1e-2, sensitivity="adjoint")
    adaptive(image(adaptive, 1)).sum().backward()
    assert all(p.grad is not None for p in adaptive.parameters())
    with pytest.raises(ValueError, match=r"step_size=0\.1, num_steps=10"):
        create("gode_mnist_m4", step_size=0.1, num_steps=10)


@pytest.mark.parametrize("name", GODE)
def test_twenty_euler_steps(name):
    assert create(name).block.times == pytest.approx([n / 20 for n in range(20)], abs=1e-12)


@pytest.mark.parametrize("name", GODE)
def test_splines_keep_their_weight_decay_and_the_paper_its_initialisation(name):
    model = create(name)
    coeffs = model.block.field.convs[0].coeffs
    bound = (1.5 / (576 * coeffs.shape[-1])) ** 0.5
    assert 0.99 * bound < coeffs.abs().max() <= bound
    assert model.no_weight_decay() == set()  # its norms and biases are one-dimensional; timm leaves them out by itself


def test_the_authors_keys_load():
    model = create("gode_cifar10_m8")
    state = model.state_dict()
    from gode_zoo.models.gode import checkpoint_filter_fn

    theirs = {f"odefunc.c{i + 1}": state[f"block.field.convs.{i}.coeffs"] + 1 for i in range(2)}
    theirs |= {
        f"odefunc.norm{i + 1}.{k}": state[f"block.field.norms.{i}.{k}"] + 1
        for i in range(2)
        for k in ("weight", "bias")
    }
    renamed = checkpoint_filter_fn(theirs, model)
    for key in (k for k in state if k.startswith("block.field")):
        assert torch.equal(renamed[key], state[key] + 1)
    assert checkpoint_filter_fn(dict(state), model).keys() == state.keys()
