"""The demo: a trained Neural-GODE reads handwritten digits that it never saw, and learns to read them better.

    make demo        or        python -m gode_zoo.demo

1. Load gode_mnist_m4 with the weights that come with the package, trained on MNIST.
2. Classify scikit-learn's digits: 1,797 real ones by other people, of 8×8 pixels.
3. Fine-tune on the first 500 of them, and classify the other 1,297 again: the accuracy before and after is of those.
4. Save a picture: some predictions, and one convolution kernel over t.

No network is used. On two CPU cores it takes about a minute. Every seed is fixed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from .models._pretrained import WeightsError, find_weights
from .plots import new_figure, plot_kernel, plot_predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracy_table", "classify", "draw", "fine_tune", "load_digits", "main", "prepare", "run"]

MODEL, TAG = "gode_mnist_m4", "modern"
NUM_TRAIN = 500  # digits to fine-tune on; the rest measure
EPOCHS = 8
BATCH_SIZE = 50
LEARNING_RATE = 0.02  # at its peak
SHOWN = 40  # digits in the picture

console = Console()


def main(argv: Sequence[str] | None = None) -> int:
    """The whole demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gode_zoo.demo", description="A Neural-GODE on handwritten digits.")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder of the picture (default: demo_out)")
    out = parser.parse_args(argv).out
    started = time.monotonic()
    try:
        out.mkdir(parents=True, exist_ok=True)
        figure = new_figure(8.0, 9.0)  # now, so that a missing matplotlib is said before the work
        images, labels = load_digits()
        model = load_model()
        run(model, images, labels, figure)
        figure.savefig(out / "demo.png")
        console.print(f"Picture: {out / 'demo.png'}", highlight=False, soft_wrap=True)
    except (WeightsError, ImportError, OSError) as error:
        console.print(f"The demo cannot run: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nStopped.")
        return 130
    console.print(f"Done in {time.monotonic() - started:.0f} s.")
    return 0


def run(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    figure: Figure,
    num_train: int = NUM_TRAIN,
    epochs: int = EPOCHS,
) -> tuple[float, float]:
    """Classify, fine-tune, classify again, draw; returns the accuracy in % before and after."""
    torch.manual_seed(0)
    train_images, train_labels = images[:num_train], labels[:num_train]
    test_images, test_labels = images[num_train:], labels[num_train:]
    console.print(f"{len(labels):,} digits: {num_train:,} to fine-tune on, the other {len(test_labels):,} to measure.")

    before = classify(model, test_images, "Classifying")
    fine_tune(model, train_images, train_labels, epochs)
    after = classify(model, test_images, "Classifying again")

    console.print(accuracy_table(test_labels, before, after))
    draw(figure, model, test_images, test_labels, after)
    return accuracy(before, test_labels), accuracy(after, test_labels)


# ---------------------------------------------------------------------------------------------------------------------
# 1. The model and the digits


def load_model() -> nn.Module:
    """gode_mnist_m4 as timm gives it, with its bundled weights.

    Raises:
        WeightsError: they are missing, or not those that were published.
    """
    try:
        folder = find_weights(MODEL, TAG)
    except WeightsError as error:
        raise WeightsError(
            f"{error}. They come with a checkout (hub/{MODEL}.{TAG}) and with the wheel: fetch one of these anew, or "
            f"train them, which takes more than an hour on two cores: gode-zoo train {MODEL}.{TAG}"
        ) from None
    model = timm.create_model(f"{MODEL}.{TAG}", pretrained=True)
    parameters = sum(p.numel() for p in model.parameters())
    stated = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["last"]["error"]
    console.print(
        f"{MODEL}.{TAG}: {parameters:,} parameters; its card states {stated:.2f} % error on MNIST's test set."
    )
    return model


def load_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits as the model wants them: images (1797, 1, 28, 28) in [0, 1], labels (1797,).

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError("scikit-learn is missing: install the extra `demo`: pip install 'gode_zoo[demo]'") from error
    digits = datasets.load_digits()  # comes with scikit-learn: nothing is downloaded
    return prepare(torch.from_numpy(digits.images)), torch.from_numpy(digits.target).long()


def prepare(digits: Tensor) -> Tensor:
    """Make 8×8 digits with values 0 to 16 look like MNIST's: (N, 8, 8) to (N, 1, 28, 28) in [0, 1].

    MNIST's digits fill about 20×20 pixels in the middle of 28×28, with strokes white on black and sharp at the edge.
    These fill their 8 rows. So they are enlarged to 20×20 (bicubic) and get a border of 4; and since the strokes are
    then blurred, grey from ¼ to ¾ is stretched to black to white. This was settled by looking at both side by side.
    """
    x = digits[:, None].float() / 16.0
    x = F.interpolate(x, size=(20, 20), mode="bicubic", align_corners=False)
    x = ((x - 0.25) / 0.5).clamp(0.0, 1.0)
    return F.pad(x, (4, 4, 4, 4))  # MNIST's mean is 0 and its standard deviation 1 for this model: nothing to normalise


# ---------------------------------------------------------------------------------------------------------------------
# 2. and 3. Classifying and fine-tuning


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description:<18}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def classify(model: nn.Module, images: Tensor, what: str = "Classifying") -> Tensor:
    """Predicted classes (N,) of images (N, 1, 28, 28)."""
    model.eval()
    predicted = []
    with progress_bar() as bar, torch.inference_mode():
        task = bar.add_task(what, total=len(images), note="")
        for batch in images.split(100):
            predicted.append(model(batch).argmax(dim=1))
            bar.advance(task, len(batch))
    return torch.cat(predicted)


def fine_tune(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train all weights on a few images: SGD with a learning rate that rises, then falls to zero."""
    model.train()
    batches = -(-len(images) // BATCH_SIZE)
    total = epochs * batches
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=total, cycle_momentum=False)
    order = torch.Generator().manual_seed(0)
    with progress_bar() as bar:
        task = bar.add_task("Fine-tuning", total=total, note="")
        for epoch in range(epochs):
            for index in torch.randperm(len(images), generator=order).split(BATCH_SIZE):
                loss = F.cross_entropy(model(images[index]), labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update(task, advance=1, note=f"epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}")


# ---------------------------------------------------------------------------------------------------------------------
# 4. Table and picture


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """In %."""
    return 100.0 * (predicted == labels).double().mean().item()


def accuracy_table(labels: Tensor, before: Tensor, after: Tensor) -> Table:
    """How many of each digit were right before and after fine-tuning, and of all."""
    table = Table(title="Accuracy on the digits that were not trained on")
    for head in ("digit", "images", "before", "after"):
        table.add_column(head, justify="right")

    def add(name: str, chosen: Tensor) -> None:
        count = int(chosen.sum())
        if count:
            right = (int((predicted[chosen] == labels[chosen]).sum()) for predicted in (before, after))
            table.add_row(name, f"{count:,}", *(f"{100 * n / count:.1f} %  ({n:,})" for n in right))

    for digit in range(10):
        add(str(digit), labels == digit)
    table.add_section()
    add("all", torch.ones_like(labels, dtype=torch.bool))
    return table


def draw(figure: Figure, model: nn.Module, images: Tensor, labels: Tensor, predicted: Tensor) -> None:
    """The first images with their predictions, above one kernel's nine weights over t."""
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.2, 1.0)).flat
    top.suptitle("Predictions after fine-tuning (green right, red wrong)")
    plot_predictions(images[:SHOWN], predicted[:SHOWN], labels[:SHOWN], columns=10, figure=top)
    plot_kernel(model, figure=bottom)


if __name__ == "__main__":
    sys.exit(main())
