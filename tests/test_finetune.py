"""Fine-tuning: what is learned and kept, resuming bit for bit, and the folder that comes out."""

import csv
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import timm
import torch
from finetune_folders import FAST, make_images, metrics_of, start_model
from PIL import Image
from safetensors.torch import load_file

from gode_zoo.class_predictions import predict_classes
from gode_zoo.data import DataError
from gode_zoo.evaluate import evaluate
from gode_zoo.finetune import finetune
from gode_zoo.finetuning import job, targets
from gode_zoo.finetuning.model import find_start, freeze, make_model
from gode_zoo.finetuning.recipe import automatic_batch_size, automatic_ema_decay
from gode_zoo.finetuning.targets import ClassTargets
from gode_zoo.predict import find_files, predict
from gode_zoo.run_folder import CheckpointError
from gode_zoo.train import TrainingInterrupted


@pytest.fixture
def start(tmp_path):
    return str(start_model(tmp_path / "start"))


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "pets")


def weights(folder):
    return load_file(folder / "model.safetensors")


def same_weights(a, b):
    return all(torch.equal(value, weights(b)[name]) for name, value in weights(a).items())


def test_it_learns_and_leaves_a_folder_that_tells_the_truth(start, images, tmp_path):
    out = tmp_path / "run"
    result = finetune(start, images, out, **FAST | {"epochs": 8, "lr": None})
    assert result.finished and result.error == 0.0 and result.split == "validation"
    metrics = metrics_of(out)
    assert (metrics["tag"], metrics["dataset"], metrics["split"]) == ("finetuned", "pets", "validation")
    assert metrics["finetuned_from"] == "stem_mnist.finetuned" and metrics["epochs"] == len(result.history)
    assert metrics["last"] == {"epoch": result.best_epoch, "error": 0.0, "correct": 4, "total": 4}
    assert metrics["best"]["selected_by"] == "the validation split"
    assert metrics["sha256"] == hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert metrics["recipe_sha256"] == hashlib.sha256((out / "recipe.yaml").read_bytes()).hexdigest()
    assert str(tmp_path) not in (out / "metrics.json").read_text() + (out / "recipe.yaml").read_text()
    config = json.loads((out / "config.json").read_text())
    assert config["label_names"] == ["above", "below"] and "label_names" not in config["pretrained_cfg"]

    # What timm loads classifies as was measured, and `predict` says the same by name.
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    held_out = [row for row in csv.DictReader((out / "split.csv").open()) if row["split"] == "val"]
    assert len(held_out) == 4
    said = predict(str(out), [images / row["path"] for row in held_out], 1)
    assert [p.classes[0][0] for p in said] == [row["label"] for row in held_out]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(images / row["path"])))[None] for row in held_out])
    truth = torch.tensor([config["label_names"].index(row["label"]) for row in held_out])
    measured = predict_classes(model, pixels, truth, (0.0,), (1.0,))
    best = result.history[result.best_epoch - 1]
    assert measured.error == best["val_error"] and measured.loss == pytest.approx(best["val_loss"], abs=1e-5)


def test_a_test_split_is_measured_once_at_the_end(start, tmp_path):
    images = make_images(tmp_path / "x", splits=("train", "test"))
    result = finetune(start, images, tmp_path / "run", **FAST)
    metrics = metrics_of(tmp_path / "run")
    assert result.split == metrics["split"] == "test" and metrics["last"]["total"] == 24
    assert metrics["best"]["total"] == 24 and all("test_error" not in row for row in result.history)


def test_evaluate_measures_the_same_images_again(start, images, tmp_path):
    finetune(start, images, tmp_path / "run", **FAST)
    again = evaluate(str(tmp_path / "run"), data_dir=tmp_path, device="cpu")
    assert again.agrees and again.measured.total == 4
    (tmp_path / "run" / "split.csv").unlink()
    with pytest.raises(DataError, match=r"has no split\.csv"):
        evaluate(str(tmp_path / "run"), data_dir=tmp_path)


@pytest.mark.parametrize("stops", [(1,), (3,), (2, 2)], ids=["in an epoch", "epoch's end", "twice"])
def test_a_resumed_run_equals_an_uninterrupted_one(start, images, tmp_path, stops):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = FAST | {"lr": None if len(stops) == 2 else 0.05, "balanced": True, "flip": True}
    finetune(start, images, whole, **arguments)
    for i, steps in enumerate(stops):
        assert not finetune(start, images, parts, max_steps=steps, resume=i > 0, **arguments).finished
        torch.manual_seed(i)  # what happens between the calls does not matter
    assert finetune(start, images, parts, resume=True, **arguments).finished
    assert same_weights(whole, parts)
    for name in ("split.csv", "recipe.yaml"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    logs = [list(csv.DictReader((folder / "train_log.csv").open())) for folder in (whole, parts)]
    for row in (row for log in logs for row in log):
        del row["seconds"]
    assert logs[0] == logs[1] and len(logs[0]) == 2


def test_a_finished_run_can_be_resumed_to_mend_its_files(start, images, tmp_path):
    finetune(start, images, tmp_path / "run", **FAST)
    before = metrics_of(tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    finetune(start, images, tmp_path / "run", resume=True, **FAST)
    assert (tmp_path / "run" / "report.html").exists() and metrics_of(tmp_path / "run")["sha256"] == before["sha256"]


def test_what_cannot_be_resumed(start, images, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(CheckpointError, match="no such folder to resume"):
        finetune(start, images, out, resume=True, **FAST)
    finetune(start, images, out, max_steps=1, **FAST)
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    with pytest.raises(CheckpointError, match="already holds a run"):
        finetune(start, images, out, **FAST)
    with pytest.raises(CheckpointError, match=r"another recipe: freeze 'none' \(now 'stem'\)"):
        finetune(start, images, out, resume=True, freeze="stem", **FAST)
    (images / "above" / "new.png").write_bytes((images / "above" / "00.png").read_bytes())
    with pytest.raises(CheckpointError, match=r"made of other images, or another split \(see split.csv\)"):
        finetune(start, images, out, resume=True, **FAST)
    assert before == {f.name: f.read_bytes() for f in out.iterdir()}
    (images / "above" / "new.png").unlink()
    (out / "checkpoint.pt").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match="damaged"):
        finetune(start, images, out, resume=True, **FAST)


def test_a_run_killed_before_its_first_checkpoint_resumes_from_the_start(start, images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(job.FinetuneJob, "train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finetune(start, images, tmp_path / "run", **FAST | {"lr": None})
    assert (tmp_path / "run" / "lr_range.csv").exists()
    assert finetune(start, images, tmp_path / "run", resume=True, **FAST | {"lr": None}).finished


@pytest.mark.parametrize("what", ["stem", "all-but-head"])
def test_what_is_frozen_stays(start, images, tmp_path, what):
    finetune(start, images, tmp_path / "run", freeze=what, **FAST)
    before = load_file(f"{start}/model.safetensors")
    for name, value in weights(tmp_path / "run").items():
        kept = name.startswith("stem.") if what == "stem" else not name.startswith("head.")
        assert torch.equal(value, before[name]) == kept, name


def test_lower_layers_learn_more_slowly(tmp_path):
    start = find_start("gode_mnist_m4")
    torch.manual_seed(0)
    model = make_model(start, ClassTargets(("a", "b")), 1, 28)
    recipe = job.FinetuneRecipe(
        "m", "d", 1, 1, job_optimizer(0.1), "t", layer_decay=0.5, ema_decay=0.9, model_args={}
    )  # fmt: skip
    made = object.__new__(job.FinetuneJob)
    made.recipe = recipe
    optimizer = made.make_optimizer(model, 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.head.fc.weight)] == 0.1
    assert rates[id(model.block.field.convs[0].coeffs)] == 0.05
    assert rates[id(model.stem.conv1.weight)] == 0.025


def job_optimizer(lr):
    from gode_zoo.recipes import Optimizer

    return Optimizer(lr=lr, nesterov=True)


def test_early_stopping(start, images, tmp_path, monkeypatch):
    errors = iter([50.0, 25.0, 25.0, 30.0, 25.0, 0.0])

    class Measured:
        loss, score = 1.0, "error"

        def __init__(self):
            self.error = next(errors)

    measure = job.FinetuneJob.measure
    calls = []

    def fake(self, model, data):
        calls.append(1)
        return Measured() if len(calls) <= 5 else measure(self, model, data)

    monkeypatch.setattr(job.FinetuneJob, "measure", fake)
    result = finetune(start, images, tmp_path / "run", patience=3, **FAST | {"epochs": 20})
    assert len(result.history) == 5 and result.best_epoch == 2


def test_balanced_sampling_draws_each_class_equally_often():
    made = object.__new__(job.FinetuneJob)
    made.labels = torch.tensor([0] * 900 + [1] * 100)
    made.device = torch.device("cpu")
    made.weights = (1.0 / made.labels.bincount().double())[made.labels]
    drawn = made.labels[made.order(torch.Generator().manual_seed(0))]
    assert len(drawn) == 1000 and 440 < int(drawn.sum()) < 560
    made.weights = None
    assert sorted(made.order(torch.Generator().manual_seed(0)).tolist()) == list(range(1000))


# ---------------------------------------------------------------------------------------------------------------------
# The model: channels, classes, size


def test_a_grey_model_sees_colours_as_their_mean():
    start = find_start("gode_mnist_m4")
    torch.manual_seed(0)
    grey, spread = (make_model(start, ClassTargets(("a", "b")), channels, 28) for channels in (1, 3))
    x = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.allclose(spread.forward_features(x), grey.forward_features(x.mean(1, keepdim=True)), atol=1e-4)
    assert spread.pretrained_cfg["input_size"] == (3, 28, 28) and spread.pretrained_cfg["mean"] == (0.0, 0.0, 0.0)


CHANNELS = [("stem_mnist", False, 1), ("stem_mnist", True, 3), ("stem_cifar10", False, 3)]


@pytest.mark.parametrize(("model", "colour", "channels"), CHANNELS)
def test_one_or_three_channels(tmp_path, model, colour, channels):
    start = start_model(tmp_path / "start", model)
    images = make_images(tmp_path / "x", count=4)
    if colour:
        Image.new("RGB", (28, 28), (255, 0, 0)).save(images / "above" / "red.png")
    finetune(str(start), images, tmp_path / "run", **FAST)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"][0] == channels == config["model_args"]["in_chans"]
    assert next(iter(predict(str(tmp_path / "run"), find_files([images / "above"])))).classes


def test_another_size(start, images, tmp_path):
    finetune(start, images, tmp_path / "run", image_size=40, **FAST)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [1, 40, 40]
    assert timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)(torch.rand(1, 1, 40, 40)).shape == (1, 2)


def test_the_head_is_kept_where_its_classes_are_known(tmp_path):
    start = find_start(str(start_model(tmp_path / "start")))
    old = load_file(tmp_path / "start" / "model.safetensors")
    kept = make_model(start, ClassTargets(("dog", "cat")), 1, 28).get_classifier()
    assert torch.equal(kept.weight, old["head.fc.weight"][[1, 0]]) and torch.equal(
        kept.bias, old["head.fc.bias"][[1, 0]]
    )
    other = make_model(start, ClassTargets(("cat", "cow")), 1, 28).get_classifier()  # as many classes, but others
    assert not torch.equal(other.weight, old["head.fc.weight"])
    scratch = make_model(start, ClassTargets(("dog", "cat")), 1, 28, pretrained=False)
    assert not torch.equal(scratch.stem.conv1.weight, old["stem.conv1.weight"])


def test_an_architecture_without_weights_can_be_trained_from_scratch(images, tmp_path, monkeypatch):
    monkeypatch.setattr("gode_zoo.models._pretrained._ROOTS", ())
    with pytest.raises(RuntimeError, match="no bundled weights stem_mnist"):
        finetune("stem_mnist", images, tmp_path / "run", **FAST)
    finetune("stem_mnist", images, tmp_path / "run", pretrained=False, **FAST)
    assert metrics_of(tmp_path / "run")["finetuned_from"] is None


def test_freezing_needs_a_known_word():
    with pytest.raises(ValueError, match=r"freeze = 'head' .*none, stem, all-but-head"):
        freeze(timm.create_model("stem_mnist"), "head")


def test_what_is_automatic():
    assert [automatic_batch_size(n) for n in (3, 159, 160, 639, 640, 100_000)] == [8, 8, 16, 32, 64, 64]
    assert automatic_ema_decay(10) == 0.8 and automatic_ema_decay(10**9) == 0.9995


@pytest.mark.parametrize(
    ("argument", "value"),
    [("epochs", 0), ("batch_size", 0), ("lr", 0.0), ("lr", float("nan")), ("layer_decay", 1.5), ("image_size", 4),
     ("patience", -1), ("amp", "fp8"), ("max_steps", 0), ("val_fraction", 0.0), ("freeze", "all")],
)  # fmt: skip
def test_impossible_arguments(start, images, tmp_path, argument, value):
    with pytest.raises(ValueError, match=rf"{argument} = "):
        finetune(start, images, tmp_path / "run", **FAST | {argument: value})
    assert not (tmp_path / "run").exists()


def test_tensorboard(start, images, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = finetune(start, images, tmp_path / "run", tensorboard=True, **FAST)
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    log.Reload()
    assert [e.value for e in log.Scalars("val_error")] == [row["val_error"] for row in result.history]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"gode_zoo\[tensorboard\]"):
        finetune(start, images, tmp_path / "other", tensorboard=True, **FAST)


def test_bf16(start, images, tmp_path):
    assert finetune(start, images, tmp_path / "run", **FAST | {"amp": "bf16", "epochs": 8}).error == 0.0


# ---------------------------------------------------------------------------------------------------------------------
# Stopping


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_signal_saves_and_the_run_goes_on(start, images, tmp_path, monkeypatch):
    finetune(start, images, tmp_path / "whole", **FAST)
    cross_entropy, calls = targets.F.cross_entropy, []

    def interrupting(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return cross_entropy(*args, **kwargs)

    monkeypatch.setattr(targets.F, "cross_entropy", interrupting)
    with pytest.raises(TrainingInterrupted, match="Ctrl-C at step 2; saved"):
        finetune(start, images, tmp_path / "run", **FAST)
    finetune(start, images, tmp_path / "run", resume=True, **FAST)
    assert same_weights(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_sigkill_loses_nothing(start, images, tmp_path, caplog):
    """Killed at once, at a moment that nobody chose; what goes on is what an uninterrupted run would be."""
    caplog.set_level(logging.ERROR)
    arguments = [
        "--epochs",
        "60",
        "--batch-size",
        "8",
        "--lr",
        "0.05",
        "--amp",
        "none",
        "--patience",
        "0",
        "--device",
        "cpu",
    ]
    command = [
        sys.executable,
        "-m",
        "gode_zoo.cli",
        "finetune",
        start,
        str(images),
        "--out",
        str(tmp_path / "run"),
        *arguments,
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    )
    log, deadline = tmp_path / "run" / "train_log.csv", time.monotonic() + 200
    while (not log.exists() or len(log.read_text().splitlines()) < 4) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    settings = FAST | {"epochs": 60, "patience": 0}
    finetune(start, images, tmp_path / "run", resume=True, **settings)
    finetune(start, images, tmp_path / "whole", **settings)
    assert same_weights(tmp_path / "whole", tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*.tmp"))
