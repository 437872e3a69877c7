"""Runs into hub/: the median by training loss, all seeds named, and nothing written on a refusal."""

import dataclasses
import json
import shutil
import statistics

import pytest
import yaml

from gode_zoo import bundle as module
from gode_zoo.bundle import BundleError, bundle
from gode_zoo.cards import card, read_entry
from gode_zoo.hugging_face.check import check_folder
from gode_zoo.recipes import recipe_from_dict
from gode_zoo.train import train

NAME = "stem_mnist.tiny"


@pytest.fixture
def seeds(recipe_dict, tmp_path):
    """Three finished runs of one recipe; the training loss of seed 1 is the median, that of seed 0 the least."""
    folders = []
    for seed, loss in enumerate((0.1, 0.2, 0.3)):
        recipe = dataclasses.replace(recipe_from_dict(recipe_dict), seed=seed, epochs=1)
        folders.append(tmp_path / f"seed{seed}")
        train(recipe, folders[-1], progress=False)
        log = folders[-1] / "train_log.csv"
        head, row = log.read_text().splitlines()
        cells = dict(zip(head.split(","), row.split(","), strict=True)) | {"train_loss": str(loss)}
        log.write_text(f"{head}\n{','.join(cells.values())}\n")
    return folders


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "checkout"
    (root / "gode_zoo" / "recipes").mkdir(parents=True)
    (root / "gode_zoo" / "recipes" / f"{NAME}.yaml").write_text("# A stem.\n# Evidence: no finished run.\nepochs: 1\n")
    return root


def test_the_median_seed_is_published_with_the_errors_of_all(seeds, checkout):
    out = bundle([seeds[2], seeds[0], seeds[1]], checkout)
    assert out == checkout / "hub" / NAME and not (out / "checkpoint.pt").exists()
    assert (out / "model.safetensors").read_bytes() == (seeds[1] / "model.safetensors").read_bytes()
    metrics, runs = (
        json.loads((out / "metrics.json").read_text()),
        [json.loads((s / "metrics.json").read_text()) for s in seeds],
    )
    assert (metrics["seeds"], metrics["num_seeds"]) == ([0, 1, 2], 3)
    assert metrics["seed_errors"] == [run["last"]["error"] for run in runs] and metrics["last"] == runs[1]["last"]
    assert "the median training loss of the last epoch" in card(read_entry(out))
    assert [
        p for p in check_folder(out, staged=True) if "make cards" not in p and "README.md: is missing" not in p
    ] == []
    stated = (checkout / "gode_zoo" / "recipes" / f"{NAME}.yaml").read_text()
    assert "\n# Evidence: 1 epochs, 3 seeds, " in stated and f"{metrics['last']['error']:.2f} % test error" in stated
    errors = metrics["seed_errors"]
    assert f", all seeds {statistics.mean(errors):.2f} ± {statistics.stdev(errors):.2f} %.\n" in stated
    assert sorted(path.name for path in (checkout / "hub").iterdir()) == [NAME]


def test_evidence_names_every_machine_once():
    first, second = ({"device": cpu, "cpu": cpu, "threads": threads} for cpu, threads in (("Slow", 2), ("Quick", 1)))
    metrics = {"epochs": 60, "num_seeds": 1, "last": {"error": 10.0}, "hardware": first}
    resumed = [
        {"hardware": first},
        {"from_step": 3},
        {"hardware": second},
        {"hardware": second | {"device": "Some GPU"}},
    ]
    assert module.evidence(metrics | {"resumed_with": resumed}) == (
        "# Evidence: 60 epochs, 1 seed, 2 cores of an Slow, then 1 core of an Quick, then Some GPU: 10.00 % test error.\n"
    )


def test_weights_that_are_there_are_replaced_on_request_alone(seeds, checkout):
    out = bundle(seeds[:1], checkout)
    with pytest.raises(BundleError, match="is there already; --replace"):
        bundle(seeds[1:2], checkout)
    assert json.loads((out / "metrics.json").read_text())["seeds"] == [0]
    assert module.main([str(seeds[1]), "--replace"], checkout) == 0
    assert json.loads((out / "metrics.json").read_text())["seeds"] == [1]


def test_what_cannot_be_bundled(seeds, checkout, capsys):
    other = seeds[0].with_name("other")
    shutil.copytree(seeds[1], other)
    recipe = yaml.safe_load((other / "recipe.yaml").read_text()) | {"label_smoothing": 0.1}
    (other / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    damaged = seeds[0].with_name("damaged")
    shutil.copytree(seeds[1], damaged)
    (damaged / "model.safetensors").write_bytes(b"x")
    unfinished = seeds[0].with_name("unfinished")
    shutil.copytree(seeds[1], unfinished)
    (unfinished / "metrics.json").unlink()
    for runs, message in (
        ([], "no runs"),
        ([seeds[0], other], "in more than the seed"),
        ([seeds[0], seeds[0]], "each must be there once"),
        ([damaged], "not the folder of a finished run"),
        ([unfinished], "not the folder of a finished run"),
    ):
        with pytest.raises(BundleError, match=message):
            bundle(runs, checkout)
    assert module.main([str(unfinished)], checkout) == 1 and "unfinished" in capsys.readouterr().err
    assert not (checkout / "hub").exists()
