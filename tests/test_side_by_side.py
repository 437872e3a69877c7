"""Several trainings at once: each is what it is alone, and nothing is lost when one fails or all are stopped."""

import dataclasses
import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from gode_zoo.recipes import recipe_from_dict
from gode_zoo.side_by_side import SideBySideError, train_side_by_side
from gode_zoo.train import TrainingInterrupted, train

OPTIONS = {"device": "cpu", "progress": False}


@pytest.fixture
def recipes(recipe_dict):
    """Three runs that differ by their seed."""
    return [recipe_from_dict(recipe_dict | {"seed": seed}) for seed in range(3)]


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_each_run_is_what_it_is_alone(recipes, tmp_path):
    pairs = [(recipe, tmp_path / str(recipe.seed)) for recipe in recipes]
    train(recipes[0], tmp_path / "0", max_steps=2, **OPTIONS)
    train_side_by_side(pairs, 2, resume=True, **OPTIONS)
    alone = torch.get_num_threads()
    torch.set_num_threads(max(1, alone // 2))
    try:
        for recipe, folder in pairs:
            train(recipe, tmp_path / "alone" / folder.name, **OPTIONS)
            for name, value in weights(tmp_path / "alone" / folder.name).items():
                assert torch.equal(value, weights(folder)[name]), (recipe.seed, name)
    finally:
        torch.set_num_threads(alone)


def test_one_that_fails_is_named_and_the_others_are_saved(recipes, tmp_path):
    bad = dataclasses.replace(recipes[0], optimizer=dataclasses.replace(recipes[0].optimizer, lr=1e30))
    long = dataclasses.replace(recipes[1], epochs=2000)
    with pytest.raises(SideBySideError, match=r"bad: the loss is NaN or infinite at step.*were stopped and saved"):
        train_side_by_side([(long, tmp_path / "long"), (bad, tmp_path / "bad")], 2, **OPTIONS)
    step = torch.load(tmp_path / "long" / "checkpoint.pt", weights_only=True)["step"]
    result = train(long, tmp_path / "long", resume=True, max_steps=1, **OPTIONS)
    assert result.step == step + 1


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_and_saves_all(recipes, tmp_path, signal_):
    pairs = [(dataclasses.replace(recipe, epochs=2000), tmp_path / str(recipe.seed)) for recipe in recipes]

    def once_they_train():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not all((tmp_path / n / "train_log.csv").exists() for n in "01"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal_)

    threading.Thread(target=once_they_train).start()
    with pytest.raises(TrainingInterrupted, match="every run was saved"):
        train_side_by_side(pairs, 2, **OPTIONS)
    for name in "01":
        assert torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["step"] >= 3
    assert not (tmp_path / "2").exists()


def test_a_killed_process_is_told(recipes, tmp_path):
    long = dataclasses.replace(recipes[0], epochs=2000)

    def kill_it():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (tmp_path / "run" / "train_log.csv").exists():
            time.sleep(0.05)
        for child in multiprocessing.active_children():
            child.kill()

    threading.Thread(target=kill_it).start()
    with pytest.raises(SideBySideError, match=r"run: its process ended with -9"):
        train_side_by_side([(long, tmp_path / "run")], 1, **OPTIONS)


def test_what_cannot_be_is_refused(recipes, tmp_path):
    with pytest.raises(ValueError, match="jobs=0"):
        train_side_by_side([], 0)
    with pytest.raises(ValueError, match="the same folder"):
        train_side_by_side([(recipes[0], tmp_path), (recipes[1], tmp_path)], 2)
