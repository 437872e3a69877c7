"""The table of related systems: what it says of cost is counted, and the page is the CSV file."""

import csv
from pathlib import Path

import pytest
import timm

from gode_zoo import related_systems
from gode_zoo.recipes import list_recipes
from gode_zoo.related_systems import SYSTEMS, System, cost, describe_basis, measure, render, write

RESULTS = Path(__file__).resolve().parent.parent / "results"


def test_nfe_stages_and_memory():
    figures = cost(timm.create_model("gode_mnist_m4", solver="rk4", num_steps=3), (1, 28, 28), 2)
    assert (figures["stages"], figures["nfe"], figures["parameters"]) == (1, 12, 428_042)
    net = timm.create_model("continuousnet_mnist")
    assert (cost(net, (1, 28, 28), 2)["stages"], cost(net, (1, 28, 28), 2)["nfe"]) == (3, 12)
    # With checkpointing less is kept: the states at the ends of segments.
    net.set_grad_checkpointing()
    saving, plain = cost(net, (1, 28, 28), 8), cost(timm.create_model("continuousnet_mnist"), (1, 28, 28), 8)
    assert float(saving["memory_mb"]) < 0.7 * float(plain["memory_mb"])
    assert cost(timm.create_model("stem_mnist"), (1, 28, 28), 2)["nfe"] == 0


def test_bases_in_words():
    words = {
        "gode_mnist_m4": "4 B-splines of degree 1, uniform",
        "galerkin_mnist": "5 functions, Fourier",
        "anode_mnist": "constant, t as a channel",
        "odenet_mnist": "constant, t as a channel",
        "anodev2_mnist": "an ODE of their own",
        "resnet6_mnist": "none: one weight a block",
    }
    assert {name: describe_basis(timm.create_model(name)) for name in words} == words


def test_a_row_is_a_run(digits, recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(related_systems, "load_recipe", lambda _: load_tiny(recipe_file))
    row = measure(System("tiny", "tiny.short", "stem_mnist"), 3, device="cpu")
    assert row["updates"] == 3 and 0 <= float(row["accuracy"]) <= 100 and row["stages"] == 0
    write([row], tmp_path / "out")
    (read,) = csv.DictReader((tmp_path / "out" / "related_systems.csv").open())
    assert read == {key: str(value) for key, value in row.items()}
    assert (tmp_path / "out" / "related_systems.md").read_text() == render([read])


def load_tiny(path):
    from gode_zoo.recipes import load_recipe

    return load_recipe(path)


def test_every_related_system_has_a_recipe_and_a_row():
    related = {n for n in timm.list_models() if timm.model_entrypoint(n).__module__.startswith("gode_zoo.")}
    related = {name for name in related if name.startswith(("anode", "continuous", "galerkin", "splinet", "stateful"))}
    mnist = {name for name in related if name.endswith("_mnist")}
    assert {f"{name}.short" for name in mnist} <= set(list_recipes())
    assert mnist <= {system.load().model for system in SYSTEMS}


@pytest.mark.skipif(not RESULTS.is_dir(), reason="installed without results/")
def test_the_page_is_the_csv_file():
    rows = list(csv.DictReader((RESULTS / "related_systems.csv").open(encoding="utf-8")))
    assert render(rows) == (RESULTS / "related_systems.md").read_text(encoding="utf-8")
    assert [row["system"] for row in rows] == [system.name for system in SYSTEMS]
    for row, system in zip(rows, SYSTEMS, strict=True):
        recipe = system.load()
        model = timm.create_model(recipe.model, device="meta", **recipe.model_args)
        assert int(row["parameters"]) == sum(p.numel() for p in model.parameters())
