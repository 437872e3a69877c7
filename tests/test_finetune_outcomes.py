"""Fine-tuning on outcomes of a family: real digits end to end, units, resuming, what is refused, and publishing."""

import csv
import json
import math

import numpy as np
import pytest
import timm
import torch
from finetune_folders import FAST, metrics_of, start_model
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from gode_zoo.cards import CardError, card, read_entry
from gode_zoo.data import DataError
from gode_zoo.evaluate import evaluate
from gode_zoo.families import get_family
from gode_zoo.finetune import finetune
from gode_zoo.finetuning.data import measured_images
from gode_zoo.finetuning.splits import split_outcomes, split_table
from gode_zoo.finetuning.targets import OutcomeTargets, find_targets
from gode_zoo.hugging_face.check import check_folder
from gode_zoo.hugging_face.folder import PUBLISHED_FILES, check_arguments
from gode_zoo.hugging_face.publish import publish
from gode_zoo.images.sources import ImageSource, Sample, find_images
from gode_zoo.models._pretrained import WeightsError
from gode_zoo.outcomes import predictors
from gode_zoo.predict import predict

QUICK = FAST | {"batch_size": 16, "patience": 0}


def digits(folder, count, outcome=lambda pixels: int((pixels >= 8).sum()), splits=("train",) * 3 + ("test",)):
    """Scikit-learn's handwritten digits, 8×8 of 0 to 16, as images and a CSV that gives each an outcome."""
    folder.mkdir()
    chosen = np.random.default_rng(0).permutation(1797)[:count]
    with (folder / "outcomes.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "outcome", "split"])
        for i, pixels in enumerate(load_digits().images[chosen]):
            Image.fromarray((pixels * 15).astype(np.uint8)).save(folder / f"{i}.png")
            rows.writerow([f"{i}.png", outcome(pixels), splits[i % len(splits)]])
    return folder / "outcomes.csv"


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    return digits(tmp_path_factory.mktemp("counted") / "digits", 400)


@pytest.fixture
def few(tmp_path):
    return digits(tmp_path / "few", 48)


@pytest.fixture
def start(tmp_path):
    return str(start_model(tmp_path / "start"))


@pytest.fixture(scope="module")
def run(counted, tmp_path_factory):
    """The weights of MNIST learn how many pixels of a digit are bright."""
    folder = tmp_path_factory.mktemp("run")
    result = finetune(
        "gode_mnist_m4", counted, folder / "run", family="poisson", **QUICK | {"lr": 0.02, "epochs": 6}
    )  # fmt: skip
    return folder / "run", result


def weights(folder):
    return load_file(folder / "model.safetensors")


# ---------------------------------------------------------------------------------------------------------------------
# Real counts, end to end


def test_counts_of_real_digits_are_learned(run, counted):
    folder, result = run
    metrics = metrics_of(folder)
    last = metrics["last"]
    assert result.finished and result.split == metrics["split"] == "test" and last["total"] == 100
    assert last["deviance"] < 0.75 * last["null_deviance"]  # that of the constant mean
    assert result.error == last["error"] == pytest.approx(last["deviance"] / 100)
    assert metrics["family"] == {"name": "poisson", "link": "log"} and last["metric_name"] == "mae"
    assert metrics["best"]["val_error"] == min(row["val_error"] for row in result.history)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"] and "train_acc" not in result.history[0]

    # What timm loads gives η, and the figures follow from it by the family's own formulas.
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = json.loads((folder / "config.json").read_text())
    assert config["num_classes"] == 1 and "label_names" not in config and model.family.name == "poisson"
    data = measured_images(folder, metrics, OutcomeTargets(model.family), (1, 28, 28), counted.parent)
    y, eta = predictors(model, data, (0.0,), (1.0,))
    truth = {row["path"]: float(row["outcome"]) for row in csv.DictReader(counted.open()) if row["split"] == "test"}
    assert y.tolist() == list(truth.values())
    mean = eta.double().exp()
    deviance = 2 * (torch.xlogy(y, y / mean) - y + mean).sum()
    assert last["deviance"] == pytest.approx(float(deviance), rel=1e-4)
    assert last["metric"] == pytest.approx(float((y - mean).abs().mean()), rel=1e-4)

    # The intervals that it was calibrated to hold about as many outcomes as they say; `predict` gives them.
    held = {row["level"]: row for row in metrics["intervals"]}
    assert set(held) == {0.5, 0.8, 0.95} and held[0.95]["calibrated"] >= 0.85
    said = list(predict(str(folder), [counted.parent / path for path in truth]))
    assert [p.mean for p in said] == pytest.approx(mean.tolist(), rel=1e-3)
    inside = [p.interval[0] <= value <= p.interval[1] for p, value in zip(said, truth.values(), strict=True)]
    assert np.mean(inside) == pytest.approx(held[0.95]["calibrated"], abs=0.02)

    again = evaluate(str(folder), data_dir=counted.parent, device="cpu")
    assert again.agrees and again.measured.total == 100 and [row.level for row in again.coverage] == [0.5, 0.8, 0.95]


def test_the_report_shows_what_matters_of_outcomes(run):
    page = (run[0] / "report.html").read_text()
    for words in ("Predicted against observed (test)", "Predictive intervals (test)", "Deviance residuals",
                  "Best and worst predictions (test)", "constant mean", "Kernels over t", "Deviance an outcome"):  # fmt: skip
        assert words in page
    assert "Confusions" not in page and "Reliability" not in page and "NaN" not in page and "nan" not in page
    against = page.partition("Predicted mean and 95 % interval")[2].partition("</figure>")[0]
    assert against.count("<circle") == against.count('class="span"') == 100


def test_the_command_line_from_training_to_publishing(run_cli, run, counted, few, start, tmp_path):
    options = ["--family", "{name: gamma, dispersion: 0.5}", "--epochs", 1, "--lr", 0.02, "--device", "cpu"]
    code, out, _ = run_cli("finetune", start, few, "--out", tmp_path / "run", *options)
    assert code == 0 and "test deviance " in out and "mape" in out and "  95 %: " in out and "calibrated" in out
    assert metrics_of(tmp_path / "run")["family"]["dispersion"] != 0.5  # estimated from the validation images
    folder = run[0]
    code, out, _ = run_cli("evaluate", folder, "--data-dir", counted.parent, "--check", "--device", "cpu")
    assert code == 0 and "agrees" in out and "deviance" in out and "  80 %: " in out
    code, out, _ = run_cli("predict", folder, counted.parent / "0.png", counted.parent / "1.png")
    assert code == 0 and "95 % interval" in out and out.count(".png") == 2
    (tmp_path / "bad.png").write_text("no")
    code, out, err = run_cli("predict", folder, counted.parent / "0.png", tmp_path / "bad.png", "--csv")
    (row,) = csv.DictReader(out.splitlines())
    assert code == 1 and float(row["low"]) < float(row["mean"]) < float(row["high"]) and "1 of 2 files" in err
    code, out, _ = run_cli("predict", folder, counted.parent / "0.png", tmp_path / "bad.png", "--json")
    good, bad = json.loads(out)
    assert good["interval"] == [float(row["low"]), float(row["high"])] and bad["mean"] is None and bad["problem"]
    code, _, err = run_cli("predict", folder, counted.parent / "0.png", "--topk", 2)
    assert code == 2 and "poisson outcomes, not classes: leave it out" in err
    code, out, _ = run_cli("publish", folder, "--repo-id", "me/counts", "--dry-run")
    assert code == 0 and "README.md" in out and "model.safetensors" in out


def test_it_is_fit_for_the_hub_and_its_card_speaks_of_outcomes(run, tmp_path):
    folder, _ = run
    staged = tmp_path / "hub" / "gode_mnist_m4.finetuned"
    staged.mkdir(parents=True)
    for file in publish(folder, "me/counts", dry_run=True).files:
        (staged / file.name).write_bytes(file.content)
    assert {path.name for path in staged.iterdir()} == set(PUBLISHED_FILES)
    assert check_folder(folder, staged=False) == []
    text = (staged / "README.md").read_text()
    last = metrics_of(folder)["last"]
    for words in ("## Deviance", f"**{last['error']:.4g}, of 100**", f"{last['null_deviance'] / 100:.4g}", "poisson, link log",
                  "model.family.interval(eta, ", "--family poisson", "type: mae"):  # fmt: skip
        assert words in text
    for words in ("the classes above", "| Classes |", "softmax", "Accuracy", "wrong of"):
        assert words not in text
    code = (
        text.partition("```python\n")[2].partition("```")[0].replace('"hf-hub:ORG/NAME"', repr(f"local-dir:{folder}"))
    )
    values: dict = {}
    exec(code, values)
    assert bool((values["low"] <= values["high"]).all())
    # A figure that contradicts itself makes no card, and another family than the model's is named.
    damaged = metrics_of(staged) | {"last": last | {"error": 1.0}}
    (staged / "metrics.json").write_text(json.dumps(damaged))
    with pytest.raises(CardError, match=r"last.error = 1.0, but a deviance of"):
        read_entry(staged)
    damaged = metrics_of(folder) | {"family": {"name": "gaussian", "link": "identity", "dispersion": 1.0}}
    (staged / "metrics.json").write_text(json.dumps(damaged))
    assert any("family is" in problem for problem in check_folder(staged, staged=False))


def test_the_list_says_deviance_and_metric(run, monkeypatch, run_cli):
    from gode_zoo import listing

    monkeypatch.setattr(listing, "list_weights", lambda: [("gode_mnist_m4", "finetuned", run[0])])
    (model,) = [m for m in listing.list_zoo() if m.tag]
    assert model.error is None and model.outcome.startswith("deviance ") and "mae" in model.outcome
    code, out, _ = run_cli("list")
    assert code == 0 and model.outcome in out


@pytest.mark.parametrize(
    "family", [{"name": "poisson", "code": "x"}, {"name": ["poisson"]}, {"name": "gamma", "dispersion": "1"}]
)
def test_a_strange_family_of_the_hub_is_refused(family):
    check_arguments({"family": {"name": "gamma", "link": "log", "dispersion": 1e9}}, "x")
    with pytest.raises(WeightsError, match=r"model_args.family .* are allowed"):
        check_arguments({"family": family}, "x")


# ---------------------------------------------------------------------------------------------------------------------
# Learning: units, families, heads, resuming


@pytest.mark.parametrize("family", ["gaussian", "gamma", {"name": "gaussian", "link": "log"}], ids=str)
def test_the_unit_of_an_outcome_does_not_matter(start, tmp_path, family):
    """Grams are learned as kilograms are: the same deviance, but for its own unit, to rounding."""
    runs = {}
    for unit in (1e-3, 1e4):
        data = digits(tmp_path / f"{unit:g}", 64, lambda pixels, unit=unit: unit * (50 + pixels.sum()))
        finetune(start, data, tmp_path / f"run{unit:g}", family=family, **QUICK)
        runs[unit] = metrics_of(tmp_path / f"run{unit:g}")
    small, large = runs.values()
    power = 2 if "gaussian" in str(family) else 0
    assert large["last"]["deviance"] == pytest.approx(small["last"]["deviance"] * 1e7**power, rel=1e-2)
    assert large["family"]["dispersion"] == pytest.approx(small["family"]["dispersion"] * 1e7**power, rel=1e-2)
    assert small["last"]["deviance"] < 1.2 * small["last"]["null_deviance"]


def test_yes_or_no_may_be_two_class_folders(start, tmp_path):
    from finetune_folders import make_images

    images = make_images(tmp_path / "x", count=20, labels=("above", "below"))
    finetune(start, images, tmp_path / "run", family="bernoulli", **QUICK | {"epochs": 6})
    metrics = metrics_of(tmp_path / "run")
    assert metrics["outcome_names"] == ["above", "below"] and metrics["last"]["metric"] == 100.0
    above, below = (
        [p.mean for p in predict(str(tmp_path / "run"), sorted((images / name).iterdir()))]
        for name in ("above", "below")
    )
    assert max(above) < min(below)
    assert evaluate(str(tmp_path / "run"), data_dir=tmp_path, device="cpu").agrees
    assert "0 is above, 1 is below" in card(read_entry(tmp_path / "run"))
    assert "Outcome 0 is above, outcome 1 is below" in (tmp_path / "run" / "report.html").read_text()


def test_training_goes_on_from_a_model_of_the_same_outcomes(run, counted, tmp_path):
    """Its last layer is kept, so that a rate of nearly nothing leaves its predictions as they were."""
    finetune(str(run[0]), counted, tmp_path / "kept", family="poisson", **QUICK | {"lr": 1e-9, "epochs": 1})
    before, after = metrics_of(run[0])["last"], metrics_of(tmp_path / "kept")["last"]
    assert after["deviance"] == pytest.approx(before["deviance"], rel=1e-3)
    finetune(str(run[0]), counted, tmp_path / "new", family="gamma", **QUICK | {"lr": 1e-9, "epochs": 1})
    assert not torch.equal(weights(tmp_path / "new")["head.fc.weight"], weights(run[0])["head.fc.weight"])


@pytest.mark.parametrize("stops", [(1,), (2, 1)], ids=["in an epoch", "twice"])
def test_a_resumed_run_equals_an_uninterrupted_one(start, few, tmp_path, stops):
    arguments = QUICK | {"family": "gaussian", "lr": None if len(stops) == 2 else 0.05, "flip": True}
    finetune(start, few, tmp_path / "whole", **arguments)
    for i, steps in enumerate(stops):
        assert not finetune(start, few, tmp_path / "parts", max_steps=steps, resume=i > 0, **arguments).finished
    assert finetune(start, few, tmp_path / "parts", resume=True, **arguments).finished
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "parts")[name])
    first, second = metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "parts")
    for key in ("last", "best", "intervals", "family", "sha256", "recipe_sha256"):
        assert first[key] == second[key]


def test_it_begins_at_the_constant_mean():
    y = torch.tensor([0.0, 2.0, 7.0, 3.0])
    for name in ("poisson", "negative_binomial", "gaussian"):
        targets = OutcomeTargets(get_family(name)).fitted(y, "x")
        assert float(targets.family.mean(torch.tensor(targets.offset))) == pytest.approx(3.0)
        z = torch.zeros(4, 1, requires_grad=True)
        targets.loss(z, y).backward()
        derivatives = 4 * z.grad / targets.unit  # of each outcome's loss
        assert float(derivatives.square().mean()) == pytest.approx(1.0, rel=0.4)
    rare = OutcomeTargets(get_family("bernoulli")).fitted(torch.tensor([1.0] + [0.0] * 999), "x")
    assert rare.scale == 1.0 and math.isfinite(rare.offset)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, and the split


@pytest.mark.parametrize(
    ("family", "labels", "message"),
    [
        ("poisson", ["3", "many", "-1", "2.5"], r"outcomes.csv: 3 of 4 labels .* counts: whole numbers .*: 1.png has 'many'; "
                                              r"2.png has '-1'; 3.png has '2.5': correct them"),
        ("gaussian", ["3", "nan", "2", "1,5"], r"2 of 4 labels .*1.png has 'nan'; 3.png has '1,5'"),
        ("gamma", ["3", "0", "2", "1"], r"1 of 4 labels .* more than 0: 1.png has '0'"),
        ("bernoulli", ["yes", "no", "maybe", "no"], r"4 of 4 labels .*, or two classes: 0.png has 'yes'"),
        ("poisson", ["3", "3.0", "3", "3"], r"every training image has the outcome 3: there is nothing to learn"),
        ("poisson", ["3", "4"], r"has 2 images: at least 3"),
        ({"name": "gaussian", "link": "log"}, ["-3", "-4", "-5", "-6"], r"mean -\d.*link log .* use another link"),
    ],
)  # fmt: skip
def test_labels_that_are_no_outcomes(start, tmp_path, family, labels, message):
    (tmp_path / "x").mkdir()
    rows = []
    for i, label in enumerate(labels):
        Image.new("L", (28, 28), 40 * i).save(tmp_path / "x" / f"{i}.png")
        rows.append(f'{i}.png,"{label}"\n')
    (tmp_path / "x" / "outcomes.csv").write_text("path,label\n" + "".join(rows))
    with pytest.raises(DataError, match=message):
        finetune(start, tmp_path / "x" / "outcomes.csv", tmp_path / "run", family=family, **QUICK)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "poison"}, "did you mean 'poisson'"),
        ({"family": "poisson", "balanced": True}, "balanced = True .* family poisson has none"),
        ({"family": {"name": "poisson", "link": "identity"}}, "use the log link"),
    ],
)
def test_settings_that_cannot_be(start, counted, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        finetune(start, counted, tmp_path / "run", **QUICK | changes)
    assert not (tmp_path / "run").exists()


def test_another_family_is_another_run(start, few, tmp_path):
    finetune(start, few, tmp_path / "run", family="poisson", max_steps=1, **QUICK)
    with pytest.raises(RuntimeError, match=r"another recipe: family .*'poisson'.* \(now .*'gamma'"):
        finetune(start, few, tmp_path / "run", family="gamma", resume=True, **QUICK)


def test_outcomes_are_split_at_random_and_any_may_stand_in_any_split(tmp_path):
    samples = [Sample(f"{i}.png", str(i / 7), "", lambda: None) for i in range(50)]
    source = ImageSource("x", samples, ())
    parts = split_outcomes(source, 0.2, 0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 40, "val": 10, "test": 0}
    assert (
        split_table(parts) == split_table(split_outcomes(source, 0.2, 0)) != split_table(split_outcomes(source, 0.2, 1))
    )
    for split, value in (("train", 1), ("train", 2), ("val", 3), ("test", 4)):
        (tmp_path / "n" / split / str(value)).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "n" / split / str(value) / "a.png")
    given = find_images(tmp_path / "n", outcomes=True)
    assert given.classes == () and [len(part) for part in split_outcomes(given, 0.2, 0).values()] == [2, 1, 1]
    targets = find_targets(get_family("poisson"), given)
    assert sorted(targets.read([sample.label for sample in given.samples]).tolist()) == [1.0, 2.0, 3.0, 4.0]


def test_two_numbers_are_what_they_say():
    def source(*labels):
        return ImageSource("x", [Sample(label, label, "", lambda: None) for label in labels], ())

    family = get_family("bernoulli")
    assert find_targets(family, source("0.25", "0.75")).read(["0.25", "0.75"]).tolist() == [0.25, 0.75]
    assert find_targets(family, source("10", "9")).names == ("9", "10")
    shares = find_targets(family, source("0", "1", "0.5"))
    assert shares.read(["0.5"]).tolist() == [0.5] and shares.names == ()


def test_classes_are_what_they_were(start, tmp_path):
    """The name of the default family changes nothing, and nothing of outcomes gets into a run of classes."""
    from finetune_folders import make_images

    images = make_images(tmp_path / "pets")
    finetune(start, images, tmp_path / "a", **FAST)
    finetune(start, images, tmp_path / "b", family="categorical", **FAST)
    for name in ("model.safetensors", "config.json", "recipe.yaml", "split.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert "family" not in metrics_of(tmp_path / "a") and "family" not in (tmp_path / "a" / "recipe.yaml").read_text()
