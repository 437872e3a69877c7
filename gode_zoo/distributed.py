"""Several processes that train one model, as `torchrun` starts them; one process where it did not.

    torchrun --nproc-per-node=2 -m gode_zoo.train gode_mnist_m4.modern

Every process draws the same order of the data and the same augmentation, so each sees the same global batch and takes
its own share of it. Gradients are averaged by `DistributedDataParallel`; the loss curve is that of one process with the
same global batch, to rounding. Process 0 alone writes files and shows progress.

The backend is NCCL on GPUs, one a process, and Gloo on CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["World", "world"]


@dataclass(frozen=True)
class World:
    """This process among all: number `rank` of `size`, working on `device`."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, *batch: Tensor) -> list[Tensor]:
        """Of tensors (B, …) this process's rows: all, in one process; else about B / size, no row in two shares."""
        return [tensor.tensor_split(self.size)[self.rank] for tensor in batch] if self.size > 1 else list(batch)

    def total(self, *counts: Tensor) -> list[Tensor]:
        """Each tensor's sum over the processes; what is given stays as it is."""
        if self.size == 1:
            return list(counts)
        sums = [count.clone() for count in counts]
        for each in sums:
            dist.all_reduce(each)
        return sums

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process. All must ask."""
        if self.size == 1:
            return flag
        asked = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return bool(asked.item())


@contextmanager
def world(device: str | torch.device | None = None) -> Iterator[World]:
    """The processes that `torchrun` started, joined for the length of the context; or this one alone.

    Args:
        device: default CUDA where there is one, else the CPU. A plain ``"cuda"`` becomes each process's own GPU.

    Raises:
        ValueError: more processes on this machine than GPUs, or one GPU named for several processes.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(chosen)
        return
    if chosen.type == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if chosen.index is not None or local >= gpus:
            raise ValueError(
                f"device={str(chosen)!r} for {size} processes with {gpus} GPUs here: give --device cuda and at most one "
                "process a GPU (torchrun --nproc-per-node), or --device cpu"
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(chosen, dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
