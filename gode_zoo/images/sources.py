"""Where images to learn from come from: a list of samples with their class and split, whatever form the data have.

    source = find_images("photos/")
    source.samples[0].name, source.samples[0].label, source.samples[0].split      # "train/cat/1.jpg", "cat", "train"

What `find_images` takes:
    a folder or tar   with one folder of images a class, below train, val and test or without these; a folder may hold
                      train.tar and the like instead
    a CSV             with columns `path` (from the CSV's folder), `label` and, if wanted, `split`
    torch/…, hfds/…   timm's names of datasets

A class is the first folder below the split; what lies deeper belongs to it. Classes are in natural order (2 before 10).
Names that begin with a dot are left out, and so are files that no image has the name of.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from PIL import Image

from ..data import DataError, load_dataset
from .reading import EXTENSIONS, is_image

__all__ = ["SPLITS", "ImageSource", "Sample", "find_images", "natural_key"]

_logger = logging.getLogger(__name__)

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}

_PATH_COLUMNS = ("path", "file", "filename", "image", "image_path", "filepath")
_LABEL_COLUMNS = ("label", "class", "target", "category", "label_name", "class_name", "outcome")

Opened = Path | IO[bytes] | Image.Image


@dataclass(frozen=True)
class Sample:
    """An image that was not opened yet. `split` is train, val or test, or "" where the data have no splits."""

    name: str
    label: str
    split: str
    opener: Callable[[], Opened]

    def open(self) -> Opened:
        """The image: its path, a binary file, or its pixels."""
        return self.opener()


@dataclass(frozen=True)
class ImageSource:
    """A data set: its name without the folders it lies in, its samples, and its classes in their order (none of outcomes)."""

    name: str
    samples: list[Sample]
    classes: tuple[str, ...]

    def of(self, split: str) -> list[Sample]:
        """The samples of one split."""
        return [sample for sample in self.samples if sample.split == split]


@dataclass(frozen=True)
class _Entry:
    """A file or an empty folder of a tree: the parts of its path, from the tree's top."""

    parts: tuple[str, ...]
    opener: Callable[[], Opened] | None  # None for a folder


def find_images(data: str | Path, *, data_dir: str | Path | None = None, outcomes: bool = False) -> ImageSource:
    """List the images of a data set; of files none is opened yet.

    Args:
        data: see the head of the module.
        data_dir: where datasets of timm's names are kept, and where a relative path is looked for first.
        outcomes: labels are no classes, and any may stand in any split.

    Raises:
        DataError: nothing there, no image, fewer than two classes, images outside of class folders, a class without an
            image, labels that are not there.
    """
    name = str(data)
    if name.startswith(("torch/", "hfds/")):
        return _checked(name, name, _named(name, data_dir), outcomes)
    path = _existing(name, data_dir)
    shown = path.resolve().name
    if path.is_dir():
        return _checked(shown, str(path), _labelled(list(_folder_entries(path)), str(path)), outcomes)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _checked(shown, str(path), _from_csv(path), outcomes)
    if path.suffix.lower() in EXTENSIONS:
        raise DataError(f"{path}: is one image: give the folder that holds one folder of images a class")
    return _checked(shown, str(path), _labelled(list(_tar_entries(path)), str(path)), outcomes)


def natural_key(text: str) -> list[Any]:
    """A key that sorts 2 before 10, and differs wherever the text does."""
    return [*(("", int(part)) if part.isdecimal() else (part, 0) for part in re.split(r"(\d+)", text)), (text, 0)]


def _existing(name: str, data_dir: str | Path | None) -> Path:
    path = Path(name).expanduser()
    tried = [path] if data_dir is None or path.is_absolute() else [Path(data_dir).expanduser() / path, path]
    for candidate in tried:
        if candidate.exists():
            return candidate
    raise DataError(
        f"{name!r}: there is no {' or '.join(str(p) for p in tried)}: give a folder or tar with one folder of images a "
        "class, a CSV with the columns path and label, or a dataset's name (torch/…, hfds/…)"
    )


def _checked(name: str, where: str, samples: list[Sample], outcomes: bool) -> ImageSource:
    """The source, refused where nothing can be learned from it."""
    if not samples:
        raise DataError(f"{where}: holds no image: it must hold one folder of images a class")
    splits = {sample.split for sample in samples}
    if splits != {""} and "train" not in splits:
        raise DataError(f"{where}: has images of {', '.join(sorted(splits))} but none to train with: add train")
    if outcomes:
        return ImageSource(name, samples, ())
    known = {sample.label for sample in samples if sample.split in ("", "train")}
    unknown = sorted({sample.label for sample in samples} - known, key=natural_key)
    if unknown:
        raise DataError(
            f"{where}: {_some(unknown)} {'is a class' if len(unknown) == 1 else 'are classes'} of val or test without an "
            "image in train: add some, or take it away"
        )
    if len(known) < 2:
        raise DataError(
            f"{where}: has one class, {next(iter(known))!r}: at least two are needed, as one folder of images a class"
        )
    return ImageSource(name, samples, tuple(sorted(known, key=natural_key)))


# ---------------------------------------------------------------------------------------------------------------------
# Folders and tars: two ways to list a tree, one to read classes and splits off it


def _folder_entries(top: Path) -> Iterator[_Entry]:
    """Every file and folder under `top`, sorted; links are followed, but not round and round."""

    def walk(folder: Path, parts: tuple[str, ...], above: frozenset[tuple[int, int]]) -> Iterator[_Entry]:
        try:
            found = sorted(folder.iterdir(), key=lambda path: natural_key(path.name))
        except OSError as error:
            raise DataError(f"{folder}: cannot be listed ({error.strerror}): check its permissions") from error
        for path in found:
            if _is_hidden(path.name):
                continue
            here = (*parts, _readable(path.name))
            if path.is_dir():
                status = path.stat()
                identity = (status.st_dev, status.st_ino)
                if identity in above:
                    _logger.warning("%s leads back to a folder that it lies in: left out", path)
                    continue
                yield _Entry(here, None)
                yield from walk(path, here, above | {identity})
            elif not parts and path.suffix == ".tar" and path.stem.lower() in _SPLIT_OF:
                for entry in _tar_entries(path):
                    yield _Entry((path.stem, *entry.parts), entry.opener)
            else:
                yield _Entry(here, partial(_itself, path))

    status = top.stat()
    yield from walk(top, (), frozenset({(status.st_dev, status.st_ino)}))


def _itself(path: Path) -> Path:
    return path


def _readable(name: str) -> str:
    """A file's name as text that can be printed and written: bytes that are no UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _tar_entries(path: Path) -> Iterator[_Entry]:
    """Every member of a tar, packed or not. Of members of one name the last counts, as when it is unpacked."""
    try:
        archive = tarfile.open(path, "r:*")  # noqa: SIM115  (its members are read as long as the process lives)
        members = archive.getmembers()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(
            f"{path}: is neither a folder, nor a CSV, nor a whole tar ({error}): give one of these"
        ) from error
    lock = threading.Lock()

    def content(member: tarfile.TarInfo) -> IO[bytes]:
        with lock:
            file = archive.extractfile(member)
            if file is None:
                raise OSError("is a link that leads nowhere")
            return io.BytesIO(file.read())

    last: dict[tuple[str, ...], tarfile.TarInfo] = {}
    for member in members:
        parts = tuple(_readable(part) for part in member.name.split("/") if part not in ("", "."))
        if parts and not any(_is_hidden(part) for part in parts):
            last[parts] = member
    for parts in sorted(last, key=lambda parts: [natural_key(part) for part in parts]):
        member = last[parts]
        yield _Entry(parts, None if member.isdir() else partial(content, member))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _labelled(entries: list[_Entry], where: str) -> list[Sample]:
    """Samples of a tree: its first folders are splits or classes."""
    files = [e for e in entries if e.opener is not None and is_image(e.parts[-1])]
    folders = {e.parts for e in entries if e.opener is None} | {e.parts[:-1] for e in files}
    others = Counter(
        Path(e.parts[-1]).suffix.lower() or e.parts[-1]
        for e in entries
        if e.opener is not None and not is_image(e.parts[-1])
    )
    if others:
        _logger.info(
            "left out, for they are not images: %s", ", ".join(f"{n} {kind}" for kind, n in others.most_common(5))
        )
    depth = _wrapping(files)
    tops = {parts[depth] for parts in folders if len(parts) > depth}
    by_split: dict[str, str] = {top: _SPLIT_OF[top.lower()] for top in tops if top.lower() in _SPLIT_OF}
    has_splits = "train" in by_split.values() or (bool(tops) and len(by_split) == len(tops))
    if has_splits and tops - by_split.keys():
        _logger.warning("left out beside train: %s", _some(sorted(tops - by_split.keys(), key=natural_key)))
    samples, outside = [], []
    for entry in files:
        parts = entry.parts[depth:]
        split = ""
        if has_splits and len(parts) > 1:
            if parts[0] not in by_split:
                continue
            split, parts = by_split[parts[0]], parts[1:]
        if len(parts) < 2:
            outside.append("/".join(entry.parts))
            continue
        assert entry.opener is not None
        samples.append(Sample("/".join(entry.parts), parts[0], split, entry.opener))
    if outside:
        raise DataError(
            f"{where}: has images outside of class folders ({_some(outside)}): put each into a folder named after its class"
        )
    level = depth + has_splits
    filled = {entry.parts[: level + 1] for entry in files}
    for parts in sorted(folders):
        in_train = not has_splits or by_split.get(parts[depth] if len(parts) > depth else "") == "train"
        if len(parts) == level + 1 and in_train and parts not in filled and samples:
            raise DataError(
                f"{where}: class folder {'/'.join(parts)} has no image in it: add some, or remove the folder"
            )
    return samples


def _wrapping(files: list[_Entry]) -> int:
    """How many folders lie around all images before classes or splits begin: a tar often has one."""
    depth = 0
    while files and all(len(e.parts) > depth + 2 for e in files):
        tops = {e.parts[depth] for e in files}
        if len(tops) > 1 or next(iter(tops)).lower() in _SPLIT_OF:
            break
        depth += 1
    return depth


# ---------------------------------------------------------------------------------------------------------------------
# CSV, and timm's names


def _from_csv(path: Path) -> list[Sample]:
    """One row an image; every row that cannot be used is named at once."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}): save it as UTF-8") from error
    lines = text.splitlines()
    head = lines[0] if lines else ""
    delimiter = max(",;\t", key=head.count)
    reader = csv.DictReader(lines, delimiter=delimiter)
    columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
    rows = list(reader)
    path_column = next((columns[c] for c in _PATH_COLUMNS if c in columns), None)
    label_column = next((columns[c] for c in _LABEL_COLUMNS if c in columns), None)
    if path_column is None or label_column is None:
        raise DataError(
            f"{path}: has the columns {_some(list(columns))}: it needs path and label (also allowed: "
            f"{', '.join((*_PATH_COLUMNS[1:], *_LABEL_COLUMNS[1:]))})"
        )
    split_column = columns.get("split")
    samples: dict[str, Sample] = {}
    wrong: list[str] = []
    repeated = 0
    for number, row in enumerate(rows, start=2):
        file, label = (row[path_column] or "").strip(), (row[label_column] or "").strip()
        split = (row[split_column] or "").strip().lower() if split_column else ""
        if not file or not label:
            wrong.append(f"row {number} has no {'path' if not file else 'label'}")
        elif split_column and split not in _SPLIT_OF:
            wrong.append(f"row {number} has the split {split!r} (allowed: train, val, test)")
        elif file in samples:
            repeated += 1
            if (samples[file].label, samples[file].split) != (label, _SPLIT_OF.get(split, "")):
                wrong.append(f"row {number} gives {file} another label or split than a row before it")
        else:
            samples[file] = Sample(file, label, _SPLIT_OF.get(split, ""), partial(_itself, path.parent / file))
    if wrong:
        raise DataError(f"{path}: {_some(wrong, '; ')}: correct the rows, or take them out")
    if repeated:
        _logger.warning("%s: %d rows repeat another: counted once", path, repeated)
    return list(samples.values())


def _named(name: str, data_dir: str | Path | None) -> list[Sample]:
    """A dataset by timm's name, with the splits that it has."""
    if name in ("torch/mnist", "torch/cifar10"):
        samples = []
        for split in ("train", "test"):
            data = load_dataset(name, split, data_dir=data_dir)
            for i, (pixels, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
                samples.append(Sample(f"{split}/{i:06d}", data.classes[label], split, partial(_picture, pixels)))
        return samples
    from timm.data import create_dataset

    root = str(Path(data_dir).expanduser()) if data_dir is not None else None
    options: dict[str, Any] = {"download": True} if name.startswith("torch/") else {}
    samples = []
    splits: dict[str, tuple[str, ...]] = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test",)}
    if name.startswith("torch/"):
        del splits["val"]  # of these timm takes the test set for it
    for split, aliases in splits.items():
        dataset, problem = None, None
        for alias in aliases:
            try:
                dataset = create_dataset(name, root=root, split=alias, is_training=split == "train", **options)
                break
            except Exception as error:  # each library raises its own kinds
                problem = problem or error
        if dataset is None:
            if split == "train":
                assert problem is not None
                raise DataError(
                    f"dataset {name}: timm could not open it ({type(problem).__name__}: {str(problem).splitlines()[0]}): "
                    f"check the name, the network, and that the package behind {name.partition('/')[0]}/ is installed"
                ) from problem
            continue
        reader = getattr(dataset, "reader", dataset)
        numbered = {v: k for k, v in getattr(reader, "class_to_idx", {}).items()}
        classes: Any = numbered or dict(enumerate(getattr(reader, "classes", ())))
        for i, label in enumerate(_labels(dataset)):
            samples.append(
                Sample(f"{split}/{i:06d}", str(classes.get(label, label)), split, partial(_item, dataset, i))
            )
    return samples


def _labels(dataset: Any) -> Iterator[int]:
    """The labels of a dataset, without decoding its images where it has them in a list."""
    targets = getattr(dataset, "targets", getattr(getattr(dataset, "reader", dataset), "targets", None))
    if targets is not None:
        yield from (int(t) for t in targets)
    else:
        yield from (int(dataset[i][1]) for i in range(len(dataset)))


def _item(dataset: Any, i: int) -> Image.Image:
    return dataset[i][0]


def _picture(pixels: Any) -> Image.Image:
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _some(names: Sequence[str], between: str = ", ", shown: int = 12) -> str:
    more = f"{between}and {len(names) - shown:,} more" if len(names) > shown else ""
    return between.join(names[:shown]) + more
