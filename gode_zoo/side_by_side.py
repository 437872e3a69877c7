"""Several trainings at once on one machine, a process each: one of these models leaves a GPU, or the second core, idle.

    train_side_by_side([(recipe, Path("runs/a")), (other, Path("runs/b"))], jobs=2)

Each run is what `train` alone makes of it, with its own folder, log and checkpoints. The cores are shared out evenly.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from .recipes import Recipe
from .run_display import counting, stop_signals
from .train import TrainingInterrupted, train

__all__ = ["SideBySideError", "train_side_by_side"]


class SideBySideError(RuntimeError):
    """One of the runs failed; the others were stopped and saved."""


def train_side_by_side(
    runs: Sequence[tuple[Recipe, Path]],
    jobs: int,
    *,
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    resume: bool = False,
    progress: bool = True,
) -> None:
    """Train every run in its folder, at most `jobs` of them at a time.

    Args:
        runs: recipes with the folders of their runs, no folder twice.
        jobs: processes at a time; the cores are shared out among them.
        data_dir: where datasets are kept.
        device: default CUDA where there is one, else the CPU; all share it.
        resume: go on from the checkpoints that there are.
        progress: show the epochs done of all runs, where stderr is a terminal.

    Raises:
        ValueError: jobs below 1, or a folder twice.
        SideBySideError: a run failed, or its process was killed.
        TrainingInterrupted: Ctrl-C or SIGTERM, after every run was saved.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: must be 1 or more")
    if len({folder.resolve() for _, folder in runs}) < len(runs):
        raise ValueError("two runs have the same folder: give each its own")
    options = {"data_dir": data_dir, "device": device, "progress": False}
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    waiting, failed, asked = list(runs), "", False
    running: dict[int, tuple[Any, Connection, Path]] = {}
    total = sum(recipe.epochs for recipe, _ in runs)
    with stop_signals() as stop, counting(progress, f"epochs of {len(runs)} runs", total) as show:
        while running or (waiting and not stop and not failed):
            while waiting and len(running) < jobs and not stop and not failed:
                recipe, folder = waiting.pop(0)
                goes_on = resume and (folder / "checkpoint.pt").exists()
                answer, own_end = context.Pipe(duplex=False)
                process = context.Process(
                    target=_train_one, args=(recipe, folder, options | {"resume": goes_on}, threads, own_end)
                )
                process.start()
                own_end.close()
                running[process.sentinel] = process, answer, folder
            for sentinel in wait(list(running), timeout=1.0):
                process, answer, folder = running.pop(sentinel)  # type: ignore[arg-type]
                failed = failed or _failure(process, answer, folder, asked)
            if (stop or failed) and not asked:  # once: the run saves at its next step, and a second signal would not
                asked = True
                for process, _, _ in running.values():
                    process.terminate()
            show(sum(_epochs(folder) for _, folder in runs))
    if failed:
        raise SideBySideError(f"{failed}. The other runs were stopped and saved")
    if stop:
        raise TrainingInterrupted(f"stopped by {stop[0]}; every run was saved")


def _train_one(
    recipe: Recipe, folder: Path, options: dict[str, Any], threads: int, answer: Connection
) -> None:  # in a process of its own
    os.setsid()  # Ctrl-C reaches the parent alone, which then asks each run once: a second signal would not save
    torch.set_num_threads(threads)
    try:
        train(recipe, folder, **options)
    except TrainingInterrupted:
        answer.send("")
    except Exception as error:  # told by the parent, in its one line
        answer.send(f"{folder}: {error}")
    else:
        answer.send("")


def _failure(process: Any, answer: Connection, folder: Path, asked: bool) -> str:
    """What a process that ended says, or what its end says; nothing where all is well."""
    process.join()
    with answer, suppress(EOFError):
        return str(answer.recv())
    if process.exitcode == -signal.SIGTERM and asked:  # before it began to train
        return ""
    return f"{folder}: its process ended with {process.exitcode} (−9: killed, often for want of memory: use fewer jobs)"


def _epochs(folder: Path) -> int:
    with suppress(OSError):
        return max(0, len((folder / "train_log.csv").read_text().splitlines()) - 1)
    return 0
