"""Data sets in every form, and every way in which one can be unfit."""

import io
import os
import tarfile
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from gode_zoo.data import DataError, ImageData
from gode_zoo.images.reading import read_image
from gode_zoo.images.sources import find_images, natural_key


def image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(path)


@pytest.fixture
def folder(tmp_path):
    for name in ("cat/1.png", "cat/10.png", "cat/2.png", "dog/1.png", "dog/deep/er/3.JPG", "dog/.hidden.png"):
        image(tmp_path / "pets" / name, len(name))
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "pets" / ".git").mkdir()
    return tmp_path / "pets"


def found(source):
    return [(s.name, s.label, s.split) for s in source.samples]


def test_a_folder_of_class_folders(folder):
    source = find_images(folder)
    assert source.name == "pets" and source.classes == ("cat", "dog")
    assert found(source) == [
        ("cat/1.png", "cat", ""),
        ("cat/2.png", "cat", ""),
        ("cat/10.png", "cat", ""),
        ("dog/1.png", "dog", ""),
        ("dog/deep/er/3.JPG", "dog", ""),
    ]
    assert source.samples[0].open() == folder / "cat" / "1.png"


def test_splits_of_a_folder(tmp_path, caplog):
    for name in ("Train/a/1.png", "Train/b/1.png", "validation/a/1.png", "test/b/1.png", "other/c/1.png"):
        image(tmp_path / "x" / name)
    source = find_images(tmp_path / "x")
    assert {(s.label, s.split) for s in source.samples} == {
        ("a", "train"), ("b", "train"), ("a", "val"), ("b", "test")
    }  # fmt: skip
    assert "left out beside train: other" in caplog.text


def test_a_class_may_be_called_test(tmp_path):
    for name in ("test/1.png", "control/1.png"):
        image(tmp_path / name)
    assert find_images(tmp_path).classes == ("control", "test")


def packed(folder, path, mode="w"):
    with tarfile.open(path, mode) as archive:
        archive.add(folder, arcname="wrapper/pets")
    return path


@pytest.mark.parametrize(("name", "mode"), [("pets.tar", "w"), ("pets.tar.gz", "w:gz")])
def test_a_tar_is_read_as_the_folder_it_was_made_from(folder, tmp_path, name, mode):
    source = find_images(packed(folder, tmp_path / name, mode))
    assert source.classes == ("cat", "dog")
    for packed_one, plain in zip(source.samples, find_images(folder).samples, strict=True):
        assert packed_one.name == f"wrapper/pets/{plain.name}" and packed_one.label == plain.label
        assert torch.equal(read_image(packed_one.open(), (1, 4, 4)), read_image(plain.open(), (1, 4, 4)))


def test_tars_as_splits(folder, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        with tarfile.open(data / f"{split}.tar", "w") as archive:
            for name in ("cat", "dog"):
                archive.add(folder / name, arcname=name)
    source = find_images(data)
    assert {s.split for s in source.samples} == {"train", "test"} and len(source.samples) == 10


def test_of_two_members_with_one_name_the_last_counts(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, value in (("a/1.png", 1), ("b/1.png", 2), ("a/1.png", 3), ("./b/2.png", 4)):
            file = io.BytesIO()
            Image.new("L", (4, 4), value).save(file, "PNG")
            info = tarfile.TarInfo(name)
            info.size = file.tell()
            file.seek(0)
            archive.addfile(info, file)
    source = find_images(tmp_path / "x.tar")
    values = {s.name: int(read_image(s.open(), (1, 4, 4))[0, 0, 0]) for s in source.samples}
    assert values == {"a/1.png": 3, "b/1.png": 2, "b/2.png": 4}


@pytest.mark.parametrize(
    "text",
    [
        "path,label,split\nimages/é.png,un,train\nimages/2.png,deux,train\nimages/3.png,deux,val\n",
        "\ufefffilename;class;split\r\nimages/é.png;un;Training\r\nimages/2.png;deux;train\r\nimages/3.png;deux;valid\r\n",
    ],
)
def test_a_csv(tmp_path, text):
    image(tmp_path / "images" / "é.png")
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    source = find_images(tmp_path / "labels.csv")
    assert source.name == "labels.csv" and source.classes == ("deux", "un")
    assert [s.split for s in source.samples] == ["train", "train", "val"]
    assert source.samples[0].open() == tmp_path / "images" / "é.png"


def test_a_row_twice_counts_once(tmp_path, caplog):
    (tmp_path / "l.csv").write_text("path,label\na.png,x\nb.png,y\na.png,x\n")
    assert len(find_images(tmp_path / "l.csv").samples) == 2
    assert "1 rows repeat another" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it needs path and label"),
        ("file,colour\na.png,red\n", "has the columns file, colour: it needs path and label"),
        ("path,label\na.png,x\nb.png,\n,y\n", "row 3 has no label; row 4 has no path"),
        ("path,label\na.png,x\nb.png\n", "row 3 has no label"),
        ("path,label,split\na.png,x,train\nb.png,y,holdout\n", "row 3 has the split 'holdout'"),
        ("path,label\na.png,x\na.png,y\n", "row 3 gives a.png another label"),
        ("path,label\n", "holds no image"),
    ],
)
def test_a_csv_with_labels_that_are_not_there(tmp_path, text, message):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        find_images(tmp_path / "l.csv")


def test_latin_1_is_refused(tmp_path):
    (tmp_path / "l.csv").write_bytes("path,label\né.png,x\n".encode("latin-1"))
    with pytest.raises(DataError, match="save it as UTF-8"):
        find_images(tmp_path / "l.csv")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no image"),
        (["a/readme.txt"], "holds no image"),
        (["cat/1.png", "cat/2.png"], "has one class, 'cat'"),
        (["1.png", "a/1.png", "b/1.png"], r"outside of class folders \(1.png\)"),
        (["train/1.png", "train/a/1.png", "train/b/1.png"], r"outside of class folders \(train/1.png\)"),
        (["a/1.png", "b/1.png", "c/none.txt"], "class folder c has no image"),
        (["train/a/1.png", "train/b/1.png", "test/c/1.png"], "c is a class of val or test without an image in train"),
        (["test/a/1.png", "test/b/1.png"], "none to train with"),
    ],
)
def test_unfit_folders(tmp_path, files, message):
    for name in files:
        image(tmp_path / "x" / name.replace(".txt", ".png"))
        if name.endswith(".txt"):
            (tmp_path / "x" / name.replace(".txt", ".png")).rename(tmp_path / "x" / name)
    (tmp_path / "x").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=message):
        find_images(tmp_path / "x")


def test_what_is_not_there_or_no_data_set(tmp_path):
    with pytest.raises(DataError, match="there is no nowhere"):
        find_images("nowhere")
    image(tmp_path / "1.png")
    with pytest.raises(DataError, match="is one image"):
        find_images(tmp_path / "1.png")
    (tmp_path / "x.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match="nor a whole tar"):
        find_images(tmp_path / "x.tar")


def test_links_that_lead_round_and_round(folder, caplog):
    (folder / "dog" / "loop").symlink_to(folder)
    (folder / "dog" / "self").symlink_to(folder / "dog" / "self")
    (folder / "bird").symlink_to(folder / "cat")  # a link that leads elsewhere counts
    source = find_images(folder)
    assert len(source.samples) == 5 + 3 and source.classes == ("bird", "cat", "dog")
    assert "leads back" in caplog.text


def test_a_folder_that_cannot_be_listed(folder, monkeypatch):
    real = type(folder).iterdir

    def iterdir(path):
        if path.name == "dog":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(type(folder), "iterdir", iterdir)
    with pytest.raises(DataError, match=r"dog: cannot be listed \(Permission denied\)"):
        find_images(folder)


def test_names_that_are_no_ascii_or_no_text(tmp_path):
    image(tmp_path / "x" / "猫" / "ñ <b>.png")
    os.makedirs(os.fsencode(tmp_path / "x") + b"/\xff")
    image(tmp_path / "1.png")
    os.rename(tmp_path / "1.png", os.fsencode(tmp_path / "x") + b"/\xff/\xfe.png")
    source = find_images(tmp_path / "x")
    assert source.classes == ("\\xff", "猫")
    assert {s.name for s in source.samples} == {"猫/ñ <b>.png", "\\xff/\\xfe.png"}
    assert all(read_image(s.open(), (1, 4, 4)).shape == (1, 4, 4) for s in source.samples)
    "".join(s.name for s in source.samples).encode()


def test_torch_mnist_by_name(monkeypatch):
    data = ImageData(torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4), torch.tensor([1, 0]), ("zero", "one"), "x")
    monkeypatch.setattr("gode_zoo.images.sources.load_dataset", lambda *args, **kwargs: data)
    source = find_images("torch/mnist")
    assert source.name == "torch/mnist" and [s.split for s in source.samples] == ["train"] * 2 + ["test"] * 2
    assert source.samples[0].label == "one"
    assert torch.equal(read_image(source.samples[1].open(), (1, 4, 4)), data.images[1])


class Fake:
    """A dataset as timm makes one."""

    def __init__(self):
        self.reader = SimpleNamespace(class_to_idx={"hen": 0, "owl": 1})

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return Image.new("RGB", (5, 5)), i


def test_other_names_through_timm(monkeypatch):
    asked = []

    def create(name, split, **options):
        asked.append(split)
        if split == "validation":
            raise ValueError("Unknown split")
        return Fake()

    monkeypatch.setattr("timm.data.create_dataset", create)
    source = find_images("hfds/somebody/birds")
    assert asked == ["train", "validation", "val", "test"] and source.classes == ("hen", "owl")
    assert {s.split for s in source.samples} == {"train", "val", "test"}
    monkeypatch.setattr("timm.data.create_dataset", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(DataError, match=r"timm could not open it \(ZeroDivisionError"):
        find_images("torch/nothing")


def test_natural_order():
    names = ["10", "9", "a10", "a9", "b", "01", "1"]
    assert sorted(names, key=natural_key) == ["01", "1", "9", "10", "a9", "a10", "b"]
