"""The command line: every verb with right and wrong input; errors are one line, with status 2 and no traceback."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gode_zoo import cli


@pytest.fixture
def run(run_cli):
    return run_cli


def test_train_evaluate_predict_one_after_another(run, recipe_file, digits, tmp_path):
    out = tmp_path / "run"
    code, text, _ = run("train", recipe_file, "--out", out, "--max-steps", 2)
    assert code == 0 and "--resume" in text
    code, text, _ = run("train", recipe_file, "--out", out, "--resume")
    assert code == 0 and "test error" in text
    code, text, _ = run("evaluate", out, "--check")
    assert code == 0 and "stem_mnist.tiny" in text and "agrees" in text
    code, text, _ = run("predict", out, digits / "test" / "above" / "00.png", "--topk", 1)
    assert code == 0 and ("above" in text or "below" in text)

    code, _, err = run("train", recipe_file, "--out", out)
    assert code == 2 and "already holds a run" in err
    metrics = json.loads((out / "metrics.json").read_text())
    metrics["last"]["correct"] = 10 - metrics["last"]["correct"] + 1
    (out / "metrics.json").write_text(json.dumps(metrics))
    code, text, err = run("evaluate", out, "--check")
    assert code == 1 and "differs" in text and "0.02" in err
    weights = bytearray((out / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (out / "model.safetensors").write_bytes(weights)
    code, _, err = run("evaluate", out)
    assert code == 2 and err.count("\n") == 1 and "sha256" in err


def test_list_names_every_model_and_version(run):
    code, text, _ = run("list")
    assert code == 0 and "724,106" in text and "resnet20_cifar10" in text
    assert run("--version")[1].startswith("gode_zoo 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "gode_mnist_m5"], "gode_cifar10_m8.modern"),
        (["train", "gode_mnist_m4.modern", "--max-steps", "0"], "max_steps = 0"),
        (["train", "gode_mnist_m4.modern", "--out", "nowhere", "--resume"], "no checkpoint"),
        (["evaluate"], "--all"),
        (["evaluate", "resnet50"], "no bundled weights resnet50"),
        (["predict", "no_model", "x.png"], "no bundled weights no_model"),
        (["benchmark", "--what", "speed"], "what='speed'"),
        (["benchmark", "resnet6_mnist"], "no spline block"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err and err.startswith("error:") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


VERBS = sorted(command.name or command.callback.__name__ for command in cli.app.registered_commands)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict"], "Missing argument 'model' (see gode-zoo predict --help)"),
        (["trane"], "Did you mean 'train'"),
        (["train", "x", "--max-step", "1"], "--max-steps"),
        (["benchmark", "--repeats", "many"], "--repeats"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(run, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert message in err and err.startswith("error:") and err.count("\n") == 1


def test_help_lists_every_verb_and_the_exit_codes(run):
    for arguments in ([], ["--help"], ["-h"]):
        code, text, err = run(*arguments)
        assert code == 0 and err == "" and "130 stopped by Ctrl-C" in text and "--install-completion" in text
        assert all(f"│ {verb} " in text for verb in [*VERBS, "hub"])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(run, verb):
    code, text, _ = run(verb, "--help")
    assert code == 0 and f"\n gode-zoo {verb} " in text.partition("Examples")[2] + " "
    assert "--json" in text.partition("Examples")[0]


def test_a_group_of_verbs_explains_itself(run):
    code, out, err = run("hub")
    assert code in (0, 2) and "check" in out + err and "Traceback" not in err
    assert "gode-zoo hub check runs/mine" in run("hub", "check", "--help")[1]


def test_list_as_json(run):
    code, text, err = run("list", "--json")
    rows = {row["arch"]: row for row in json.loads(text)}
    assert code == 0 and err == "" and rows["gode_cifar10_m8"]["num_parameters"] == 724_106


def test_a_reader_that_has_enough_is_no_error():
    code = "import sys; sys.argv = ['gode-zoo', 'list', '--json']; from gode_zoo.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(timeout=120) in (0, 1) and process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(run, shell, monkeypatch):
    monkeypatch.setenv("_GODE_ZOO_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "gode-zoo pre")
    monkeypatch.setenv("COMP_WORDS", "gode-zoo pre")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    code, text, _ = run()
    assert code == 0 and "predict" in text and "train" not in text


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_saves_and_says_how_to_go_on(recipe_file, tmp_path):
    recipe_file.write_text(recipe_file.read_text().replace("epochs: 2", "epochs: 100000"))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "gode_zoo.cli", "train", str(recipe_file), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in err and "Traceback" not in err
