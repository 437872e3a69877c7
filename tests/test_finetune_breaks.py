"""Every way in which fine-tuning may break: what is said, and that nothing is lost or left behind."""

import errno
import math
import os
import resource
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_folders import FAST, bright, make_images, metrics_of, start_model
from PIL import Image
from test_image_reading import huge_png

from gode_zoo.data import DataError
from gode_zoo.finetune import finetune
from gode_zoo.finetuning import job, targets
from gode_zoo.finetuning.out_of_memory import OutOfMemoryHint
from gode_zoo.folder_lock import FolderInUseError, locked_folder
from gode_zoo.run_state import NonFiniteLossError


@pytest.fixture
def start(tmp_path):
    return str(start_model(tmp_path / "start"))


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "pets")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


def refused(message, start, data, out, error=DataError, **changes):
    """It is refused with these words, and no folder is left."""
    with pytest.raises(error, match=message):
        finetune(start, data, out, **FAST | changes)
    assert not out.exists()


def test_an_empty_folder(start, tmp_path, out):
    (tmp_path / "empty").mkdir()
    refused("holds no image", start, tmp_path / "empty", out)


def test_one_class(start, tmp_path, out):
    refused("has one class, 'above'", start, make_images(tmp_path / "x", labels=("above",)), out)


def test_one_image_a_class(start, tmp_path, out):
    refused("every class has one image", start, make_images(tmp_path / "x", count=1), out)


def test_two_images_a_class_are_enough(start, tmp_path, out):
    result = finetune(start, make_images(tmp_path / "x", count=2), out, **FAST)
    assert result.finished and metrics_of(out)["last"]["total"] == 2


def test_duplicate_file_names(start, tmp_path, out, caplog):
    """Of one name in two classes, and one image under two names, in train and in validation."""
    images = make_images(tmp_path / "x", count=3, splits=("train", "val"))
    for i in range(3):
        shutil.copy(images / "train" / "above" / f"{i:02d}.png", images / "val" / "above" / f"copy{i}.png")
    finetune(start, images, out, **FAST)
    assert "3 images of val are in train too" in caplog.text
    rows = (out / "split.csv").read_text().splitlines()
    assert len(rows) == len(set(rows)) == 1 + 6 + 9


def test_a_class_missing_from_validation(start, tmp_path, out, caplog):
    images = make_images(tmp_path / "x", count=4, splits=("train", "val"))
    shutil.rmtree(images / "val" / "below")
    assert finetune(start, images, out, **FAST).finished
    assert "val has no image of below" in caplog.text
    assert "Not measured, for there is no image: below" in (out / "report.html").read_text()


@pytest.mark.slow
def test_ten_thousand_classes(start, tmp_path, out):
    """Two images each; the page stays small, for it shows what is worth seeing."""
    rows = ["path,label"]
    (tmp_path / "images").mkdir()
    for i in range(200):
        bright("a", np.random.default_rng(i), 8).save(tmp_path / "images" / f"{i}.png")
    for c in range(10_000):
        for i in range(2):
            link = tmp_path / "images" / f"{c}-{i}.png"
            link.symlink_to(tmp_path / "images" / f"{(c + i) % 200}.png")
            rows.append(f"images/{link.name},class {c}")
    (tmp_path / "many.csv").write_text("\n".join(rows))
    result = finetune(start, tmp_path / "many.csv", out, image_size=12, **FAST | {"epochs": 1, "batch_size": 1000})
    assert result.finished and len(result.classes) == 10_000 and result.classes[2] == "class 2"
    assert (out / "report.html").stat().st_size < 300_000


def break_images(folder: Path) -> list[str]:
    """Spoil some images, each in its way; their names."""
    noise = Image.effect_noise((40, 40), 60)
    noise.save(folder / "above" / "truncated.png")
    content = (folder / "above" / "truncated.png").read_bytes()
    (folder / "above" / "truncated.png").write_bytes(content[: len(content) // 2])
    noise.save(folder / "above" / "truncated.jpg")
    content = (folder / "above" / "truncated.jpg").read_bytes()
    (folder / "above" / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "below" / "empty.png").write_bytes(b"")
    (folder / "below" / "text.jpg").write_text("no image")
    (folder / "below" / "huge.png").write_bytes(huge_png(20_000, 20_000))
    (folder / "below" / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "below" / "loop.png").symlink_to(folder / "below" / "loop.png")
    return ["above/truncated.png", "above/truncated.jpg", "below/empty.png", "below/text.jpg", "below/huge.png",
            "below/dangling.png", "below/loop.png"]  # fmt: skip


def test_broken_images_stop_it_before_training_every_one_named(start, images, out):
    names = break_images(images)
    with pytest.raises(DataError, match=r"^7 images cannot be read: .*Mend or remove them.*--skip-broken") as caught:
        finetune(start, images, out, **FAST)
    assert all(name in str(caught.value) for name in names)
    assert "\n" not in str(caught.value) and not out.exists()


def test_broken_images_can_be_left_out(start, images, out, caplog):
    names = break_images(images)
    assert finetune(start, images, out, skip_broken=True, **FAST).finished
    assert all(name in caplog.text for name in names)
    assert "7 images could not be read and were left out" in (out / "report.html").read_text()


def test_a_class_whose_images_are_all_broken(start, images, out):
    for file in (images / "below").iterdir():
        file.write_bytes(b"no")
    refused("no image is left to train with of below", start, images, out, skip_broken=True)


def test_images_of_one_pixel_and_of_any_mode(start, images, out):
    Image.new("L", (1, 1), 255).save(images / "above" / "one.png")
    Image.new("CMYK", (30, 90)).save(images / "below" / "cmyk.tif")
    Image.new("RGBA", (3, 300)).save(images / "above" / "tall.png")
    assert finetune(start, images, out, **FAST).finished


def test_names_in_any_language(start, tmp_path, out):
    images = make_images(tmp_path / "Bilder ñ 猫", labels=("above ü", "ベロー"), count=4)
    os.rename(images / "ベロー" / "00.png", os.fsencode(images / "ベロー") + b"/\xff.png")
    result = finetune(start, images, out, **FAST)
    assert result.classes == ("above ü", "ベロー") and metrics_of(out)["dataset"] == "Bilder ñ 猫"
    assert "ベロー" in (out / "report.html").read_text(encoding="utf-8")
    assert "\\xff.png" in (out / "split.csv").read_text(encoding="utf-8")


def test_symlink_loops(start, images, out):
    (images / "above" / "round").symlink_to(images / "above")
    (images / "above" / "up").symlink_to(images)
    assert finetune(start, images, out, **FAST).finished
    assert len((out / "split.csv").read_text().splitlines()) == 1 + 24


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_unreadable_files(start, images, out, monkeypatch):
    """As for a user without the right to read; root may read anything, so the system's answer is put in its place."""
    forbidden = images / "below" / "03.png"
    real = Image.open

    def refusing(file, *args, **options):
        if file == forbidden:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return real(file, *args, **options)

    monkeypatch.setattr(Image, "open", refusing)
    refused(r"1 image cannot be read: below/03.png \(Permission denied\)", start, images, out)


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_a_read_only_output_folder(start, images, tmp_path, out, monkeypatch):
    real = os.open

    def refusing(path, flags, *args, **options):
        if str(path).startswith(str(out)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(
        OSError, match=r"run: cannot be written to \(Read-only file system\): choose another folder \(--out\)"
    ):
        finetune(start, images, out, **FAST)
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written to"):
        finetune(start, images, tmp_path / "file" / "run", **FAST)


def test_a_disk_that_is_too_full_is_refused_before_the_work(start, images, out, monkeypatch):
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    refused(r"the disk has 0 MiB free, the run needs \d+: free some", start, images, out, OSError)


@pytest.mark.skipif(os.name != "posix", reason="limits")
def test_a_disk_that_gets_full_keeps_the_last_checkpoint(start, images, out):
    """A real error of the system in the middle of a file: the process may write no more than 100 kB into one."""
    finetune(start, images, out, max_steps=2, **FAST)
    before = (out / "checkpoint.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"checkpoint.pt: cannot be written \(File too large\); it is as it was before"
        ):
            finetune(start, images, out, resume=True, **FAST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (out / "checkpoint.pt").read_bytes() == before and not list(out.glob(".*.tmp"))
    assert finetune(start, images, out, resume=True, **FAST).finished


@pytest.mark.parametrize("auto", [True, False], ids=["in the range test", "in training"])
def test_out_of_memory_says_which_batch_fits(start, images, out, monkeypatch, auto):
    forward = job.FinetuneJob.forward

    def limited(self, model, x):
        if len(x) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(self, model, x)

    monkeypatch.setattr(job.FinetuneJob, "forward", limited)
    with pytest.raises(
        OutOfMemoryHint, match=r"batch of 16 images of \(1, 28, 28\); a batch of 4 fits: --batch-size 4"
    ):
        finetune(start, images, out, **FAST | {"batch_size": 16, "lr": None if auto else 0.05})


def test_a_loss_that_is_no_number(start, images, out, monkeypatch):
    finetune(start, images, out, max_steps=2, **FAST)
    before = (out / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(targets.F, "cross_entropy", lambda logits, *_, **__: logits.sum() * math.nan)
    with pytest.raises(NonFiniteLossError, match=r"at step 3 .*last good checkpoint is .*Lower --lr"):
        finetune(start, images, out, resume=True, **FAST)
    assert (out / "checkpoint.pt").read_bytes() == before


def test_two_runs_on_one_folder(start, images, out):
    with locked_folder(out), pytest.raises(FolderInUseError, match="another run is at work"):
        finetune(start, images, out, **FAST)


def test_no_warning_is_about_our_own_code(start, images, out):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        finetune(start, images, out, **FAST | {"lr": None})
    ours = [str(w.message) for w in seen if "gode_zoo" in w.filename]
    assert ours == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to become another user")
def test_as_another_user_who_may_neither_read_nor_write(start, images, tmp_path, out):
    """The system's own refusals: as `nobody`, whom root may become for a while."""
    finetune(start, images, out, **FAST)  # imports what is needed, which another user may not be allowed to read
    for file in Path(start).iterdir():
        file.chmod(0o644)
    (images / "above" / "05.png").chmod(0o600)
    for path in tmp_path.parents:
        if path.stat().st_uid == 0 and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o777)
    os.seteuid(65534)
    try:
        refused(r"cannot be written to \(Permission denied\)", start, images, tmp_path / "other", OSError)
        refused(r"above/05.png \(Permission denied\)", start, images, tmp_path / "home" / "run")
    finally:
        os.seteuid(0)
