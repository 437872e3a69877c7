"""The paper's tables as data, and the machinery that runs them again, on a tiny stand-in for the data."""

import csv
import dataclasses
import json

import pytest
import timm
import torch
from typer.testing import CliRunner

from gode_zoo import reproduce as module
from gode_zoo.cli import app
from gode_zoo.figure2 import kernel_curves, plot_figure2
from gode_zoo.models import GODE
from gode_zoo.paper import TABLES, PaperRow
from gode_zoo.recipes import recipe_from_dict
from gode_zoo.reproduce import figure2_runs, reproduce, row_recipe, title, write_table
from gode_zoo.train import TrainingInterrupted

ROWS = [row for rows in TABLES.values() for row in rows]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.run_name)
def test_every_row_is_a_model_of_the_zoo_with_the_papers_recipe(row):
    recipe = row_recipe(row)
    timm.create_model(recipe.model, device="meta", **recipe.model_args)
    assert (recipe.epochs, recipe.schedule.milestones, recipe.tag) == (160, (60.0, 100.0, 140.0), "paper")
    assert recipe.optimizer.weight_decay == 0 and not recipe.augment.flip and recipe.drop_last
    short = row_recipe(row, seed=2, epochs=8)
    assert (short.schedule.milestones, short.seed, short.tag) == ((3.0, 5.0, 7.0), 2, "paper-8-epochs")
    assert (row_recipe(row, amp="bf16").tag, row_recipe(row, epochs=8, amp="bf16").tag) == (
        "paper-bf16",
        "paper-8-epochs-bf16",
    )


def test_rows_that_are_one_run_share_a_folder():
    names = {table: [row.run_name for row in rows] for table, rows in TABLES.items()}
    assert [len(rows) for rows in names.values()] == [6, 12, 8, 16]
    assert all(len(set(rows)) == len(rows) for rows in names.values())
    shared = set.intersection(*(set(rows) for rows in names.values()))
    assert shared == {"gode_cifar10_m8"}  # m = 8, k = 1, T = 1, L = 2, Euler: in all four
    assert len(set(names["table2"]) & set(names["table4"])) == 4  # m = 2, 4, 6, 8 with two convolutions


@pytest.fixture
def tiny(monkeypatch, recipe_dict):
    """Table 1 with two rows, whose recipe is a tiny one; the folder of the runs has yet to be made."""
    recipe_dict |= {
        "model": "gode_mnist_m4",
        "tag": "paper",
        "epochs": 2,
        "schedule": {"name": "step", "milestones": [1]},
    }
    rows = (
        PaperRow({"data": "CIFAR-10", "model": "Neural-GODE"}, "gode_mnist_m4", 10.0, 0.1, {"num_steps": 2}),
        PaperRow(
            {"data": "CIFAR-10", "model": "with Heun"}, "gode_mnist_m4", 20.0, 0.2, {"solver": "heun", "num_steps": 1}
        ),
    )

    def recipe(row, seed=0, epochs=2, amp="none"):
        args = {**recipe_dict["model_args"], **row.model_args}
        return dataclasses.replace(recipe_from_dict(recipe_dict), seed=seed, model_args=args, amp=amp)

    monkeypatch.setattr(module, "TABLES", {"table1": rows})
    monkeypatch.setattr(module, "row_recipe", recipe)
    return rows


def test_runs_are_made_once_and_resumed(tiny, tmp_path, monkeypatch):
    calls, whole = [], module.train

    def interrupted(recipe, folder, **options):
        calls.append((folder.name, options["resume"]))
        if len(calls) == 2:
            whole(recipe, folder, max_steps=2, **options)
            raise TrainingInterrupted("stopped")
        return whole(recipe, folder, **options)

    monkeypatch.setattr(module, "train", interrupted)
    options = {"seeds": 2, "epochs": 2, "runs": tmp_path / "runs", "device": "cpu", "progress": False}
    with pytest.raises(TrainingInterrupted):
        list(reproduce("table1", **options))
    standing = list(reproduce("table1", run_missing=False, **options))
    assert [len(result.errors) for result in standing] == [1, 0] and standing[1].state == "not run"
    results = list(reproduce("table1", resume=True, **options))
    assert calls == [("seed0", False), ("seed1", False), ("seed1", True), ("seed0", False), ("seed1", False)]
    assert [result.nfe for result in results] == [2, 2]
    for result in results:
        logged = [
            json.loads((tmp_path / "runs" / f"{result.row.run_name}.paper" / f"seed{n}" / "metrics.json").read_text())
            for n in range(2)
        ]
        assert result.errors == tuple(metrics["last"]["error"] for metrics in logged)
        assert result.mean == pytest.approx(sum(result.errors) / 2) and result.sd is not None

    csv_file, markdown = write_table("table1", results, tmp_path / "out")
    lines = list(csv.DictReader(csv_file.open()))
    assert [float(line["error_mean"]) for line in lines] == pytest.approx([result.mean for result in results], abs=1e-3)
    assert "with 2 of its 160 epochs" in markdown.read_text() and "not comparable" in markdown.read_text()
    assert "bfloat16" not in markdown.read_text()
    assert "CIFAR-10, Neural-GODE − with Heun: " in markdown.read_text()
    assert "epochs, in bfloat16" in title("table1", list(reproduce("table1", run_missing=False, **options, amp="bf16")))
    for file in (tmp_path / "runs").glob("*/*/metrics.json"):  # older runs did not write down the NFE
        metrics = json.loads(file.read_text())
        counted = metrics.pop("nfe")
        file.write_text(json.dumps(metrics))
    assert counted == 2 and list(reproduce("table1", run_missing=False, **options)) == results
    for file in (tmp_path / "runs").glob("*/*/model.safetensors"):
        file.unlink()
    logs = list(reproduce("table1", run_missing=False, **options))
    assert [(row.errors, row.nfe) for row in logs] == [(row.errors, None) for row in results]
    for file in (tmp_path / "runs").glob("*/*/metrics.json"):  # newer ones did: logs and metrics alone give the table
        file.write_text(json.dumps(json.loads(file.read_text()) | {"nfe": counted}))
    assert list(reproduce("table1", run_missing=False, **options)) == results
    assert "same machine" not in markdown.read_text()
    one = next((tmp_path / "runs").glob("*/*/metrics.json"))
    metrics = json.loads(one.read_text())
    one.write_text(json.dumps(metrics | {"hardware": metrics["hardware"] | {"bf16": False, "threads": 64}}))
    _, elsewhere = write_table("table1", list(reproduce("table1", run_missing=False, **options)), tmp_path / "else")
    assert "without bf16 instructions, threads: 64" in elsewhere.read_text() and "same machine" in elsewhere.read_text()
    with pytest.raises(ValueError, match=r"has 4 finished runs, these are 1"):
        write_table("table1", standing, tmp_path / "out")
    assert list(csv.DictReader(csv_file.open())) == lines


def test_runs_at_a_time_give_the_rows_of_runs_in_turn(tiny, tmp_path):
    options = {"seeds": 2, "device": "cpu", "progress": False}
    at_once = list(reproduce("table1", jobs=3, runs=tmp_path / "a", **options))
    in_turn = list(reproduce("table1", runs=tmp_path / "b", **options))
    assert [row.errors for row in at_once] == [row.errors for row in in_turn] and len(at_once[1].errors) == 2
    assert list(reproduce("table1", jobs=3, runs=tmp_path / "a", **options)) == at_once  # and none is run again


def test_the_command_and_its_refusals(tiny, tmp_path):
    runner, runs = CliRunner(), str(tmp_path / "runs")
    shown = runner.invoke(app, ["reproduce", "table1", "--runs", runs, "--out", str(tmp_path / "out"), "--no-run"])
    assert shown.exit_code == 0 and shown.output.count("not run") == 2
    assert not (tmp_path / "out").exists()
    made = runner.invoke(
        app, ["reproduce", "table1", "--runs", runs, "--out", str(tmp_path / "out"), "--device", "cpu"]
    )
    assert made.exit_code == 0 and "1 of 1 seed" in made.output, made.output
    figure = runner.invoke(app, ["reproduce", "figure2", "--runs", runs, "--out", str(tmp_path / "out"), "--no-run"])
    assert figure.exit_code == 0, figure.output
    assert (tmp_path / "out" / "figure2.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "out" / "figure2.svg").read_text()
    with pytest.raises(ValueError, match=r"table='table5': must be one of"):
        list(reproduce("table5"))
    with pytest.raises(ValueError, match="seeds=0"):
        list(reproduce("table1", seeds=0))
    with pytest.raises(FileNotFoundError, match="no finished run"):
        figure2_runs(runs=tmp_path / "none", run_missing=False)


def test_epochs_are_at_most_the_papers():
    with pytest.raises(ValueError, match=r"epochs=161: must be 1 to 160"):
        row_recipe(ROWS[0], epochs=161)
    with pytest.raises(ValueError, match=r"amp='fp16': must be none or bf16"):
        row_recipe(ROWS[0], amp="fp16")


def test_kernel_curves_are_the_weights_that_the_layers_use():
    torch.manual_seed(0)
    gode = timm.create_model("gode_mnist_m4", degree=2, knots="clamped").eval()
    times, weights, axis = kernel_curves(gode)
    conv = gode.block.field.convs[0]
    kernels = conv.weights_at(conv.basis(times).float())[:, 0, 0].flatten(1)
    torch.testing.assert_close(weights.float(), kernels)
    assert isinstance(gode, GODE) and axis == "t"

    resnet = timm.create_model("resnet6_mnist")
    where, weights, axis = kernel_curves(resnet)
    assert (where.tolist(), axis) == ([1, 2, 3, 4, 5, 6], "block")
    assert torch.equal(weights[3].float(), resnet.block.blocks[3].conv1.weight[0, 0].flatten())

    _, weights, _ = kernel_curves(odenet := timm.create_model("odenet_mnist"))
    assert torch.equal(weights[7].float(), odenet.block.field.conv1.conv.weight[0, 1].flatten())
    with pytest.raises(ValueError, match="of another model"):
        kernel_curves(odenet, {"blocks.0.conv1.weight": torch.zeros(2, 3, 3)})
    with pytest.raises(ValueError, match="Linear: must be"):
        kernel_curves(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="no runs"):
        plot_figure2({})
