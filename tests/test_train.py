"""Training: a resumed run is the uninterrupted one, nothing is lost when something breaks, and metrics tell the truth."""

import csv
import dataclasses
import hashlib
import json
import os
import signal

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from gode_zoo import run_state
from gode_zoo import train as training
from gode_zoo.data import load_dataset
from gode_zoo.evaluate import count_correct
from gode_zoo.recipes import learning_rate, recipe_from_dict
from gode_zoo.train import CheckpointError, NonFiniteLossError, TrainingInterrupted, train


@pytest.fixture
def recipe(recipe_dict):
    return recipe_from_dict(recipe_dict)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("stops", [(3,), (1, 1), (2, 2, 1)], ids=["epoch's end", "in an epoch", "several times"])
def test_a_resumed_run_equals_an_uninterrupted_one(recipe, tmp_path, stops):
    recipe = dataclasses.replace(recipe, ema_decay=0.9)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe, whole, progress=False)
    for i, steps in enumerate(stops):
        result = train(recipe, parts, max_steps=steps, resume=i > 0, progress=False)
        assert not result.finished
        torch.manual_seed(i)  # what happens between the calls does not matter
    assert train(recipe, parts, resume=True, progress=False).finished
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(parts)[name]), name
    logs = [list(csv.DictReader((folder / "train_log.csv").open())) for folder in (whole, parts)]
    for row in (row for log in logs for row in log):
        del row["seconds"], row["step_seconds"]
    assert logs[0] == logs[1] and len(logs[0]) == 2


def test_metrics_name_the_machine_that_a_run_moved_to(recipe, tmp_path, monkeypatch):
    first, second = ({"device": name, "cpu": name, "cores": 2, "threads": 1} for name in ("One CPU", "Another CPU"))
    monkeypatch.setattr(run_state, "hardware", lambda device: first)
    train(recipe, tmp_path / "run", max_steps=1, progress=False)
    train(recipe, tmp_path / "run", max_steps=1, resume=True, progress=False)
    monkeypatch.setattr(run_state, "hardware", lambda device: second)
    train(recipe, tmp_path / "run", resume=True, progress=False)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["hardware"] == first
    assert [(each["from_step"], each["hardware"]) for each in metrics["resumed_with"]] == [(2, second)]


class _Waits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: reading a value, finding which are set, copying one over."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        names = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "lift_fresh")
        self.count += op.overloadpacket.__name__ in names
        return op(*args, **kwargs or {})


@pytest.mark.parametrize("model", ["gode_mnist_m4", "gode3_mnist_xs"])
def test_a_step_never_makes_the_host_wait(recipe, tmp_path, monkeypatch, model):
    augment = dataclasses.replace(recipe.augment, rotation=10.0, cutout=4, mixup=0.2)
    recipe = dataclasses.replace(recipe, model=model, augment=augment, ema_decay=0.9, amp="bf16", batch_size=2)
    monkeypatch.setattr(training, "refuse_non_finite_loss", lambda *_: None)  # at every step on a CPU alone

    def waits(steps):
        with _Waits() as seen:
            train(recipe, tmp_path / f"{steps}", max_steps=steps, progress=False)
        return seen.count

    waits(1)  # fills what is kept
    assert waits(2) == waits(5) > 0  # within the first epoch, of 12


def test_metrics_tell_what_the_published_weights_do(recipe, digits, tmp_path):
    result = train(recipe, tmp_path / "run", progress=False)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    file = tmp_path / "run" / "model.safetensors"
    assert metrics["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert metrics["recipe_sha256"] == hashlib.sha256((tmp_path / "run" / "recipe.yaml").read_bytes()).hexdigest()
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights(tmp_path / "run")[name])
    measured = count_correct(model, load_dataset(str(digits), "test", cache=False), (0.0,), (1.0,))
    assert (metrics["last"]["correct"], metrics["last"]["total"]) == (measured.correct, measured.total)
    assert result.last == measured
    assert metrics["best"]["error"] == min(row["test_error"] for row in result.history)
    assert metrics["num_seeds"] == 1 and metrics["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("flip", ["flip", "alternating_flip", None])
def test_a_run_with_flips_is_also_measured_with_mirror_images(recipe, digits, tmp_path, flip):
    off = dataclasses.replace(recipe.augment, flip=False, alternating_flip=False)
    augment = dataclasses.replace(off, **{flip: True}) if flip else off
    train(dataclasses.replace(recipe, augment=augment), tmp_path / "run", progress=False)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert ("mirrored" in metrics) == bool(flip)
    if flip:
        model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
        data = load_dataset(str(digits), "test", cache=False)
        assert metrics["mirrored"] == count_correct(model, data, (0.0,), (1.0,), mirror=True).to_dict()


def test_held_out_images_choose_the_best_epoch(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, holdout=0.25, log_test=False)
    result = train(recipe, tmp_path / "run", progress=False)
    assert all("test_error" not in row for row in result.history[:-1])  # the test set is read once, at the end
    assert result.best["selected_by"].startswith("held-out")
    assert result.best["val_error"] == min(row["val_error"] for row in result.history)


def test_a_used_folder_is_refused_and_left_alone(recipe, tmp_path):
    train(recipe, tmp_path / "run", max_steps=1, progress=False)
    before = {f.name: f.read_bytes() for f in (tmp_path / "run").iterdir()}
    with pytest.raises(CheckpointError, match="already holds a run"):
        train(recipe, tmp_path / "run", progress=False)
    with pytest.raises(CheckpointError, match=r"another recipe: seed 0 \(now 5\)"):
        train(dataclasses.replace(recipe, seed=5), tmp_path / "run", resume=True, progress=False)
    assert before == {f.name: f.read_bytes() for f in (tmp_path / "run").iterdir()}


def test_a_damaged_checkpoint_is_refused(recipe, tmp_path):
    train(recipe, tmp_path / "run", max_steps=1, progress=False)
    file = tmp_path / "run" / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="damaged"):
        train(recipe, tmp_path / "run", resume=True, progress=False)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(recipe, tmp_path / "none", resume=True, progress=False)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    training.atomic_write(path, lambda file: file.write(b"old"))

    def half(file):
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        training.atomic_write(path, half)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        training.atomic_write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_an_infinite_loss_stops_and_keeps_the_last_checkpoint(recipe, tmp_path, monkeypatch):
    train(recipe, tmp_path / "run", max_steps=2, progress=False)
    good = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(training.F, "cross_entropy", lambda logits, *_, **__: logits.sum() * float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"step 3 .*last good checkpoint is .*optimizer\.lr"):
        train(recipe, tmp_path / "run", resume=True, progress=False)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == good


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_signal_saves_and_the_run_goes_on(recipe, tmp_path, monkeypatch):
    train(recipe, tmp_path / "whole", progress=False)
    cross_entropy, calls = training.F.cross_entropy, []

    def interrupting(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return cross_entropy(*args, **kwargs)

    monkeypatch.setattr(training.F, "cross_entropy", interrupting)
    with pytest.raises(TrainingInterrupted, match=r"SIGTERM at epoch 1, step 2; saved"):
        train(recipe, tmp_path / "run", progress=False)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(recipe, tmp_path / "run", resume=True, progress=False)
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "run")[name])


def test_different_classes_in_train_and_test_are_refused(recipe, digits, tmp_path):
    (digits / "test" / "below").rename(digits / "test" / "beneath")
    with pytest.raises(ValueError, match=r"above, below.*above, beneath"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_learning_rates(recipe):
    recipe = dataclasses.replace(recipe, epochs=10)
    rates = [learning_rate(recipe, step, 10) for step in range(101)]
    assert rates[29] == max(rates) == 0.05  # three tenths of a hundred updates are the warm-up
    assert rates[0] == pytest.approx(0.05 / 30) and rates[100] == 0
    assert rates[65] == pytest.approx(0.025)
    step = recipe_from_dict(recipe.to_dict() | {"schedule": {"name": "step", "milestones": [6, 8], "gamma": 0.1}})
    assert [learning_rate(step, n, 10) for n in (0, 59, 60, 80, 99)] == pytest.approx([0.05, 0.05, 0.005, 5e-4, 5e-4])
