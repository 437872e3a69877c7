"""The benchmark's peers compute the same network, and its rows are what was timed (no assertion on speed)."""

import pytest
import timm
import torch

import gode_zoo  # noqa: F401
from gode_zoo import benchmark


@pytest.mark.parametrize("peer", [benchmark.AuthorsBlock, benchmark.FixedBlock])
def test_peers_compute_the_same_network(peer):
    block = timm.create_model("gode_mnist_m4", degree=2).block
    x = torch.randn(2, 64, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(peer(block)(x), block(x), atol=1e-5, rtol=1e-5)


def test_compare_takes_turns_and_leaves_the_first_out(monkeypatch):
    clock, calls = [0.0], []

    def takes(name, seconds):
        def function():
            calls.append(name)
            clock[0] += seconds * (100 if len(calls) <= 2 else 1)  # the first of each is slow

        return function

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    row = benchmark._compare("w", "p", takes("a", 1.0), takes("b", 3.0), 4, "cpu")
    assert calls == ["a", "b"] * 5
    assert (row.ours_s, row.peer_s) == pytest.approx((1.0, 3.0))
    assert (row.ratio_low, row.ratio, row.ratio_high) == pytest.approx((3.0, 3.0, 3.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repeats": 0}, "repeats=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"model": "resnet6_mnist"}, "no spline block"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        next(benchmark.run(**arguments))
