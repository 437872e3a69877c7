"""The benchmark's peers compute the same network, and its rows are what was measured (no assertion on speed)."""

import csv
import itertools
import sys

import pytest
import timm
import torch

import gode_zoo
from gode_zoo import benchmark, cli
from gode_zoo.benchmark import figures, measuring, peers, report
from gode_zoo.benchmark.figures import Row

NEEDS = {"torchode": "torchode", "diffrax": "diffrax"}


def small(**arguments):
    torch.manual_seed(0)
    return timm.create_model("gode_mnist_m4", **arguments).eval()


@pytest.mark.parametrize("peer", peers.PEERS)
def test_peers_compute_the_same_network(peer):
    if peer in NEEDS:
        pytest.importorskip(NEEDS[peer])
    block = small(degree=2).block
    made = peers.make(peer, block)
    assert peers.check_equal(peer, made, block, torch.randn(2, 64, 6, 6)) <= 1e-5
    own = {p.data_ptr() for p in block.parameters()}
    assert not own & {p.data_ptr() for p in made.parameters()}


@pytest.mark.parametrize("peer", [n for n in peers.PEERS if n not in peers.FORWARD_ONLY and n != "torchdiffeq adjoint"])
def test_peers_train_the_same_network(peer):
    """The gradient of the state is that of our solve (Euler's adjoint has another one)."""
    if peer in NEEDS:
        pytest.importorskip(NEEDS[peer])
    block = small(num_steps=5).block
    x = torch.randn(2, 64, 6, 6)
    grads = []
    for module in (block, peers.make(peer, block)):
        start = x.clone().requires_grad_()
        module(start).square().sum().backward()
        assert all(p.grad is not None for p in module.parameters())
        grads.append(start.grad)
    torch.testing.assert_close(*grads, atol=1e-3, rtol=1e-4)


def test_another_network_is_not_timed():
    block = small().block
    other = peers.make("floor", block)
    with torch.no_grad():
        other.kernels[0][7][0, 0, 0, 0] += 0.1
    with pytest.raises(RuntimeError, match="floor: not the same network"):
        peers.check_equal("floor", other, block, torch.randn(2, 64, 6, 6))
    with pytest.raises(RuntimeError, match="nan"):
        peers.check_equal("x", lambda x: x * float("nan"), block, torch.randn(2, 64, 6, 6))


def test_functions_take_turns_and_the_first_turn_is_not_counted(monkeypatch):
    clock, calls = [0.0], []

    def takes(name, seconds):
        def function():
            calls.append(name)
            clock[0] += seconds * (100 if len(calls) <= 2 else 1)  # the first of each is slow

        return function

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    cpu = torch.device("cpu")
    timings = measuring.take_turns({"a": takes("a", 1.0), "b": takes("b", 3.0)}, budget=20.0, device=cpu)
    turns = [calls[i : i + 2] for i in range(0, len(calls), 2)]
    assert len(turns) == 6 and {tuple(turn) for turn in turns} == {("a", "b"), ("b", "a")}  # five of 4 s each fit
    assert timings["b"] == measuring.Timing(3.0, 3.0, 3.0, 3.0, 5) and timings["a"].ratio == 1.0
    calls.clear()
    assert measuring.take_turns({"a": takes("a", 9.0), "b": takes("b", 9.0)}, 0.1, cpu)["a"].repeats == 3


def test_peak_memory_counts_what_is_held_at_once():
    def function():
        first = torch.ones(1000, 1000)
        del first
        second, third = torch.ones(1000, 1000), torch.ones(500, 1000)
        return second.sum() + third.sum()

    assert measuring.peak_memory(function, torch.device("cpu")) == pytest.approx(6e6, rel=0.01)


def test_checkpoint_and_reversible_hold_their_share_of_the_memory():
    """The targets that do not depend on the machine's speed, by the allocator's counters."""
    field = small().block.field
    x = torch.randn(32, 64, 6, 6, requires_grad=True)
    peak = {}
    for solver, sensitivity, steps in (
        ("euler", "autograd", 20),
        ("euler", "checkpoint", 20),
        ("leapfrog", "reversible", 20),
        ("leapfrog", "reversible", 80),
    ):
        block = gode_zoo.ODEBlock(field, solver=solver, num_steps=steps, sensitivity=sensitivity)

        def gradients(block=block):
            block(x).sum().backward()

        gradients()
        peak[solver, steps, sensitivity] = measuring.peak_memory(gradients, torch.device("cpu"))
    autograd, checkpoint, few, many = peak.values()
    assert checkpoint <= 0.3 * autograd
    assert many == pytest.approx(few, rel=0.02)


@pytest.fixture
def short(monkeypatch):
    """Every comparison at its smallest."""
    monkeypatch.setattr(figures, "TRAINING_BATCH", 2)
    monkeypatch.setattr(figures, "AXES", {"m": (2, 3), "steps": (3, 7), "T": (1,)})
    monkeypatch.setattr(figures, "MEMORY_STEPS", (4, 20))
    monkeypatch.setattr(figures, "INFERENCE", ((1, 0.0), (2, 0.0)))
    monkeypatch.setattr(figures, "QUICK", 1e-6)


@pytest.mark.slow
def test_a_whole_run_and_its_report(short, tmp_path, monkeypatch, capsys):
    arguments = ["benchmark", "gode_mnist_m4", "--what", "inference,training,axes,memory", "--quick", "--out"]
    monkeypatch.setattr(sys, "argv", ["gode-zoo", *arguments, str(tmp_path / "results")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
        sys.exit(0)
    assert not stopped.value.code
    folder = tmp_path / "results"
    assert sorted(p.name for p in folder.iterdir()) == [f"benchmark_cpu.{s}" for s in ("csv", "md", "png")]
    rows = list(csv.DictReader((folder / "benchmark_cpu.csv").open()))
    inference = [row for row in rows if row["figure"] == "inference"]
    assert {row["peer"] for row in inference} == set(peers.PEERS)
    assert {row["nfe"] for row in inference if row["at"] == "1" and row["seconds"]} <= {"20", ""}
    for row in rows:
        assert row["seconds"] or row["bytes"] or row["note"].startswith("not measured")
    # 0.05 times 3 or 7 equal steps of 1: the authors' table has no entry for 1/3
    assert not [row for row in rows if row["figure"] == "axes steps" and row["peer"].startswith("authors")]
    text = (folder / "benchmark_cpu.md").read_text()
    assert "- device: " in text and "checkpoint / autograd at most 0.3 | 0." in text and "CUDA: not measured" in text


def test_targets_are_judged_from_the_rows():
    def timed(figure, peer, at, ratio):
        return Row(figure, peer, at, ratio, ratio, ratio, ratio)

    rows = [timed("inference", "ours", 1, 1.0), timed("inference", "floor", 1, 0.9)]
    rows += [timed("inference", "authors' formulation", 1, 3.0)]
    rows += [Row("memory", "autograd", 20, bytes=100), Row("memory", "checkpoint", 20, bytes=31)]
    judged = {what: (value, met) for what, value, met in report.targets(rows, "cpu")}
    assert judged["inference, batch 1: authors' / ours at least 2.5"] == ("3.000", True)
    assert judged["inference, batch 1: ours / floor at most 1.05"] == ("1.111", False)
    assert judged["training, fp32: ours / floor at most 1.03"] == ("not measured", None)
    assert judged["memory at 20 steps: checkpoint / autograd at most 0.3"] == ("0.310", False)


def test_plot_has_a_curve_for_each_peer():
    rows = [Row("memory", peer, n, bytes=n * 1000) for n, peer in itertools.product((5, 10), ("a", "b"))]
    figure = report.plot_report([*rows, Row("memory", "c", 7, bytes=4000)], "title")
    (ax,) = figure.axes
    assert {line.get_label() for line in ax.lines} == {"a", "b", "c"}
    assert ax.lines[0].get_ydata().tolist() == [0.005, 0.01]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"what": ["speed"]}, "what='speed'.*inference"), ({"model": "resnet6_mnist"}, "no spline block")],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        next(benchmark.run(**arguments))
