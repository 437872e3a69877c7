"""The examples for Python users run as they are, say what they claim, and are notebooks as well."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
# What an example says at its end: a pattern, and the least that the figure may be (95.2 % are right before training).
CLAIMS = {
    "finetune_plain.py": [(r"all weights trained: ([\d.]+) %", 85), (r"the head alone: ([\d.]+) %", 70)],
    "finetune_lightning.py": [(r"% before, ([\d.]+) % after", 96)],
    "finetune_accelerate.py": [(r"% before, ([\d.]+) % after", 96)],
    "features.py": [(r"nearest neighbour by embeddings: ([\d.]+) % right", 90)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_an_example_runs(name, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run([sys.executable, "-W", "error::UserWarning:__main__", EXAMPLES / name], cwd=tmp_path,
                          env=environment, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for pattern, least in CLAIMS[name]:
        assert float(re.search(pattern, done.stdout)[1]) >= least, done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", CLAIMS)
def test_an_example_is_a_notebook(name):
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(EXAMPLES / name)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" and kinds.count("code") >= 3
    assert notebook.cells[0].source.startswith("# ")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(cell.source, name, "exec")
