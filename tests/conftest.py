"""A tiny dataset, recipe and published model, for tests of training, evaluation and the command line."""

import hashlib
import json
import sys

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.models import save_for_hf

import gode_zoo  # noqa: F401


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache of decoded images (the real datasets' is shared within a session)."""
    monkeypatch.setenv("GODE_ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def digits(tmp_path):
    """A folder with splits train and test of two classes of grey 28×28 images: bright above, bright below."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for label in ("above", "below"):
            folder = tmp_path / "digits" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 80, (28, 28), dtype=np.uint8)
                pixels[:14] += 150 * (label == "above")
                pixels[14:] += 150 * (label == "below")
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return tmp_path / "digits"


@pytest.fixture
def recipe_dict(digits):
    """A recipe of two epochs of three steps on `digits`."""
    return {
        "model": "stem_mnist",
        "tag": "tiny",
        "model_args": {"num_classes": 2},
        "dataset": str(digits),
        "epochs": 2,
        "batch_size": 8,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        "schedule": {"name": "onecycle", "warmup": 0.3},
        "augment": {"crop_padding": 2, "flip": True},
        "log_test": True,
    }


@pytest.fixture
def recipe_file(recipe_dict, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe_dict))
    return path


@pytest.fixture(scope="session")
def hub_process(tmp_path_factory):
    """A server and one client in a process of its own, for every test of the Hub."""
    from hub_client import Client
    from hub_server import TOKEN, HubServer

    home = tmp_path_factory.mktemp("hub") / "home"
    home.mkdir()
    with HubServer() as server, Client(server.endpoint, home, HF_TOKEN=TOKEN) as client:
        client.home = home
        yield server, client


@pytest.fixture
def hub(hub_process):
    """The server, with no fault and an empty log."""
    hub_process[0].reset()
    yield hub_process[0]
    hub_process[0].reset()


@pytest.fixture
def client(hub_process, hub):
    """The client, with the right token."""
    from hub_server import TOKEN

    hub_process[1].run("value = None", HF_TOKEN=TOKEN)
    return hub_process[1]


@pytest.fixture
def published(tmp_path, digits):
    """A run's folder of an untrained gode_mnist_m4 of three steps, tested on `digits` (10 images)."""
    return publish_untrained("gode_mnist_m4", tmp_path, digits)


@pytest.fixture
def published_in_stages(tmp_path, digits):
    """The same of a model of three stages."""
    return publish_untrained("gode3_mnist_xs", tmp_path, digits)


def publish_untrained(name, tmp_path, digits):
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    arguments = {"num_steps": 3, "num_classes": 2}
    model = timm.create_model(name, **arguments)
    overlay = {"label_names": ["above", "below"], "pretrained_cfg": {"tag": "tiny"}, "model_args": arguments}
    save_for_hf(model, folder, model_config=overlay, safe_serialization=True)
    metrics = {"model": name, "tag": "tiny", "dataset": str(digits)}
    metrics["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """A call of the command line: its exit code, stdout and stderr."""
    from gode_zoo import cli

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gode-zoo", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stopped:
            cli.main()
            sys.exit(0)
        out = capsys.readouterr()
        return int(stopped.value.code or 0), out.out, out.err

    return call
