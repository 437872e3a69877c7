"""Data: what is on disk is what is in the tensors; everything that can be wrong with it is one error naming the file."""

import gzip
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gode_zoo import data as zoo_data
from gode_zoo.data import (
    DataError,
    ImageData,
    batches,
    holdout,
    load_dataset,
    normalize,
)


def real(name, split, **options):
    try:
        return load_dataset(name, split, download=False, **options)
    except DataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("split", "count", "mean"), [("train", 60000, 0.1307), ("test", 10000, 0.1325)])
def test_mnist_is_mnist(split, count, mean):
    data = real("torch/mnist", split, input_size=(1, 28, 28), num_classes=10)
    assert data.images.shape == (count, 1, 28, 28) and data.images.dtype == torch.uint8
    assert data.images.float().mean().item() / 255 == pytest.approx(mean, abs=1e-4)
    assert data.labels[:5].tolist() == ([5, 0, 4, 1, 9] if split == "train" else [7, 2, 1, 0, 4])


@pytest.mark.slow
def test_cifar10_is_cifar10():
    data = real("torch/cifar10", "test", input_size=(3, 32, 32), num_classes=10)
    assert data.images.shape == (10000, 3, 32, 32)
    assert data.labels.bincount().tolist() == [1000] * 10
    assert data.classes[0] == "airplane" and data.classes[9] == "truck"
    again = real("torch/cifar10", "test")  # from the cache
    assert torch.equal(again.images, data.images) and torch.equal(again.labels, data.labels)


def test_a_folder_and_its_tar_are_the_pixels_written(digits, tmp_path):
    data = load_dataset(str(digits), "train")
    assert data.classes == ("above", "below") and data.labels.tolist() == [0] * 12 + [1] * 12
    pixels = np.array(Image.open(digits / "train" / "below" / "03.png"))
    assert np.array_equal(data.images[15, 0].numpy(), pixels)
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(digits / "train", arcname=".")
    packed = load_dataset(str(tmp_path / "train.tar"), "train")
    assert torch.equal(packed.images, data.images) and torch.equal(packed.labels, data.labels)
    assert len(load_dataset(str(digits), "test")) == 10
    assert len(load_dataset("digits", "test", data_dir=tmp_path)) == 10


def test_cache_is_used_renewed_and_mended(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("GODE_ZOO_CACHE", str(tmp_path / "cache"))
    first = load_dataset(str(digits), "train")
    (file,) = (tmp_path / "cache" / "images").iterdir()

    def no_decoding(*_):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(zoo_data._folders, "stack", no_decoding)
        assert torch.equal(load_dataset(str(digits), "train").images, first.images)
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(load_dataset(str(digits), "train").images, first.images)
    Image.fromarray(np.full((28, 28), 7, np.uint8)).save(digits / "train" / "above" / "00.png")
    os.utime(digits / "train" / "above" / "00.png", ns=(1, 1))
    assert load_dataset(str(digits), "train").images[0].unique().tolist() == [7]


def save(path, mode="L", size=(28, 28)):
    Image.new(mode, size).save(path)


BROKEN = {
    "truncated": (lambda d: d.write_bytes(d.read_bytes()[:60]), {}, r"00\.png: cannot be read as an image"),
    "text": (lambda d: d.write_text("no image"), {}, r"00\.png: cannot be read as an image"),
    "other size": (lambda d: save(d.parent / "05.png", size=(30, 28)), {}, r"05\.png: is 1x28x30 .* is 1x28x28"),
    "wrong size": (
        lambda d: save(d, size=(30, 28)),
        {"input_size": (1, 28, 28)},
        r"00\.png: is 1x28x30 .*takes 1x28x28",
    ),
    "colour": (lambda d: save(d, "RGB"), {"input_size": (1, 28, 28)}, r"00\.png: is 3x28x28 .*takes 1x28x28"),
    "alpha": (lambda d: save(d, "RGBA"), {}, r"00\.png: has image mode RGBA"),
    "too many classes": (lambda d: None, {"num_classes": 1}, r"2 classes \(above, below\), the model has 1"),
    "empty class": (lambda d: (d.parents[1] / "empty").mkdir(), {}, r"empty: class folder without an image"),
    "no class": (lambda d: save(d.parents[1] / "loose.png"), {}, "images outside of class folders"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_fault_is_one_error_naming_the_file(digits, fault):
    damage, options, message = BROKEN[fault]
    damage(digits / "train" / "above" / "00.png")
    with pytest.raises(DataError, match=message):
        load_dataset(str(digits), "train", **options)


def test_a_missing_dataset_says_what_where_and_how(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=rf"train-images.*{tmp_path}.*GODE_ZOO_DATA"):
        load_dataset("torch/mnist", "train", data_dir=tmp_path, download=False)
    with pytest.raises(DataError, match=r"there is no .*/nowhere"):
        load_dataset(str(tmp_path / "nowhere"), "train")
    with pytest.raises(DataError, match="holds no images"):
        load_dataset(str(tmp_path), "train")
    with pytest.raises(DataError, match="split = 'dev'"):
        load_dataset("torch/mnist", "dev")
    (tmp_path / "x.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"x\.tar: cannot be read"):
        load_dataset(str(tmp_path / "x.tar"), "train")


def test_a_failed_download_leaves_no_folder_behind(tmp_path, monkeypatch):
    def refuse(url, download_root, **_):
        Path(download_root).mkdir(parents=True, exist_ok=True)
        raise RuntimeError(f"Error downloading {url}")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    with pytest.raises(DataError, match="the download failed"):
        load_dataset("torch/mnist", "train", data_dir=tmp_path / "mistyped" / "path")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_split_is_not_replaced_by_the_other(digits):
    (digits / "test").rename(digits / "somewhere")
    with pytest.raises(DataError, match="has train but no test split"):
        load_dataset(str(digits), "test")


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files(tmp_path, packed):
    folder = tmp_path / "mnist" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    files = {
        "t10k-images-idx3-ubyte": b"\0\0\x08\x03"
        + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
        + pixels.tobytes(),
        "t10k-labels-idx1-ubyte": b"\0\0\x08\x01" + (2).to_bytes(4, "big") + bytes([3, 9]),
    }
    for name, content in files.items():
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    data = load_dataset("torch/mnist", "test", data_dir=tmp_path, download=False)
    assert np.array_equal(data.images[:, 0].numpy(), pixels) and data.labels.tolist() == [3, 9]
    file = folder / ("t10k-images-idx3-ubyte" + ".gz" * packed)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"t10k-images.*fetch the file again"):
        load_dataset("torch/mnist", "test", data_dir=tmp_path, download=False)


def test_normalize():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = torch.stack([(images[:, c].double() / 255 - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(normalize(images, mean, std).double(), expected, atol=1e-6, rtol=0)


def numbered(count):
    return ImageData(
        torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(count), ("x",) * count, "made"
    )


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [4, 4]), (False, [4, 4, 2])])
def test_batches(drop_last, sizes):
    def draw(start):
        generator = torch.Generator().manual_seed(3)
        return [
            b for _, b in batches(numbered(10), 4, shuffle=True, drop_last=drop_last, generator=generator, start=start)
        ]

    whole = draw(0)
    assert [len(b) for b in whole] == sizes
    assert len(torch.cat(whole).unique()) == sum(sizes)
    assert torch.cat(whole).tolist() != sorted(torch.cat(whole).tolist())
    assert all(torch.equal(a, b) for a, b in zip(draw(1), whole[1:], strict=True))  # the order does not depend on start


def test_holdout_parts_are_disjoint_and_the_same_again():
    rest, kept = holdout(numbered(50), 0.2, 7)
    assert len(kept) == 10 and sorted(rest.labels.tolist() + kept.labels.tolist()) == list(range(50))
    assert torch.equal(holdout(numbered(50), 0.2, 7)[1].labels, kept.labels)
    assert not torch.equal(holdout(numbered(50), 0.2, 8)[1].labels, kept.labels)
    with pytest.raises(DataError, match=r"holdout = 0\.001"):
        holdout(numbered(50), 0.001, 7)
