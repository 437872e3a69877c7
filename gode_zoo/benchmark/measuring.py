"""Measuring: repeats that take turns, ratios within each turn, and peak memory by the allocators' own counters."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

__all__ = ["Timing", "captured", "peak_memory", "take_turns"]

Function = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Median seconds, and the median and quartiles of seconds / the first function's seconds in the same turn."""

    seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    repeats: int


def take_turns(
    functions: Mapping[str, Function], budget: float, device: torch.device, most: int = 40
) -> dict[str, Timing]:
    """Time functions in turn, so that what else the machine does meets them alike; the first turn is not counted.

    The order is drawn anew for each turn: what runs after a large function finds the caches emptied.

    Args:
        functions: by name; ratios are to the first.
        budget: seconds to spend, of which the number of turns follows: at least 3, at most `most`.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    order, random = list(functions), Random(0)

    def turn() -> dict[str, float]:
        taken = {}
        random.shuffle(order)
        for name in order:
            function = functions[name]
            _wait(device)
            start = time.perf_counter()
            function()
            _wait(device)
            taken[name] = time.perf_counter() - start
        return taken

    turn()
    while True:
        for name, seconds in turn().items():
            times[name].append(seconds)
        turns = len(next(iter(times.values())))
        spent = sum(map(sum, times.values()))
        if turns >= most or (turns >= 3 and spent * (turns + 1) / turns > budget):
            break
    first = next(iter(times.values()))
    result = {}
    for name, taken in times.items():
        ratios = sorted(mine / base for mine, base in zip(taken, first, strict=True))
        low, middle, high = (ratios[round(q * (len(ratios) - 1))] for q in (0.25, 0.5, 0.75))
        result[name] = Timing(statistics.median(taken), middle, low, high, len(taken))
    return result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(function: Function, device: torch.device) -> int:
    """Most bytes held at once beyond those held before, by the allocator's counters. Run the function once before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would report that there is no GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    results: Any = profiled.profiler.kineto_results  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def captured(function: Function) -> Function:
    """A CUDA graph of a function whose tensors stay where they are: call it to replay what was captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay
