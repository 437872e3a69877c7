"""Folders of finished runs, made in a moment: an untrained model with the files that training would leave."""

import hashlib
import json
from pathlib import Path

import timm
import torch
import yaml
from timm.models import save_for_hf

import gode_zoo

LOG = "epoch,step,lr,train_loss,train_acc,val_error,seconds\n1,3,0.05,0.7,55,40,1.5\n2,6,0.0,0.4,90,10,2.5\n"


def make_run(folder: Path, model: str = "stem_mnist", seed: int = 0, **changes) -> Path:
    """A run folder of a fine-tuned two-class model; `changes` go into metrics.json."""
    assert gode_zoo
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    net = timm.create_model(model, num_classes=2)
    config = {"pretrained_cfg": {"tag": "finetuned"}, "label_names": ["cat", "dog"]}
    save_for_hf(net, folder, model_config=config, safe_serialization=True)
    recipe = yaml.safe_dump({"model": model, "tag": "finetuned", "dataset": "pets", "epochs": 2})
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "train_log.csv").write_text(LOG)
    metrics = {
        "model": model,
        "tag": "finetuned",
        "finetuned_from": None,
        "parameters": sum(p.numel() for p in net.parameters()),
        "dataset": "pets",
        "split": "validation",
        "last": {"epoch": 2, "error": 10.0, "correct": 9, "total": 10},
        "best": {"epoch": 2, "val_error": 10.0, "selected_by": "the validation split"},
        "best_reason": None,
        "seeds": [seed],
        "num_seeds": 1,
        "model_args": {"num_classes": 2},
        "solver": None,
        "epochs": 2,
        "ema": False,
        "wall_clock_seconds": 2.5,
        "sha256": sha256(folder / "model.safetensors"),
        "recipe_sha256": hashlib.sha256(recipe.encode()).hexdigest(),
        "git": None,
        "resumed_with": [],
        "hardware": {"device": "Some CPU", "cpu": "Some CPU", "cores": 2, "threads": 1},
        "versions": {"python": "3.11", "torch": "2.14", "timm": "1.0.31", "gode_zoo": "0.1.0"},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics | changes))
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, to publish them past every check."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
