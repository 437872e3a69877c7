"""Models of images whose outcomes are counts or measurements: trained, published, and evaluated with intervals."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import gode_zoo  # noqa: F401
from gode_zoo.cli import app
from gode_zoo.data import DataError, load_dataset
from gode_zoo.evaluate import evaluate
from gode_zoo.families import get_family
from gode_zoo.outcomes import image_family, predictors, with_outcomes
from gode_zoo.predict import predict
from gode_zoo.recipes import RecipeError, recipe_from_dict
from gode_zoo.train import train


@pytest.fixture
def counted(tmp_path):
    """Grey images with a bright bar as wide as a count of 1 to 4, which names the class folder."""
    random = np.random.default_rng(0)
    for split, copies in (("train", 20), ("test", 10)):
        for count in (1, 2, 3, 4):
            folder = tmp_path / "counted" / split / str(count)
            folder.mkdir(parents=True)
            for i in range(copies):
                pixels = random.integers(0, 60, (28, 28), dtype=np.uint8)
                pixels[:, : 6 * count] += 150
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return tmp_path / "counted"


@pytest.fixture
def counting(recipe_dict, counted):
    """A recipe of a few epochs on `counted`."""
    return recipe_dict | {
        "dataset": str(counted),
        "model_args": {"num_classes": 1},
        "family": "poisson",
        "augment": {},
        "epochs": 4,
    }


@pytest.mark.parametrize(
    "family", ["poisson", "gamma", "gaussian", {"name": "negative_binomial", "dispersion": 0.2}], ids=str
)
def test_a_model_of_counts_trains_and_is_evaluated_again(family, counting, counted, tmp_path):
    recipe = recipe_from_dict(counting | {"family": family})
    result = train(recipe, tmp_path / "run", progress=False)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert "train_acc" not in result.history[0]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    known = get_family(metrics["family"])
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    assert model.family.to_dict() == known.to_dict()  # the dispersion too
    assert (
        (known.dispersion == recipe_from_dict(recipe.to_dict()).family["dispersion"]) if known.name[0] == "n" else True
    )
    data = with_outcomes(load_dataset(recipe.dataset, "test", cache=False), known)
    y, eta = predictors(model, data, (0.0,), (1.0,))
    assert sorted(set(y.tolist())) == [1.0, 2.0, 3.0, 4.0]
    assert metrics["last"]["deviance"] == pytest.approx(float(known.deviance(y, eta)), rel=1e-4)
    assert metrics["last"]["metric"] == pytest.approx(known.metric(y, eta), rel=1e-4)
    assert metrics["last"]["error"] == pytest.approx(metrics["last"]["deviance"] / 40)
    evaluation = evaluate(str(tmp_path / "run"))
    assert evaluation.agrees and evaluation.measured.total == 40
    assert [row.level for row in evaluation.coverage] == [0.5, 0.8, 0.95]
    shown = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "--check"])
    assert shown.exit_code == 0 and "agrees" in shown.output
    row = evaluation.coverage[1]
    assert f"80 %: {100 * row.plain:.1f} %, calibrated {100 * row.calibrated:.1f} %" in shown.output
    images = sorted((counted / "test").rglob("*.png"))
    said = list(predict(str(tmp_path / "run"), images))
    assert [p.mean for p in said] == pytest.approx(known.mean(eta).tolist(), rel=1e-4)
    _, high = known.interval(eta, 0.95)
    assert [p.interval[1] for p in said] == pytest.approx(high.tolist(), rel=1e-3)


def test_a_resumed_run_of_counts_equals_an_uninterrupted_one(counting, tmp_path):
    recipe = recipe_from_dict(counting | {"holdout": 0.25, "log_test": False, "epochs": 2})
    whole = train(recipe, tmp_path / "whole", progress=False)
    train(recipe, tmp_path / "parts", max_steps=3, progress=False)
    parts = train(recipe, tmp_path / "parts", resume=True, progress=False)
    assert parts.last == whole.last and parts.best == whole.best
    assert whole.best["val_error"] == min(row["val_error"] for row in whole.history)
    for name, value in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "parts" / "model.safetensors")[name])


def test_two_classes_are_zero_and_one(digits):
    data = load_dataset(str(digits), "train", cache=False)
    assert torch.equal(with_outcomes(data, get_family("bernoulli")).labels, data.labels.float())
    with pytest.raises(DataError, match=r"names of class folders.*could not convert.*rename"):
        with_outcomes(data, get_family("poisson"))


def test_names_that_are_no_outcomes_are_refused(counted):
    data = load_dataset(str(counted), "train", cache=False)
    with pytest.raises(DataError, match="has 4 classes: family bernoulli takes two"):
        with_outcomes(data, get_family("bernoulli"))
    (counted / "train" / "4").rename(counted / "train" / "2.5")
    with pytest.raises(DataError, match=r"y holds 2\.5 .*whole numbers.*rename"):
        with_outcomes(load_dataset(str(counted), "train", cache=False), get_family("poisson"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "poison"}, "did you mean 'poisson'"),
        ({"model_args": {}}, "num_classes=0 .*one outcome.*key of model_args"),
        ({"label_smoothing": 0.1}, "label_smoothing = 0.1 has no effect"),
        ({"family": {"name": "gamma", "link": "inverse"}}, "use the log link"),
        ({"model_args": {"num_classes": 1, "family": "poisson"}}, "write it as the key family"),
    ],
)
def test_recipes_that_cannot_be(counting, change, message):
    with pytest.raises(RecipeError, match=message):
        recipe_from_dict(counting | change)


def test_a_recipe_of_classes_stays_what_it_was(recipe_dict):
    assert "family" not in recipe_from_dict(recipe_dict).to_dict()
    assert image_family("categorical", 10).name == "categorical"


@pytest.mark.parametrize("name", ["gode_cifar10_m8", "odenet_mnist", "resnet1_mnist"])
def test_every_architecture_takes_a_family(name):
    model = timm.create_model(name, family="poisson", num_classes=1)
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    model.family.nll(torch.tensor([0.0, 3.0]), model(x)).backward()
    assert all(p.grad is not None for p in model.parameters())
    torch.jit.script(model)
    assert timm.create_model(name).family.name == "categorical"
    with pytest.raises(ValueError, match="must be one of gaussian"):
        timm.create_model(name, family="normal")
