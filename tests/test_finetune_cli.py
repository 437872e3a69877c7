"""`gode-zoo finetune` as typed: what it says, its exit codes, stopping and going on, and publishing what came out."""

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time

import pytest
from finetune_folders import make_images, start_model

from gode_zoo.hugging_face.publish import publish

OPTIONS = ["--epochs", "2", "--batch-size", "8", "--lr", "0.05", "--device", "cpu"]


@pytest.fixture
def start(tmp_path):
    return str(start_model(tmp_path / "start"))


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "my pets")


def test_finetune_then_predict_then_publish(run_cli, start, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_cli("finetune", start, images, *OPTIONS)
    folder = tmp_path / "runs" / "my pets.finetuned"
    assert code == 0 and out.startswith("runs/my pets.finetuned: validation error ") and "report.html" in out
    assert (
        f"gode-zoo finetune {shlex.quote(start)} {shlex.quote(str(images))}".replace("'", "&#x27;")
        in (folder / "report.html").read_text()
    )
    assert run_cli("predict", folder, images)[0] == 0
    done = publish(folder, "me/pets", dry_run=True)
    names = {file.name for file in done.files}
    assert {"model.safetensors", "config.json", "metrics.json", "README.md", "recipe.yaml"} <= names
    assert not names & {"report.html", "split.csv", ".lock", "checkpoint.pt"}

    code, out, err = run_cli("finetune", start, images, *OPTIONS)
    assert code == 2 and "already holds a run" in err and err.splitlines()[-1].startswith("error:") and out == ""


def test_json(run_cli, start, images, tmp_path):
    code, out, _ = run_cli("finetune", start, images, "--out", tmp_path / "run", *OPTIONS, "--json")
    result = json.loads(out)
    assert code == 0 and result["finished"] and result["classes"] == ["above", "below"] and len(result["history"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "fast"], "--lr = 'fast' is not possible (allowed: a number, or auto)"),
        (["--freeze", "head"], "freeze = 'head' is not possible (allowed: none, stem, all-but-head)"),
        (["--amp", "fp8"], "amp = 'fp8'"),
        (["--resume"], "no such folder to resume"),
    ],
)
def test_wrong_input_is_one_line(run_cli, start, images, tmp_path, arguments, message):
    code, out, err = run_cli("finetune", start, images, "--out", tmp_path / "run", *arguments)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def command(start, images, folder, *more):
    return [sys.executable, "-m", "gode_zoo.cli", "finetune", start, str(images), "--out", str(folder), *more]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_says_how_to_go_on_and_that_works(start, images, tmp_path):
    options = ["--batch-size", "8", "--lr", "0.05", "--device", "cpu", "--epochs", "100000", "--patience", "0"]
    process = subprocess.Popen(command(start, images, tmp_path / "run", *options), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "train_log.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130 and "Traceback" not in err and "\x1b" not in err
    last = err.splitlines()[-1]
    assert "Ctrl-C" in last and last.partition("Go on with: gode-zoo ")[2].endswith("--patience 0 --resume")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="terminals")
def test_progress_and_colour_on_a_terminal_alone(start, images, tmp_path):
    """The same run with a terminal and without: bars and red there, plain lines here."""

    def on_terminal(arguments):
        ours, theirs = pty.openpty()
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
        process = subprocess.Popen(arguments, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        text = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            text += part
        os.close(ours)
        return process.wait(timeout=100), text.decode()

    code, text = on_terminal(command(start, images, tmp_path / "a", *OPTIONS))
    assert code == 0 and "images/s" in text and "\x1b[" in text
    code, text = on_terminal(command(start, images, tmp_path / "a", *OPTIONS))
    assert code == 2 and "\x1b[31merror:" in text
    done = subprocess.run(command(start, images, tmp_path / "b", *OPTIONS), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr and "images/s" not in done.stderr
