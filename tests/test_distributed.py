"""Several processes give the loss curve of one, and only the first writes."""

import csv
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gode_zoo.distributed import World, world
from gode_zoo.recipes import load_recipe
from gode_zoo.train import train

ROOT = Path(__file__).resolve().parent.parent


def torchrun(*arguments, processes=2):
    """`torchrun` as the README has it, on this machine's CPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, "-m", "gode_zoo.train", *map(str, arguments), "--device", "cpu"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def rows(folder):
    return list(csv.DictReader((folder / "train_log.csv").open()))


@pytest.mark.slow
def test_two_processes_train_as_one(recipe_dict, tmp_path):
    """Also where the last batch has an odd number of images, and where one process goes on with what two began."""
    recipe_dict |= {"batch_size": 10, "drop_last": False, "ema_decay": 0.9}  # 24 images: the last batch is 2 + 2
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe_dict))
    recipe = load_recipe(tmp_path / "tiny.yaml")
    train(recipe, tmp_path / "one", device="cpu", progress=False)
    done = torchrun(tmp_path / "tiny.yaml", "--out", tmp_path / "two", "--max-steps", 4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stopped after step 4") == 1  # process 0 speaks for all
    train(recipe, tmp_path / "two", device="cpu", resume=True, progress=False)
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in ("train_loss", "train_acc", "test_error", "lr"):
            assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-4), name
    expected = load_file(tmp_path / "one" / "model.safetensors")
    for name, value in load_file(tmp_path / "two" / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused_in_one_line(recipe_file, tmp_path):
    done = torchrun(recipe_file, "--out", tmp_path / "run", processes=3)
    assert done.returncode != 0
    assert "error: recipe stem_mnist.tiny: 3 processes cannot share batch_size = 8 evenly" in done.stderr
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_shares_are_disjoint_and_make_up_the_batch():
    batch = torch.arange(11)
    shares = [World(torch.device("cpu"), rank, 4).share(batch)[0] for rank in range(4)]
    assert torch.equal(torch.cat(shares), batch) and {len(share) for share in shares} == {2, 3}


def test_one_process_is_a_world_of_its_own(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with world("cpu") as alone:
        assert dataclasses.astuple(alone) == (torch.device("cpu"), 0, 1) and alone.first
        assert alone.any(True) and not alone.any(False)
        assert alone.total(torch.tensor(3)) == [torch.tensor(3)]
