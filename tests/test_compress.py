"""`compress_published` and `choose_penalty` on a tiny run: what they report is what they leave behind."""

import csv
import json

import pytest
import timm
import yaml
from test_cli import run  # noqa: F401  (a fixture)

from gode_zoo.compress import compress_published
from gode_zoo.data import load_dataset
from gode_zoo.evaluate import count_correct, evaluate
from gode_zoo.recipes import recipe_from_dict
from gode_zoo.train import train


@pytest.fixture
def gode_recipe(recipe_dict):
    arguments = {"num_classes": 2, "num_steps": 2, "num_basis": 5, "degree": 2, "knots": "clamped"}
    return recipe_dict | {"model": "gode_mnist_m4", "model_args": arguments}


def test_compress_measures_before_after_and_fine_tuned(gode_recipe, digits, tmp_path, run):  # noqa: F811
    trained = train(recipe_from_dict(gode_recipe), tmp_path / "run", progress=False)
    code, text, _ = run("compress", tmp_path / "run", "--num-basis", 3, "--steps", 4, "--out", tmp_path / "small")
    assert code == 0 and "fine-tuned, 4 steps" in text and f"{trained.last.error:.2f}" in text
    metrics = json.loads((tmp_path / "small" / "metrics.json").read_text())
    assert metrics["before"]["correct"] == trained.last.correct
    assert metrics["compressed_from"]["parameters"] - metrics["parameters"] == 2 * 2 * 36_864
    model = timm.create_model(f"local-dir:{tmp_path / 'small'}", pretrained=True)
    assert model.block.field.basis.num_basis == 3 and model.block.field.basis.knot_kind == "clamped"
    measured = count_correct(model, load_dataset(str(digits), "test", cache=False), (0.0,), (1.0,))
    assert measured.correct == metrics["last"]["correct"]
    assert evaluate(str(tmp_path / "small")).agrees
    before = (tmp_path / "small" / "metrics.json").read_bytes()
    code, _, err = run("compress", tmp_path / "run", "--num-basis", 3, "--out", tmp_path / "small")
    assert code == 2 and "already holds a run" in err
    code, _, err = run("compress", tmp_path / "run", "--num-basis", 2, "--out", tmp_path / "none")
    assert code == 2 and "num_basis=2 with degree=2" in err and not (tmp_path / "none").exists()
    assert (tmp_path / "small" / "metrics.json").read_bytes() == before


def test_compress_without_fine_tuning_writes_nothing_unless_asked(gode_recipe, tmp_path):
    train(recipe_from_dict(gode_recipe), tmp_path / "run", progress=False)
    result = compress_published(str(tmp_path / "run"), 5, degree=1, steps=0)
    assert result.finetuned is None and result.parameters[0] == result.parameters[1]
    assert {path.name for path in tmp_path.iterdir()} == {"digits", "run"}
    with pytest.raises(ValueError, match="steps=-1"):
        compress_published(str(tmp_path / "run"), 3, steps=-1)


def test_choose_penalty_by_the_held_out_split(gode_recipe, tmp_path, run):  # noqa: F811
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(gode_recipe | {"holdout": 0.25, "log_test": False}))
    out = tmp_path / "search"
    code, text, _ = run("choose-penalty", file, "0", "0.001", "0.0001", "--out", out)
    assert code == 0 and text.count("chosen") == 1
    rows = list(csv.DictReader((out / "penalty.csv").open()))
    assert [float(row["factor"]) for row in rows] == [0, 0.0001, 0.001]
    assert float(rows[0]["penalty"]) > float(rows[2]["penalty"])
    errors = [float(row["val_error"]) for row in rows]
    chosen = [row["chosen"] for row in rows].index("1")
    assert errors[chosen] == min(errors) and errors[chosen] < min([*errors[chosen + 1 :], 101.0])
    for row in rows:
        log = list(csv.DictReader((out / f"roughness-{row['factor']}" / "train_log.csv").open()))
        assert float(log[-1]["val_error"]) == pytest.approx(float(row["val_error"]), abs=1e-3)
    assert (out / "kernels.png").stat().st_size > 10_000
    assert run("choose-penalty", file, "0", "0.001", "0.0001", "--out", out)[1] == text  # finished runs are read again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["choose-penalty", "gode_mnist_m4.modern", "0", "1"], "holdout = 0.0 keeps no images aside"),
        (["choose-penalty", "gode_mnist_m4.modern", "1", "1"], "at least two different ones"),
        (["choose-penalty", "gode_mnist_m4.modern", "0", "1", "--kind", "lasso"], "must be one of roughness"),
        (["compress", "gode_mnist_m4", "--num-basis", "0"], "num_basis=0"),
        (["compress", "resnet18", "--num-basis", "2"], "no bundled weights resnet18"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(run, arguments, message, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*arguments)
    assert code == 2 and message in err and err.splitlines()[-1].startswith("error:")
    assert list(tmp_path.iterdir()) == []
