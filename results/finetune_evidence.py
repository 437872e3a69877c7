"""Does fine-tuning help? Bundled weights against random ones, at 10, 100 and all labels a class, on four data sets.

    python results/finetune_evidence.py [--out results] [--work runs/finetune_evidence] [--only digits …]

Both begin from the same images, split and budget of epochs. Fine-tuning takes the learning rate of its range test. Training
from scratch is given more: of the rates in RATES the one with the lowest validation error.
Of the labels a fifth validates: "10 labels" are 8 to train with and 2 to choose the epoch by. The error is that of
test images that no run was chosen by. A row is written when its run is done, and a row that is there is not run again unless
the weights it began from are no longer the bundled ones; until it is, the table says so.

    digits         scikit-learn's 8×8 digits, enlarged                    from gode_mnist_m4 (MNIST)
    mnist          MNIST as RGB                                          from gode_cifar10_m8 (CIFAR-10)
    cifar10        CIFAR-10                                              from gode_mnist_m4 (MNIST), its stem spread
    mnist-shifted  MNIST turned by up to 45°, inverted, with noise       from gode_mnist_m4 (MNIST)

Needs MNIST and CIFAR-10 (GODE_ZOO_DATA) and the extra `demo`. It writes finetune_evidence.csv, .md and .png.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gode_zoo.data import load_dataset
from gode_zoo.demo import load_digits
from gode_zoo.finetune import finetune
from gode_zoo.metrics import mean_and_spread
from gode_zoo.models._pretrained import known_sha256
from gode_zoo.run_folder import atomic_write

COLUMNS = ["data", "from", "labels_a_class", "start", "seed", "epochs"]
COLUMNS += ["train_images", "test_images", "test_error", "learning_rate", "seconds", "weights_sha256"]
START = {
    "digits": "gode_mnist_m4",
    "mnist": "gode_cifar10_m8",
    "cifar10": "gode_mnist_m4",
    "mnist-shifted": "gode_mnist_m4",
}
NUM_TEST = 2000  # images, the same of every run; digits has 797
# Labels a class (0 for all): the most epochs, and the seeds.
BUDGET = {10: (20, (0, 1, 2)), 100: (12, (0,)), 0: (1, (0,))}
RATES = {10: (0.01, 0.03, 0.1), 100: (0.01, 0.03, 0.1), 0: (0.05,)}  # 0.05: the recipes' 0.1 at half their batch
EPOCHS = {("digits", 0): 12}  # a thousand images: the budget of 100 labels a class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--work", type=Path, default=Path("runs/finetune_evidence"))
    parser.add_argument("--only", nargs="*", choices=START, default=list(START))
    parser.add_argument("--labels", nargs="*", type=int, choices=BUDGET, default=list(BUDGET))
    args = parser.parse_args()
    file = args.out / "finetune_evidence.csv"
    rows = list(csv.DictReader(file.open())) if file.exists() else []
    done = {run_key(row) for row in rows if not is_outdated(row)}
    for labels in args.labels:
        epochs, seeds = BUDGET[labels]
        for name in args.only:
            for seed in seeds:
                for start in ("fine-tuned", "from scratch"):
                    if (name, str(labels or "all"), start, str(seed)) not in done:
                        new = run(args.work, name, labels, seed, start, EPOCHS.get((name, labels), epochs))
                        rows = [row for row in rows if run_key(row) != run_key(new)] + [new]
                        write(args.out, rows)
    write(args.out, rows)


def run_key(row: dict[str, object]) -> tuple[str, ...]:
    """What tells a row's run from the others."""
    return tuple(str(row[column]) for column in ("data", "labels_a_class", "start", "seed"))


def weights_sha256(name: str) -> str:
    """The first 12 digits for the bundled weights that a data set begins from."""
    return str(known_sha256(START[name], "modern"))[:12]


def is_outdated(row: dict[str, object]) -> bool:
    """Whether a row began from other weights than those bundled now."""
    return row["start"] == "fine-tuned" and row["weights_sha256"] != weights_sha256(str(row["data"]))


def run(work: Path, name: str, labels: int, seed: int, start: str, epochs: int) -> dict[str, object]:
    """One fine-tuning or training from scratch."""
    table = label_table(work / "images" / name, name, labels, seed)
    results = []
    weights = weights_sha256(name) if start == "fine-tuned" else ""
    for lr in RATES[labels] if start == "from scratch" else (None,):
        out = work / f"{name}-{labels or 'all'}-{start.replace(' ', '-')}-{seed}-{f'{lr:g}' if lr else weights}"
        arguments = {"epochs": epochs, "patience": 0, "pretrained": lr is None, "lr": lr, "seed": seed}
        results.append(finetune(START[name], table, out, resume=out.exists(), **arguments))
    result = min(results, key=lambda each: each.val_error)
    return {
        "data": name,
        "from": START[name] if start == "fine-tuned" else "",
        "labels_a_class": labels or "all",
        "start": start,
        "seed": seed,
        "epochs": epochs,
        "train_images": sum(row["split"] == "train" for row in csv.DictReader((result.out_dir / "split.csv").open())),
        "test_images": sum(row["split"] == "test" for row in csv.DictReader((result.out_dir / "split.csv").open())),
        "test_error": f"{result.error:.2f}",
        "learning_rate": f"{result.lr:g}",
        "seconds": f"{sum(each.seconds for each in results):.0f}",
        "weights_sha256": weights,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Data


def label_table(folder: Path, name: str, labels: int, seed: int) -> Path:
    """A CSV of so many training images a class, drawn by the seed, and of the test images."""
    if not (folder / "done").exists():
        make_images(folder, name)
    random = np.random.default_rng(seed)
    chosen: list[tuple[str, str, str]] = []
    for label in sorted(path.name for path in (folder / "train").iterdir()):
        files = sorted((folder / "train" / label).iterdir())
        picked = random.permutation(len(files))[: labels or None]
        chosen += [(f"train/{label}/{files[i].name}", label, "train") for i in sorted(picked)]
    chosen += [
        (f"test/{path.parent.name}/{path.name}", path.parent.name, "test")
        for path in sorted((folder / "test").glob("*/*"))
    ]
    file = folder / f"labels-{labels or 'all'}-{seed}.csv"
    with file.open("w", newline="") as text:
        csv.writer(text).writerows([("path", "label", "split"), *chosen])
    return file


def make_images(folder: Path, name: str) -> None:
    """Write the data set as PNG files: train/<class>/…, test/<class>/…"""
    for split in ("train", "test"):
        if name == "digits":
            images, labels = load_digits()
            part = slice(0, 1000) if split == "train" else slice(1000, None)
            pixels, labels = (images[part] * 255.0).round().to(torch.uint8), labels[part]
            classes: tuple[str, ...] = tuple("0123456789")
        else:
            data = load_dataset("torch/cifar10" if name == "cifar10" else "torch/mnist", split)
            pixels, labels, classes = data.images, data.labels, data.classes
            if split == "test":
                keep = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:NUM_TEST]
                pixels, labels = pixels[keep], labels[keep]
        random = np.random.default_rng(0 if split == "train" else 1)
        for i, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            array = image.permute(1, 2, 0).numpy()
            picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
            if name == "mnist-shifted":
                picture = shifted(picture, random)
            path = folder / split / classes[label] / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    (folder / "done").touch()


def shifted(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Turned by up to 45°, dark on light, with noise of a tenth of the range."""
    turned = np.asarray(picture.rotate(random.uniform(-45.0, 45.0), Image.Resampling.BILINEAR), dtype=np.float64)
    noisy = 255.0 - turned + random.normal(0.0, 25.0, turned.shape)
    return Image.fromarray(noisy.clip(0.0, 255.0).round().astype(np.uint8))


# ---------------------------------------------------------------------------------------------------------------------
# Table and plot


def write(out: Path, rows: list[dict[str, object]]) -> None:
    """The rows, a table of them, and a plot."""
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join([",".join(COLUMNS), *(",".join(str(row[c]) for c in COLUMNS) for row in rows)]) + "\n"
    atomic_write(out / "finetune_evidence.csv", lambda file: file.write(text.encode()))
    groups: dict[tuple[str, str], dict[str, list[dict[str, object]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[str(row["data"]), str(row["labels_a_class"])][str(row["start"])].append(row)
    order = sorted(groups, key=lambda key: (list(START).index(key[0]), key[1] == "all", key[1].zfill(4)))
    lines = [
        "# Fine-tuning the bundled weights against training from scratch",
        "",
        "Test error in %, mean ± standard deviation over seeds where there are several. Written by",
        "`python results/finetune_evidence.py`, whose head says how; every run is a row of finetune_evidence.csv.",
        "",
        "| data | weights | labels a class | epochs, at most | test images | fine-tuned | from scratch | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in order:
        both = groups[key]
        if len(both) == 2:
            row, seeds = both["fine-tuned"][0], min(len(each) for each in both.values())
            outdated = any(is_outdated(each) for each in both["fine-tuned"])
            weights = f"{row['from']}, earlier weights" if outdated else row["from"]
            cells = [key[0], weights, key[1], row["epochs"], row["test_images"]]
            cells += [mean_and_spread(errors(both[start])) for start in ("fine-tuned", "from scratch")]
            lines.append("| " + " | ".join(str(cell) for cell in [*cells, seeds]) + " |")
    atomic_write(out / "finetune_evidence.md", lambda file: file.write(("\n".join(lines) + "\n").encode()))
    plot(out, groups)


def errors(rows: list[dict[str, object]]) -> list[float]:
    return [float(str(row["test_error"])) for row in rows]


def plot(out: Path, groups: dict[tuple[str, str], dict[str, list[dict[str, object]]]]) -> None:
    from gode_zoo.plots import new_figure

    names = [name for name in START if any(key[0] == name for key in groups)]
    figure = new_figure(3.2 * len(names), 3.2)
    for ax, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for start, colour in (("fine-tuned", "tab:blue"), ("from scratch", "tab:orange")):
            labels = [n for n in ("10", "100", "all") if groups.get((name, n), {}).get(start)]
            values = [errors(groups[name, n][start]) for n in labels]
            ax.plot(labels, [statistics.mean(v) for v in values], "o-", color=colour, label=start)
            for n, v in zip(labels, values, strict=True):
                ax.plot([n] * len(v), v, "_", color=colour)
        ax.set(title=name, xlabel="labels a class", ylabel="test error, %")
        ax.set_ylim(bottom=0.0)
        ax.legend(fontsize="small")
    figure.savefig(out / "finetune_evidence.png")


if __name__ == "__main__":
    main()
