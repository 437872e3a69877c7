"""Kept weights are those of the parameters as they are now, whatever way they were changed."""

import copy
import pickle

import pytest
import timm
import torch

from gode_zoo import BSplineBasis, ODEBlock, SplineConvField

X = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def block():
    torch.manual_seed(1)
    field = SplineConvField(8, BSplineBasis(6, 1))
    for conv in field.convs:
        torch.nn.init.normal_(conv.coeffs, std=0.2)
    return ODEBlock(field, num_steps=5)


def plainly(block, x=X):
    """The block's solve with weights made anew (gradients are on, so nothing is kept)."""
    return block(x).detach()


def counted(block, monkeypatch):
    calls, make = [], block.field.stage_weights
    monkeypatch.setattr(block.field, "stage_weights", lambda table: calls.append(1) or make(table))
    return calls


def test_inference_keeps_them_and_training_does_not(block, monkeypatch):
    calls = counted(block, monkeypatch)
    for context in (torch.no_grad, torch.inference_mode, torch.no_grad):
        with context():
            first, second = block(X), block(X)
    assert len(calls) == 1
    torch.testing.assert_close(plainly(block), second, atol=0, rtol=0)
    assert torch.equal(first, second) and len(calls) == 2
    block(X).sum().backward()
    assert len(calls) == 3 and block.field.convs[0].coeffs.grad.abs().sum() > 0


def through_data(block):
    block.field.convs[0].coeffs.data[0, 0, 0, 0, 0] += 1e-3


def through_new_data(block):
    block.field.convs[0].coeffs.data = block.field.convs[0].coeffs.data.clone() * 1.1


def through_optimizer(block):
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    block(X).square().sum().backward()
    optimizer.step()


def through_new_parameter(block):
    block.field.convs[1].coeffs = torch.nn.Parameter(block.field.convs[1].coeffs.detach() * 0.9)


def through_load(block):
    block.load_state_dict({name: value * 1.01 for name, value in block.state_dict().items()})


def through_inference_mode(block):
    with torch.inference_mode():
        block.field.convs[0].coeffs.mul_(1.1)


def through_numpy(block):
    block.field.convs[0].coeffs.detach().numpy()[:] *= 1.1


CHANGES = [
    through_data,
    through_new_data,
    through_optimizer,
    through_new_parameter,
    through_load,
    through_inference_mode,
    through_numpy,
]


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_a_parameter_is_seen(block, change):
    with torch.no_grad():
        before = block(X)
    change(block)
    with torch.no_grad():
        after = block(X)
    torch.testing.assert_close(after, plainly(block), atol=0, rtol=0)
    assert not torch.equal(after, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_cast_is_seen(block, dtype):
    with torch.no_grad():
        block(X)
        block.to(dtype)
        torch.testing.assert_close(block(X.to(dtype)), plainly(block, X.to(dtype)), atol=0, rtol=0)


def test_copies_and_pickles_start_empty_and_are_right(block):
    with torch.no_grad():
        end = block(X)
        for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
            assert other._kept._held == {} and torch.equal(other(X), end)
    shallow = copy.copy(block)
    assert torch.equal(shallow(X).detach(), end)


def test_traces_hold_parameters_and_not_kept_weights(block):
    with torch.no_grad():
        block(X)  # now something is kept
        programs = {
            "fx": torch.fx.symbolic_trace(block),
            "export": torch.export.export(block, (X,)).module(),
            "trace": torch.jit.trace(block, (X,)),
            "script": torch.jit.script(block),
        }
        for name, program in programs.items():
            assert any("coeffs" in key for key in program.state_dict()), name
            for key, value in program.state_dict().items():
                if "coeffs" in key:
                    value.zero_()
            torch.testing.assert_close(program(X), X, msg=name)  # no kernel, no motion


def test_vmap_over_parameters_makes_each_its_own(block):
    names = dict(block.named_parameters())
    stacked = {name: torch.stack([value, 1.2 * value]).detach() for name, value in names.items()}
    with torch.no_grad():
        block(X)
        ends = torch.vmap(lambda p: torch.func.functional_call(block, p, (X,)))(stacked)
    for i, end in enumerate(ends):
        alone = torch.func.functional_call(block, {name: value[i] for name, value in stacked.items()}, (X,))
        torch.testing.assert_close(end, alone.detach(), atol=1e-5, rtol=1e-5)


def test_a_model_stays_right_while_it_is_trained_and_evaluated():
    model = timm.create_model("gode_mnist_m4", num_steps=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = torch.randn(2, 1, 28, 28)
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            now = model(x)
        torch.testing.assert_close(now, model(x).detach(), atol=0, rtol=0)


def test_running_statistics_that_move_without_a_parameter():
    """Batch norms of t are buffers: a forward pass in training mode moves them, and no optimiser is asked."""
    torch.manual_seed(2)
    block = ODEBlock(SplineConvField(8, BSplineBasis(6, 1, knots="clamped"), norm="spline_batch"), num_steps=5)
    with torch.no_grad():
        before = block.eval()(X)
        block.train()(X + 3.0)
        after = block.eval()(X)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, plainly(block))


def test_a_single_image_is_solved_in_channels_last_and_comes_back_as_it_was(block):
    """Images of both kinds in turn: each keeps weights of its own layout, and the end of a solve is laid out as its start."""
    with torch.no_grad():
        for _ in range(2):
            for x in (X, X[:1], X[1:]):
                end = block(x)
                torch.testing.assert_close(end, plainly(block, x))
                assert end.is_contiguous()
    kernels = block._kept._held[True][1][0]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert all(kernel.is_contiguous() for kernel in block._kept._held[False][1][0])
