"""Predicting files, folders and patterns: in order, in batches, and whatever cannot be read named."""

import csv
import io
import json

import pytest
from finetune_folders import make_images, start_model

from gode_zoo.data import DataError
from gode_zoo.finetuning.model import find_start
from gode_zoo.predict import find_files, predict


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = make_images(tmp_path_factory.mktemp("predict") / "images", count=5)
    (folder / "above" / "notes.txt").write_text("x")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(start_model(tmp_path_factory.mktemp("model") / "run"))


def test_files_folders_and_patterns(images):
    names = [
        str(p.relative_to(images))
        for p in find_files([images / "below" / "03.png", images, str(images / "*/0[12].png")])
    ]
    assert names == ["below/03.png", *(f"above/{i:02d}.png" for i in range(5)), "below/00.png", "below/01.png",
                     "below/02.png", "below/04.png"]  # fmt: skip
    assert len(find_files([str(images / "**" / "*.png")])) == 10
    with pytest.raises(DataError, match=r"\*\.gif: no file fits"):
        find_files([str(images / "*.gif")])
    with pytest.raises(DataError, match="holds no image"):
        (images / "none").mkdir(exist_ok=True)
        find_files([images / "none"])


def test_a_name_with_brackets_is_no_pattern(images, tmp_path):
    (tmp_path / "a[1].png").write_bytes((images / "above" / "00.png").read_bytes())
    assert find_files([tmp_path / "a[1].png"]) == [tmp_path / "a[1].png"]


def test_batches_do_not_change_what_is_said(images, model):
    files = find_files([images])
    one = list(predict(model, files, 5, batch_size=100))
    for size in (1, 3):
        for a, b in zip(one, predict(model, files, 5, batch_size=size), strict=True):
            assert a.path == b.path and [n for n, _ in a.classes] == [n for n, _ in b.classes]
            assert [p for _, p in a.classes] == pytest.approx([p for _, p in b.classes], abs=1e-5)
    assert all(sum(p for _, p in each.classes) == pytest.approx(1, abs=1e-5) and len(each.classes) == 2 for each in one)
    assert {name for name, _ in one[0].classes} == {"cat", "dog"}


def test_what_cannot_be_read_does_not_stop_the_rest(images, model, tmp_path):
    (tmp_path / "bad.png").write_text("no")
    files = [tmp_path / "none.png", images / "above" / "00.png", tmp_path / "bad.png", images / "below" / "00.png"]
    said = list(predict(model, files, 1, batch_size=2))
    assert [p.path for p in said] == files
    assert said[0].problem == "no such file" and said[2].problem.startswith("is not an image")
    assert said[1].problem is None and len(said[1].classes) == 1 == len(said[3].classes)


def test_wrong_numbers(model):
    for options in ({"topk": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            predict(model, [], **options)
    assert list(predict(model, [])) == []


def test_a_model_of_outcomes_is_refused_where_classes_are_meant(tmp_path):
    folder = start_model(tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] = config.get("model_args", {}) | {"family": "poisson"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"topk = 2: .* predicts poisson outcomes, not classes: leave it out"):
        predict(str(folder), [], topk=2)
    with pytest.raises(ValueError, match="predicts poisson outcomes, not classes"):
        find_start(str(folder))


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_predict_command(run_cli, images, model, tmp_path):
    code, out, err = run_cli("predict", model, images, "--topk", 1)
    assert code == 0 and err == "" and out.count(".png") == 10 and "%" in out
    (tmp_path / "bad.png").write_text("no")
    code, out, err = run_cli("predict", model, tmp_path / "bad.png", images / "above", tmp_path / "none.png", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1 and len(rows) == 5 * 2 and {row["rank"] for row in rows} == {"1", "2"}
    assert err.splitlines()[-1] == "error: 2 of 7 files could not be read"
    assert "bad.png: is not an image" in err and "none.png: no such file" in err
    code, out, err = run_cli("predict", model, images / "below", tmp_path / "bad.png", "--json")
    said = json.loads(out)
    assert code == 1 and len(said) == 6 and said[-1]["problem"] and said[0]["classes"][0][1] > 0
    assert run_cli("predict", model, images, "--csv", "--json")[0] == 2
    code, out, err = run_cli("predict", model, tmp_path / "*.gif")
    assert code == 2 and err.count("\n") == 1 and out == ""
