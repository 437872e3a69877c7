"""The demo, with an untrained stand-in and few steps; and what it says where something is missing."""

import io
import json
import sys

import pytest
import timm
import torch
from rich.console import Console
from torch.nn import functional as F

import gode_zoo  # noqa: F401  (registers the models)
from gode_zoo import demo
from gode_zoo.models import _pretrained


@pytest.fixture
def said(monkeypatch):
    """What the demo prints."""
    text = io.StringIO()
    monkeypatch.setattr(demo, "console", Console(file=text, width=120))
    return text


@pytest.fixture(scope="module")
def digits():
    return demo.load_digits()


def small_model():
    torch.manual_seed(0)
    return timm.create_model("gode_mnist_m4", num_steps=2)


def test_digits_are_as_mnist_has_them(digits):
    images, labels = digits
    assert images.shape == (1797, 1, 28, 28) and images.dtype == torch.float32
    assert labels.shape == (1797,) and labels.dtype == torch.int64 and set(labels.tolist()) == set(range(10))
    assert images.min() == 0.0 and images.max() == 1.0
    border = images.clone()
    border[:, :, 4:24, 4:24] = 0.0
    assert border.abs().max() == 0.0
    rows = (images.amax(dim=3) > 0.3).sum(dim=2).double().mean()
    assert 18 <= rows <= 20  # MNIST: 19.7
    assert 0.10 < images.mean() < 0.20  # MNIST: 0.13


def test_digits_are_neither_mirrored_nor_turned():
    corner = torch.zeros(1, 8, 8)
    corner[0, 0, :5] = 16.0  # a bar at the top, from the left
    (image,) = demo.prepare(corner)[:, 0]
    assert image[4:6, 4:14].min() > 0.5 and image[8:].max() == 0.0 and image[:, 20:].max() == 0.0


def test_run(digits, said, tmp_path):
    images, labels = digits[0][:60], digits[1][:60]
    results = []
    for _ in range(2):
        model, figure = small_model(), demo.new_figure(8.0, 9.0)
        initial = [conv.coeffs.detach().clone() for conv in model.block.field.convs]
        results.append(demo.run(model, images, labels, figure, num_train=20, epochs=1))
        assert not any(torch.equal(c.coeffs, old) for c, old in zip(model.block.field.convs, initial, strict=True))
    assert results[0] == results[1]  # fixed seeds
    assert all(0.0 <= accuracy <= 100.0 for accuracy in results[0])
    text = said.getvalue()
    assert "60 digits: 20 to fine-tune on, the other 40 to measure." in text
    assert f"{results[0][0]:.1f} %" in text and f"{results[0][1]:.1f} %" in text
    assert len([ax for ax in figure.axes if ax.images]) == 40  # every digit measured is in the picture
    assert any(ax.get_xlabel() == "t" for ax in figure.axes)
    figure.savefig(tmp_path / "demo.png")


def test_fine_tuning_does_not_see_the_digits_that_measure(digits, said):
    images, labels = digits[0][:40].clone(), digits[1][:40]
    weights = []
    for noise in (False, True):
        if noise:
            images[20:] = torch.rand(20, 1, 28, 28)
        model = small_model()
        demo.run(model, images, labels, demo.new_figure(8.0, 9.0), num_train=20, epochs=1)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_fine_tuning_learns(digits, said):
    torch.manual_seed(0)
    images, labels = digits[0][:100], digits[1][:100]
    model = timm.create_model("stem_mnist")
    losses = []
    for epochs in (0, 8):
        if epochs:
            demo.fine_tune(model, images, labels, epochs)
        with torch.no_grad():
            losses.append(F.cross_entropy(model.eval()(images), labels).item())
    assert losses[1] < losses[0] - 0.1


def test_table_counts(said):
    labels = torch.tensor([0, 0, 0, 1])
    demo.console.print(demo.accuracy_table(labels, torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 0])))
    rows = [line.split("│")[1:-1] for line in said.getvalue().splitlines() if "%" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["0", "3", "33.3 %  (1)", "66.7 %  (2)"],
        ["1", "1", "100.0 %  (1)", "0.0 %  (0)"],
        ["all", "4", "50.0 %  (2)", "50.0 %  (2)"],
    ]


def test_whole_demo_from_bundled_weights(digits, said, tmp_path, monkeypatch):
    """`main`, with a folder that states the figure and a model that has few steps."""
    (tmp_path / "metrics.json").write_text(json.dumps({"last": {"error": 12.34}}))
    monkeypatch.setattr(demo, "find_weights", lambda arch, tag: tmp_path)
    model = small_model()
    monkeypatch.setattr(demo.timm, "create_model", lambda name, pretrained: model)
    monkeypatch.setattr(demo, "load_digits", lambda: (digits[0][:60], digits[1][:60]))
    monkeypatch.setattr(demo.run, "__defaults__", (20, 1))
    assert demo.main(["--out", str(tmp_path / "a" / "b")]) == 0
    assert (tmp_path / "a" / "b" / "demo.png").stat().st_size > 10_000
    assert "428,042 parameters; its card states 12.34 % error" in said.getvalue()


def test_missing_weights(said, tmp_path, monkeypatch):
    monkeypatch.setattr(_pretrained, "_ROOTS", (tmp_path,))
    assert demo.main(["--out", str(tmp_path)]) == 1
    assert "no bundled weights gode_mnist_m4.modern" in said.getvalue()
    assert "gode-zoo train gode_mnist_m4.modern" in said.getvalue()


@pytest.mark.parametrize(("module", "extra"), [("sklearn", "demo"), ("matplotlib.figure", "plots")])
def test_missing_extra(said, tmp_path, monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    assert demo.main(["--out", str(tmp_path)]) == 1
    assert f"gode_zoo[{extra}]" in said.getvalue()


def test_folder_that_cannot_be_made(said, tmp_path):
    (tmp_path / "file").write_text("")
    assert demo.main(["--out", str(tmp_path / "file")]) == 1
    assert "The demo cannot run" in said.getvalue()
