"""report.html: what stands in it, that it is safe and complete, and how a real browser sees it."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from finetune_folders import FAST, make_images, metrics_of
from PIL import Image

from gode_zoo.class_predictions import ClassPredictions
from gode_zoo.finetune import finetune
from gode_zoo.report.classes import _confusions, _per_class

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<script>document.title='owned'<"  # a folder's name; / cannot be in one


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    images = make_images(folder / "pets & <b>", count=8, labels=("above", EVIL))
    result = finetune(
        "gode_mnist_m4", images, folder / "run", **FAST | {"lr": None}, command="gode-zoo finetune 'a & b' <c>"
    )  # fmt: skip
    return folder / "run", result


class Reader(HTMLParser):
    """Every element with its attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def read(folder):
    return Reader((folder / "report.html").read_text(encoding="utf-8"))


SECTIONS = ["Learning", "Confusions (validation)", "Accuracy of each class (validation)", "Reliability (validation)",
            "Best and worst predictions (validation)", "Kernels over t", "How it was made"]  # fmt: skip


def test_everything_is_there(run):
    folder, result = run
    page = read(folder)
    assert all(title in page.text for title in SECTIONS)
    charts = [attrs["aria-label"] for tag, attrs in page.elements if tag == "svg"]
    assert len(charts) == 3 + 1 + 2  # learning, reliability, two convolutions
    assert f"Range test: loss while the rate rises ({result.lr:g} was taken)" in charts
    thumbnails = [attrs["src"] for tag, attrs in page.elements if tag == "img"]
    assert len(thumbnails) == 2 * metrics_of(folder)["last"]["total"]
    for words in (metrics_of(folder)["sha256"], "gode-zoo finetune 'a & b' <c>", "gode_mnist_m4.modern", "torch 2."):
        assert words in page.text
    assert f"{result.error:.2f} %" in page.text


def test_nothing_is_loaded_and_nothing_runs(run):
    folder, _ = run
    page = read(folder)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attrs in page.elements:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "href", "xlink:href") or value.startswith("data:image/png;base64,")
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in text
    assert EVIL in page.text  # as text


def browser(folder, tmp_path, *arguments):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", *arguments,
               f"file://{folder / 'report.html'}"]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
def test_a_real_browser_shows_it(run, tmp_path):
    """What the browser made of the page, and what it drew."""
    folder, _ = run
    seen = browser(folder, tmp_path, "--dump-dom", "--enable-logging=stderr", "--v=0")
    assert seen.returncode == 0, seen.stderr
    dom = Reader(seen.stdout)
    assert all(title in dom.text for title in SECTIONS)
    assert "<title>gode_mnist_m4 on pets &amp; &lt;b&gt;</title>" in seen.stdout  # no script has changed it
    assert not re.search(r"CONSOLE|Refused to|Content Security Policy", seen.stderr), seen.stderr

    shot = tmp_path / "page.png"
    seen = browser(folder, tmp_path, f"--screenshot={shot}", "--window-size=1000,3600", "--force-device-scale-factor=1")
    assert seen.returncode == 0, seen.stderr
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[1] == 1000
    blue = (np.abs(pixels - [0x2F, 0x78, 0xC4]).sum(axis=2) < 30).sum(axis=1)  # curves and bars
    assert (blue > 0).sum() > 200
    assert blue[:400].any() and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200


def predictions(num_classes, wrong):
    labels = torch.arange(num_classes).repeat(3)
    predicted = labels.clone()
    predicted[:wrong] = (predicted[:wrong] + 1) % num_classes
    return ClassPredictions(labels, predicted, torch.full((len(labels),), 0.9), (predicted == labels).float())


def test_of_many_classes_what_is_worth_seeing():
    names = [f"class {i}" for i in range(500)]
    listed = Reader(_confusions(predictions(500, 150), names))
    assert "Of 500 classes" in listed.text and sum(tag == "tr" for tag, _ in listed.elements) == 1 + 100
    worst = Reader(_per_class(predictions(500, 150), names, [3] * 500))
    assert "The 100 worst of 500" in worst.text and "class 0" in worst.text and "class 499" not in worst.text
    matrix = Reader(_confusions(predictions(5, 2), names[:5]))
    assert sum(tag == "td" for tag, _ in matrix.elements) == 25 + 2 * 3
    assert "Every image was right" in _confusions(predictions(5, 0), names[:5])
