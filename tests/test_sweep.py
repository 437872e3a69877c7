"""The sweep measures the settings it names, and picks the cheapest that loses little enough."""

import csv
import sys

import pytest
import timm
import torch

import gode_zoo
from gode_zoo import cli
from gode_zoo.evaluate import load_published
from gode_zoo.sweep import Point, cheapest, plot_sweep, sweep, write_csv


def test_settings_are_those_asked_for_and_their_costs_are_counted(published):
    points = sweep(str(published), solvers=["rk4", "euler", "dopri5"], steps=[3, 2, 3], repeats=1, images=4)
    assert [(p.solver, p.steps, p.nfe, p.published) for p in points[:4]] == [
        ("euler", 3, 3, True),
        ("rk4", 3, 12, False),
        ("rk4", 2, 8, False),
        ("euler", 2, 2, False),
    ]
    assert points[4].solver == "dopri5" and points[4].nfe >= 8 and len(points) == 5
    assert all(p.total == 4 and p.ms > 0 and p.loss == pytest.approx(points[0].accuracy - p.accuracy) for p in points)


def test_every_setting_solves_with_the_published_weights(published, monkeypatch):
    """The models that are classified with are the published one made anew with that solver."""
    seen = []

    def count(model, *_):
        seen.append(model)
        return original(model, *_)

    from gode_zoo import sweep as module

    original = module.count_correct
    monkeypatch.setattr(module, "count_correct", count)
    sweep(str(published), solvers=["midpoint"], steps=[2], repeats=1)
    model, _ = load_published(str(published))
    x = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(seen[0](x), model(x))
        block = gode_zoo.ODEBlock(model.block.field, solver="midpoint", num_steps=2)
        torch.testing.assert_close(seen[1](x), model.forward_head(model.act(model.norm(block(model.stem(x))))))


def test_every_stage_of_a_model_is_solved_anew(published_in_stages, monkeypatch):
    from gode_zoo import sweep as module

    seen, original = [], module.count_correct
    monkeypatch.setattr(module, "count_correct", lambda model, *rest: seen.append(model) or original(model, *rest))
    points = sweep(str(published_in_stages), solvers=["euler", "rk4"], steps=[3, 2], repeats=1)
    assert [(p.solver, p.steps, p.nfe, p.published) for p in points] == [
        ("euler", 3, 9, True),
        ("euler", 2, 6, False),
        ("rk4", 3, 36, False),
        ("rk4", 2, 24, False),
    ]
    model, _ = load_published(str(published_in_stages))
    x = torch.randn(2, 1, 28, 28)
    for other, point in zip(seen, points, strict=True):
        options = {"solver": point.solver, "num_steps": point.steps, "num_classes": 2}
        again = timm.create_model("gode3_mnist_xs", **options).eval()
        again.load_state_dict(model.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(other(x), again(x))


def point(nfe, loss, published=False, solver="euler"):
    return Point(solver, nfe, published, nfe, 0.1 * nfe, 90, 100, 90.0 - loss, loss)


def test_cheapest_is_the_least_nfe_within_the_loss():
    points = [point(20, 0.0, True), point(5, 1.5), point(10, 0.5), point(10, 0.2, solver="heun"), point(40, -0.1)]
    assert cheapest(points, 0.5) is points[3]
    assert cheapest(points, 2.0) is points[1]
    assert cheapest(points, 0.0) is points[0]
    for loss in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="max_loss"):
            cheapest(points, loss)
    with pytest.raises(ValueError, match="empty"):
        cheapest([], 1.0)


def test_csv_and_plot_hold_every_point(tmp_path):
    points = [point(20, 0.0, True), point(5, 1.5), point(40, 0.1, solver="rk4")]
    write_csv(points, tmp_path / "sweep.csv")
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [(row["solver"], int(row["nfe"]), float(row["loss"])) for row in rows] == [
        (p.solver, p.nfe, p.loss) for p in points
    ]
    figure = plot_sweep(points, points[1], "title")
    for ax, key in zip(figure.axes, ("nfe", "ms"), strict=True):
        curves = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
        assert curves["euler"] == [[getattr(p, key), p.accuracy] for p in (points[1], points[0])]
        assert curves["chosen"] == [[getattr(points[1], key), points[1].accuracy]]


def test_command_writes_both_files_and_names_the_cheapest(published, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["sweep", str(published), "--solver", "euler", "--steps", "1,3", "--max-loss", "100"]
    monkeypatch.setattr(sys, "argv", ["gode-zoo", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
        sys.exit(0)
    assert not stopped.value.code
    assert "solver='euler', num_steps=1 (1 calls" in " ".join(capsys.readouterr().out.split())
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["sweep_run.csv", "sweep_run.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "1,x"], "steps='1,x'"),
        (["--steps", "0"], "steps=0"),
        (["--solver", "rk5"], "solver='rk5'"),
        (["--max-loss", "-1"], "max_loss=-1"),
        (["--images", "0"], "images=0"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(published, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gode-zoo", "sweep", str(published), *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and message in err and not (tmp_path / "results").exists()
