"""`gode-zoo hub check`: this repository's folders are good, and every kind of damage is named."""

import json
import shutil
import sys

import pytest
import torch
from hub_client import ROOT
from hub_runs import contents, make_run, sha256
from safetensors.torch import load_file, save_file

from gode_zoo import cards, cli
from gode_zoo.hugging_face.check import check_folder, check_hub

NAME = "stem_mnist.finetuned"


@pytest.fixture
def staged(tmp_path):
    """hub/ with one folder as it would be pushed."""
    folder = make_run(tmp_path / "hub" / NAME)
    entry = cards.read_entry(folder, bundled=True)
    (folder / "README.md").write_text(cards.card(entry))
    (folder / "train_log.svg").write_text(cards.plot_log(entry))
    assert check_folder(folder, staged=True) == []
    return folder


def test_the_folders_of_this_repository():
    found = list(check_hub())
    assert {checked.folder.parent for checked in found} == {ROOT / "hub"}
    assert [checked for checked in found if checked.problems] == []


def change_metrics(folder, **changes):
    metrics = json.loads((folder / "metrics.json").read_text()) | changes
    (folder / "metrics.json").write_text(json.dumps(metrics))


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def change_weights(folder, change):
    """Other weights, of which metrics.json has the right sha256."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    change_metrics(folder, sha256=sha256(folder / "model.safetensors"))


def append(name, text):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + text)


DAMAGE = {
    "file missing": (lambda f: (f / "train_log.csv").unlink(), "train_log.csv: is missing"),
    "card missing": (lambda f: (f / "README.md").unlink(), "README.md: is missing"),
    "plot missing": (lambda f: (f / "train_log.svg").unlink(), "train_log.svg: is not what metrics.json"),
    "pickle": (
        lambda f: (f / "pytorch_model.bin").write_bytes(b"x"),
        "has files that are not published: pytorch_model.bin",
    ),
    "many others": (lambda f: [(f / f"{i}").write_bytes(b"") for i in range(99)], "0, 1, 10, 11, 12 and 94 more"),
    "weights": (append("model.safetensors", b"x"), "model.safetensors: is not a whole safetensors file"),
    "recipe": (append("recipe.yaml", b"x: 1\n"), "recipe.yaml: sha256 is"),
    "card": (append("README.md", b"100 %"), "README.md: is not what metrics.json and train_log.csv say"),
    "log": (append("train_log.csv", b"3,9,0.0,0.1,99,1,3.5\n"), "train_log.svg: is not what metrics.json"),
    "error": (lambda f: change_metrics(f, last={"epoch": 2, "error": 1.0, "correct": 9, "total": 10}), "last.error ="),
    "figure": (lambda f: change_metrics(f, parameters=7), "parameters is 7, but the model has"),
    "tag": (lambda f: change_metrics(f, tag="other"), "tag is 'other', but config.json has 'finetuned'"),
    "architecture": (lambda f: change_metrics(f, model="odenet_mnist"), "model is 'odenet_mnist', but config.json"),
    "solver": (
        lambda f: change_metrics(
            f, solver={"solver": "euler", "t_span": [0, 1], "num_steps": 20, "step_size": 0.05, "sensitivity": "x"}
        ),
        "but the model has None",
    ),
    "no sha256": (lambda f: change_metrics(f, sha256=None), "sha256 is"),
    "kind": (lambda f: change_metrics(f, hardware=3), "has a value of the wrong kind"),
    "class": (lambda f: change_config(f, lambda c: c.update(architecture="resnet50")), "only models of gode_zoo"),
    "classes": (lambda f: change_config(f, lambda c: c["model_args"].update(num_classes=9)), "2 tensors are not those"),
    "labels": (lambda f: change_config(f, lambda c: c["label_names"].pop()), "1 label_names for 2 classes"),
    "not finite": (lambda f: change_weights(f, lambda s: s["head.fc.bias"].fill_(torch.inf)), "not finite"),
    "tensor": (lambda f: change_weights(f, lambda s: s.pop("head.fc.bias")), "1 tensors are not those of the model"),
    "name": (lambda f: f.rename(f.parent / "stem_mnist.other"), "rename the folder"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(staged, what):
    damage, message = DAMAGE[what]
    damage(staged)
    (checked,) = check_hub(staged.parent)
    assert any(message in problem for problem in checked.problems), checked.problems
    assert all("\n" not in problem for problem in checked.problems)


def hub_check(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["gode-zoo", "hub", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
        sys.exit(0)
    return int(stopped.value.code or 0)


def test_command(staged, monkeypatch, capsys, tmp_path):
    (staged / "checkpoint.pt").write_bytes(b"of the run; not published")
    (staged / "initial_kernels.safetensors").write_bytes(b"for Figure 2; not published")
    assert hub_check(monkeypatch, staged.parent) == 0
    assert capsys.readouterr().out == f"{NAME}: good\n"
    change_metrics(staged, parameters=7)
    assert hub_check(monkeypatch, staged.parent) == hub_check(monkeypatch, staged) == 1
    out = capsys.readouterr().out
    assert f"{NAME}: not fit\n" in out and "parameters is 7" in out
    under_way = staged.parent / "stem_mnist.more"
    under_way.mkdir()
    (under_way / "checkpoint.pt").write_bytes(b"")
    shutil.rmtree(staged)
    assert hub_check(monkeypatch, staged.parent) == 0
    assert "a training under way, not checked" in capsys.readouterr().out
    (under_way / "checkpoint.pt").unlink()
    assert hub_check(monkeypatch, staged.parent) == 1
    shutil.rmtree(under_way)
    assert hub_check(monkeypatch, staged.parent) == 2 and hub_check(monkeypatch, tmp_path / "none") == 2
    assert capsys.readouterr().err.count("error:") == 2


def test_a_run_needs_no_card_and_may_have_other_files(tmp_path):
    run = make_run(tmp_path / "run")
    before = contents(run)
    (run / "report.html").write_text("<html>")
    assert check_folder(run, staged=False) == []
    assert contents(run) == before | {"report.html": b"<html>"}
