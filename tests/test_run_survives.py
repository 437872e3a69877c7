"""A run that is killed at any moment, or whose disk is full, leaves nothing broken, and goes on to the same weights."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gode_zoo.recipes import load_recipe
from gode_zoo.train import train

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and resource limits")


def python(code, *arguments, timeout=240):
    """A new interpreter that runs `code` on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


# The parent imports, and forks a child for each attempt before it has computed anything itself: a fork is 100 times as
# fast as a new interpreter. Each child is killed after a random time; what it left is looked at before the next.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from gode_zoo.recipes import load_recipe
from gode_zoo.train import train

recipe, out = load_recipe(sys.argv[1]), Path(sys.argv[2])
random.seed(int(sys.argv[3]))
kills = 0
for attempt in range(200):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        train(recipe, out, device="cpu", resume=(out / "checkpoint.pt").exists(), checkpoint_every_s=0.0, progress=False)
        os._exit(0)
    deadline = time.monotonic() + random.uniform(0.02, 0.5)
    done = 0
    while not done and time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.001)
    if done:
        assert status == 0, status
        break
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
    if (out / "checkpoint.pt").exists():
        torch.load(out / "checkpoint.pt", weights_only=True)
    elif out.exists():  # killed before the first checkpoint: begin again, as a person would
        for file in out.iterdir():
            file.unlink()
print(kills)
"""


@pytest.mark.slow
def test_sigkill_at_random_moments(recipe_dict, tmp_path):
    recipe_file = tmp_path / "longer.yaml"
    recipe_file.write_text(yaml.safe_dump(recipe_dict | {"epochs": 25}))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code = "import sys; from gode_zoo.recipes import load_recipe; from gode_zoo.train import train; "
    code += "train(load_recipe(sys.argv[1]), sys.argv[2], device='cpu', progress=False)"
    done = python(code, recipe_file, whole)
    assert done.returncode == 0, done.stderr
    done = python(KILLED, recipe_file, killed, 20261124)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3, "too few kills to mean anything"
    expected = load_file(whole / "model.safetensors")
    for name, value in load_file(killed / "model.safetensors").items():
        assert torch.equal(value, expected[name]), name
    assert (
        json.loads((killed / "metrics.json").read_text())["last"]
        == (json.loads((whole / "metrics.json").read_text())["last"])
    )
    logs = [list(csv.DictReader((folder / "train_log.csv").open())) for folder in (whole, killed)]
    assert [row["train_loss"] for row in logs[0]] == [row["train_loss"] for row in logs[1]]
    assert {f.name for f in killed.iterdir()} == {f.name for f in whole.iterdir()}  # no leftovers


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
sys.argv = ["gode-zoo", "train", sys.argv[1], "--out", sys.argv[2], "--device", "cpu", *sys.argv[3:]]
from gode_zoo.cli import main
main()
"""


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(recipe_file, tmp_path):
    done = python(FULL_DISK, recipe_file, tmp_path / "new")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "error:" in done.stderr and "checkpoint.pt" in done.stderr
    assert {f.name for f in (tmp_path / "new").iterdir()} == {"recipe.yaml", "initial_kernels.safetensors"}

    train(load_recipe(recipe_file), tmp_path / "old", max_steps=4, device="cpu", progress=False)
    before = (tmp_path / "old" / "checkpoint.pt").read_bytes()
    done = python(FULL_DISK, recipe_file, tmp_path / "old", "--resume")
    assert done.returncode == 2 and "Free space on the disk" in done.stderr
    assert (tmp_path / "old" / "checkpoint.pt").read_bytes() == before
