"""What a person sees and does while a model trains: the progress bar, and signals that ask the run to stop."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any

from .recipes import Recipe
from .run_state import RunState

__all__ = ["counting", "display", "stop_signals"]

_logger = logging.getLogger(__name__)


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """A list that gets the signal's name on Ctrl-C or SIGTERM; the loop looks at it after each step.

    A second signal acts at once. Outside the main thread signals are left alone.
    """
    stop: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.append("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
        _logger.warning("stopping after this step and saving; once more stops at once, unsaved")
        for each, handler in before.items():
            signal.signal(each, handler)

    for which in (signal.SIGINT, signal.SIGTERM):
        before[which] = signal.signal(which, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def display(
    progress: bool, recipe: Recipe, steps_per_epoch: int, step: int
) -> AbstractContextManager[Callable[[RunState], None]]:
    """A function that shows how the run stands: a progress bar on a terminal, else nothing (the log has the epochs)."""
    if progress:
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal:
            return _progress_bar(console, recipe, steps_per_epoch, step)
    return nullcontext(lambda run: None)


@contextmanager
def counting(progress: bool, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that shows how many of `total` are done: a progress bar on a terminal, else nothing."""
    from rich.console import Console

    console = Console(stderr=True)
    if not progress or not console.is_terminal:
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def _progress_bar(
    console: Any, recipe: Recipe, steps_per_epoch: int, step: int
) -> Iterator[Callable[[RunState], None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
        console=console,
    )
    then, at = time.monotonic(), step
    with bar:
        task = bar.add_task(recipe.name, total=recipe.epochs * steps_per_epoch, completed=step, figures="")

        def show(run: RunState) -> None:
            nonlocal then, at
            now = time.monotonic()
            speed = (run.step - at) * recipe.batch_size / max(now - then, 1e-9)
            then, at = now, run.step
            loss, accuracy = (run.loss_sum / run.seen).item(), 100.0 * (run.correct / run.seen).item()
            figures = f"epoch {run.epoch + 1}/{recipe.epochs}  {speed:,.0f} images/s  loss {loss:.4f}"
            if recipe.family == "categorical":
                figures += f"  accuracy {accuracy:.2f} %"
            bar.update(task, completed=run.step, figures=figures)

        yield show
