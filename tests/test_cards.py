"""Cards and tables say what metrics.json says, and a test fails when they do not."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import timm
import yaml
from hub_runs import make_run
from huggingface_hub import ModelCard

from gode_zoo import cards
from gode_zoo.cards._text import solver_text
from gode_zoo.metrics import solving

ROOT = Path(__file__).resolve().parent.parent

RECIPE = "model: gode_mnist_m4\ntag: modern\n"
METRICS = {  # of no real model
    "model": "gode_mnist_m4",
    "tag": "modern",
    "parameters": 428_042,
    "dataset": "torch/mnist",
    "split": "test",
    "last": {"epoch": 6, "error": 12.34, "correct": 8766, "total": 10000},
    "best": {"epoch": 5, "error": 12.0, "correct": 8800, "total": 10000, "selected_by": "test set: information only"},
    "best_reason": None,
    "seeds": [0],
    "num_seeds": 1,
    "model_args": {},
    "solver": {"solver": "euler", "t_span": [0.0, 1.0], "sensitivity": "autograd", "num_steps": 20, "step_size": 0.05},
    "epochs": 6,
    "ema": False,
    "wall_clock_seconds": 4321.0,
    "sha256": hashlib.sha256(b"weights").hexdigest(),
    "recipe_sha256": hashlib.sha256(RECIPE.encode()).hexdigest(),
    "git": {"commit": "c0ffee", "dirty": True},
    "resumed_with": [
        {"from_step": 901, "git": {"commit": "decaf", "dirty": False}},
        {
            "from_step": 950,
            "git": {"commit": "decaf", "dirty": False},
            "hardware": {"device": "Other CPU", "cpu": "Other CPU", "cores": 4, "threads": 1, "bf16": False},
        },
    ],
    "hardware": {"device": "Some CPU", "cpu": "Some CPU", "cores": 2, "threads": 2},
    "versions": {"python": "3.11.7", "torch": "2.15.0", "timm": "1.0.31", "gode_zoo": None},
}
CONFIG = {
    "architecture": "gode_mnist_m4",
    "num_classes": 10,
    "label_names": [str(digit) for digit in range(10)],
    "pretrained_cfg": {"tag": "modern", "input_size": [1, 28, 28], "mean": [0.0], "std": [1.0]},
}


@pytest.fixture
def root(tmp_path) -> Path:
    """A checkout with one model, whose cards were made."""
    (tmp_path / "README.md").write_text(f"# head\n\n{cards.BEGIN}\nold\n{cards.END}\n\ntail\n")
    publish(tmp_path, METRICS)
    assert cards.main([], tmp_path) == 0
    return tmp_path


def publish(root: Path, metrics: dict, folder: str = "gode_mnist_m4.modern") -> Path:
    out = root / "hub" / folder
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(metrics))
    (out / "config.json").write_text(json.dumps(CONFIG))
    (out / "recipe.yaml").write_text(RECIPE)
    (out / "model.safetensors").write_bytes(b"weights")
    return out


def test_the_overview_has_the_papers_tables(root):
    (root / "results").mkdir(exist_ok=True)
    for n in (2, 1):
        (root / "results" / f"table{n}.md").write_text(f"# Table {n} of the paper\n\n| a |\n|---|\n| {n} |\n")
    (root / "results" / "figure2.png").write_bytes(b"")
    overview = cards.render(root)[root / "MODEL_CARDS.md"]
    section = overview.split("## The paper's tables again")[1]
    assert [line for line in section.splitlines() if line.startswith("### ")][:2] == [
        "### Table 1 of the paper",
        "### Table 2 of the paper",
    ]
    assert "](results/figure2.png)" in section


def test_the_overview_has_the_related_systems(root):
    (root / "results").mkdir()
    page = "# Related systems\n\n<!-- note -->\n\n**Short runs**\n\n| system |\n| --- |\n| A |\n"
    (root / "results" / "related_systems.md").write_text(page)
    assert cards.main(["--check"], root) == 1  # what was written before has not got them
    assert cards.main([], root) == 0
    overview = (root / "MODEL_CARDS.md").read_text()
    assert overview.endswith("\n## Related systems\n\n**Short runs**\n\n| system |\n| --- |\n| A |\n")


def test_controls_say_whether_the_block_earns_its_keep(root):
    def control(model, error, epochs=6):
        correct = round(10000 - 100 * error)
        last = {"epoch": epochs, "error": error, "correct": correct, "total": 10000}
        publish(root, METRICS | {"model": model, "last": last, "epochs": epochs}, f"{model}.modern")

    assert "earn its keep" not in (root / "MODEL_CARDS.md").read_text()
    control("stem_mnist", 20.0)
    control("resnet1_mnist", 12.5)
    control("stem_cifar10", 20.0)  # of other data
    assert cards.main([], root) == 0
    text = (root / "MODEL_CARDS.md").read_text()
    # 12.34 ± 0.329 and 20 ± 0.4 give ± 0.518; 12.5 ± 0.331 gives ± 0.467.
    assert (
        "**MNIST, modern:** the spline ODE block is 7.66 ± 0.52 points better than no block; "
        "not measurably different (+0.16 ± 0.47 points) from one residual block." in text
    )
    assert "| stem_mnist.modern | no block | 428,042 | 6 | 20.00 ± 0.40 |" in text and "stem_cifar10" in text
    assert text.count("spline ODE block is") == 1 and "same number of epochs" not in text
    control("odenet_mnist", 14.0)
    control("resnet1_mnist", 9.0, epochs=60)
    assert cards.main([], root) == 0
    text = (root / "MODEL_CARDS.md").read_text()
    assert "1.66 ± 0.48 points better than a Neural-ODE" in text
    assert "points worse than one residual block" in text and "not the same number of epochs" in text


def test_the_mean_over_seeds_is_compared_not_the_published_seed(root):
    def several(model, errors):
        last = {"epoch": 6, "error": errors[0], "correct": round(10000 - 100 * errors[0]), "total": 10000}
        seeds = {"seeds": [0, 1, 2], "num_seeds": 3, "seed_errors": errors}
        publish(root, METRICS | {"model": model, "last": last} | seeds, f"{model}.modern")

    several("stem_mnist", [12.4, 14.3, 14.4])  # the published one is as good as the model with the block
    several("resnet1_mnist", [11.0, 12.3, 13.7])
    assert cards.main([], root) == 0
    text = (root / "MODEL_CARDS.md").read_text()
    assert "| stem_mnist.modern | no block | 428,042 | 6 | 13.70 ± 1.13 over 3 seeds |" in text
    assert text.count("| 3 (13.70 ± 1.13) |") == 1
    # 13.7 of 10,000 images is ± 0.344, 12.34 is ± 0.329.
    assert "1.36 ± 0.48 points better than no block" in text
    assert "not measurably different (-0.01 ± 0.47 points) from one residual block" in text


def test_card_states_figures_and_provenance(root):
    text = (root / "hub/gode_mnist_m4.modern/README.md").read_text()
    for what in (
        "12.34 % (1,234 wrong of 10,000)",  # last
        "12.00 % (1,200 wrong of 10,000), epoch 5",  # best
        "selected by the test set: information only",
        "0.33 points",  # sqrt(0.8766 * 0.1234 / 10000)
        "one, seed 0",
        "428,042",
        "euler, 20 steps of 0.05, t from 0 to 1",
        "`c0ffee` with uncommitted changes",
        "from step 901: `decaf` |",
        "from step 950: `decaf`, on Other CPU, without bf16 instructions, threads: 1, cores: 4 |",
        "1 h 12 min",
        METRICS["sha256"],
        RECIPE.strip(),
        'timm.create_model("gode_mnist_m4.modern", pretrained=True)',
        "gode-zoo evaluate gode_mnist_m4.modern --check",
        "limits",
        "Yu, Duo and Miao, Hongyu and Wu, Hulin",
    ):
        assert what in text, what


def test_the_figure_with_mirror_images_is_in_the_card(root):
    assert "test-time" not in (root / "hub/gode_mnist_m4.modern/README.md").read_text()
    out = publish(root, METRICS | {"mirrored": {"error": 11.0, "correct": 8900, "total": 10000}})
    assert cards.main([], root) == 0
    text = (out / "README.md").read_text()
    assert "mean logits of image and mirror image | 11.00 % (1,100 wrong of 10,000) |" in text
    assert "**12.34 % (1,234 wrong of 10,000)**" in text and "--mirror --check" in text
    publish(root, METRICS | {"mirrored": {"error": 10.0, "correct": 8900, "total": 10000}})
    assert cards.main([], root) != 0  # contradicts itself


def test_card_has_the_metadata_that_the_hub_reads(root):
    data = ModelCard.load(root / "hub/gode_mnist_m4.modern/README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "timm", "image-classification")
    assert data.datasets == ["ylecun/mnist"] and data.metrics == ["accuracy"] and "neural-ode" in data.tags
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 87.66, "test")


def test_tables(root):
    row = (
        "| [gode_mnist_m4.modern](hub/gode_mnist_m4.modern/README.md) | MNIST | 12.34 ± 0.33 | 12.00 (epoch 5) "
        "| 428,042 | euler, 20 steps of 0.05, t from 0 to 1 | 6 | 1 |"
    )
    assert row in (root / "MODEL_CARDS.md").read_text()
    readme = (root / "README.md").read_text()
    assert row in readme and "old" not in readme
    assert readme.startswith("# head\n") and readme.endswith("\ntail\n")


def test_a_best_epoch_and_other_facts_that_are_not_known_are_said_to_be_so(root):
    changed = {"best": None, "best_reason": "nobody looked", "git": None, "solver": None}
    out = publish(root, METRICS | changed)
    assert cards.main([], root) == 0
    text = (out / "README.md").read_text()
    assert "not measured: nobody looked" in text and "| Commit | not recorded |" in text and "| Solver | none |" in text
    assert "rk4" not in text and "neural-ode" not in ModelCard(text).data.tags
    assert "| not measured |" in (root / "README.md").read_text()


def test_held_out_best_adaptive_solver_and_gpu(root):
    best = {"epoch": 3, "val_error": 1.5, "selected_by": "held-out split of the training set"}
    solver = {"solver": "dopri5", "t_span": [0.0, 2.0], "sensitivity": "adjoint", "rtol": 1e-3, "atol": 1e-4}
    hardware = {"device": "Some GPU", "cpu": "Some CPU", "cores": 2, "threads": 2}
    out = publish(root, METRICS | {"best": best, "solver": solver, "hardware": hardware})
    assert cards.main([], root) == 0
    text = (out / "README.md").read_text()
    assert "1.50 % of the held-out images, epoch 3; selected by the held-out split" in text
    assert "dopri5, rtol 0.001, atol 0.0001, t from 0 to 2" in text and "Some GPU (host: Some CPU)" in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "euler, 6 steps of 0.5 in each of 3 stages, t from 0 to 3"),
        ({"num_steps": (2, 3, 5), "t_span": (0.0, 3.0)}, "euler, 2, 3, 5 steps in its 3 stages, t from 0 to 3"),
        ({"solver": "dopri5"}, "dopri5, rtol 0.001, atol 0.001 in each of 3 stages, t from 0 to 3"),
    ],
)
def test_solvers_of_models_with_stages(options, text):
    assert solver_text(solving(timm.create_model("gode3_mnist_xs", device="meta", **options))) == text


def test_writing_again_changes_nothing(root, capsys):
    before = {path: path.read_bytes() for path in root.rglob("*.md")}
    capsys.readouterr()
    assert cards.main([], root) == 0
    assert "current" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in root.rglob("*.md")}
    assert cards.main(["--check"], root) == 0


def test_check_names_the_files_after_a_changed_figure_and_writes_nothing(root, capsys):
    publish(root, METRICS | {"last": {"epoch": 6, "error": 12.33, "correct": 8767, "total": 10000}})
    before = {path: path.read_bytes() for path in root.rglob("*.md")}
    assert cards.main(["--check"], root) == 1
    error = capsys.readouterr().err
    for name in ("README.md", "MODEL_CARDS.md", "hub/gode_mnist_m4.modern/README.md"):
        assert f"{name}: is not what metrics.json says" in error
    assert before == {path: path.read_bytes() for path in root.rglob("*.md")}


@pytest.mark.parametrize("name", ["README.md", "MODEL_CARDS.md", "hub/gode_mnist_m4.modern/README.md"])
def test_check_names_a_file_whose_figure_was_edited(root, capsys, name):
    path = root / name
    path.write_text(path.read_text().replace("12.34", "2.34"))
    assert cards.main(["--check"], root) == 1
    error = capsys.readouterr().err
    assert error.count("is not what metrics.json says") == 1 and error.startswith(f"{name}:")


def test_no_weights_at_all(root, capsys):
    shutil.rmtree(root / "hub")
    assert cards.main(["--check"], root) == 1
    assert cards.main([], root) == 0 and cards.main(["--check"], root) == 0
    assert "No weights are published yet." in (root / "README.md").read_text()
    assert "No weights are published yet." in (root / "MODEL_CARDS.md").read_text()


def test_a_card_that_lost_its_model_is_named(root, capsys):
    (root / "hub/gode_mnist_m4.modern/metrics.json").unlink()
    assert cards.main([], root) == 1
    assert "a card without metrics.json" in capsys.readouterr().err


def broken(name: str, content: bytes | None):
    def act(out: Path) -> None:
        (out / name).unlink() if content is None else (out / name).write_bytes(content)

    return act


def without(key: str):
    return lambda out: (out / "metrics.json").write_text(json.dumps({k: v for k, v in METRICS.items() if k != key}))


def contradictory(out: Path) -> None:
    (out / "metrics.json").write_text(json.dumps(METRICS | {"last": METRICS["last"] | {"error": 1.0}}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken("model.safetensors", b"other"), "model.safetensors: sha256 is"),
        (broken("recipe.yaml", b"other: 1\n"), "recipe.yaml: sha256 is"),
        (broken("config.json", None), "config.json: No such file"),
        (broken("metrics.json", b"{"), "not valid JSON"),
        (without("hardware"), "has no 'hardware'"),
        (without("last"), "has no 'last'"),
        (contradictory, "last.error = 1.0, but 8766 correct of 10000 are an error of 12.3400 %"),
        (lambda out: out.rename(out.parent / "other.modern"), "is about gode_mnist_m4.modern"),
    ],
)
def test_no_card_from_a_folder_that_contradicts_itself(root, capsys, damage, message):
    damage(root / "hub/gode_mnist_m4.modern")
    capsys.readouterr()
    assert cards.main([], root) == 1
    assert message in capsys.readouterr().err


def test_readme_without_markers_and_a_folder_that_is_no_checkout(root, tmp_path_factory, capsys):
    (root / "README.md").write_text("# nothing\n")
    assert cards.main([], root) == 1
    assert cards.BEGIN in capsys.readouterr().err
    assert cards.main([], tmp_path_factory.mktemp("empty")) == 1
    assert "not in an installed package" in capsys.readouterr().err


def test_the_cards_of_this_repository_are_current(capsys):
    status = cards.main(["--check"], ROOT)
    assert status == 0, capsys.readouterr().err


def test_recipes_in_the_cards_are_yaml():
    for entry in cards.read_hub(ROOT / "hub"):
        assert yaml.safe_load(entry.recipe)["model"] == entry.metrics["model"]


# ---------------------------------------------------------------------------------------------------------------------
# Runs of anybody, and the plot

NAMES = "a|b", "`c`", "<script>alert(1)</script>", "[x](javascript:y)", "two\nlines", "Größe"


@pytest.fixture
def run(tmp_path) -> Path:
    """A fine-tuned run on a data set of somebody's own."""
    return make_run(tmp_path / "run", finetuned_from="gode_mnist_m4.modern")


def entry_of(run: Path, **changes) -> cards.Entry:
    metrics = json.loads((run / "metrics.json").read_text()) | changes
    (run / "metrics.json").write_text(json.dumps(metrics))
    return cards.read_entry(run)


def test_card_of_a_fine_tuned_run(run):
    text = cards.card(entry_of(run))
    data = ModelCard(text).data
    assert "Fine-tuned from `gode_mnist_m4.modern` on pets" in text and "pets, validation set" in text
    assert "expect a somewhat higher error on new images" in text and "last epoch" not in text
    assert "10.00 % of the held-out images, epoch 2; selected by the validation split" in text
    assert "| Classes | cat, dog |" in text and "hf-hub:ORG/NAME" in text
    assert data.eval_results[0].dataset_split == "validation" and data.eval_results[0].dataset_type == "imagefolder"
    assert data.datasets is None and data.eval_results[0].metric_value == 90.0


def test_card_of_a_run_that_began_with_random_weights(run):
    text = cards.card(entry_of(run, finetuned_from=None, split="test"))
    assert "Trained on pets" in text and "last epoch" not in text and "chosen without this split" in text


@pytest.mark.parametrize("dataset", ["/home/me/secret/pets", "pets.tar", "hfds/me/pets", *NAMES])
def test_card_of_any_data_set(run, dataset):
    """Its name may be anything: nothing of it becomes markup, no row breaks, and the metadata stay YAML."""
    text = cards.card(entry_of(run, dataset=dataset))
    card = ModelCard(text)
    assert "secret" not in text and "<script" not in card.text and "[x](javascript" not in card.text
    assert card.data.datasets == (["me/pets"] if dataset == "hfds/me/pets" else None)
    rows = [line for line in card.text.splitlines() if line.startswith("| ")]
    assert all(row.count("|") == 3 for row in rows), rows


def test_card_of_any_labels(run):
    config = json.loads((run / "config.json").read_text()) | {"label_names": [*NAMES, *map(str, range(9994))]}
    (run / "config.json").write_text(json.dumps(config))
    card = ModelCard(cards.card(entry_of(run)))
    assert "and 9,980 more, which `config.json` names" in card.content and "<script" not in card.content
    assert "two lines" in card.content and len(card.content) < 6000


def test_several_seeds(run):
    text = cards.card(entry_of(run, seeds=[0, 1, 2], num_seeds=3, seed_errors=[10.0, 11.0, 12.0]))
    assert "3, seeds 0, 1, 2: error 11.00 ± 1.00 % (mean ± standard deviation), each 10.00, 11.00, 12.00" in text
    assert "the error of each was not recorded" in cards.card(entry_of(run, seeds=[0, 1], num_seeds=2, seed_errors=[]))


def test_plot_has_a_point_for_each_value_of_the_log(run):
    """The points lie, by the scale of the ticks, where the log says."""
    log = "epoch,train_loss,val_error,test_error\n1,2.0,50,\n2,1.0,25,30\n4,0.5,0,10\n"
    (run / "train_log.csv").write_text(log)
    root = ElementTree.fromstring(cards.plot_log(entry_of(run)))
    lines = {line.get("stroke"): line.get("points") for line in root.iterfind(".//{*}polyline")}
    points = {colour: [tuple(map(float, point.split(","))) for point in text.split()] for colour, text in lines.items()}
    assert [len(p) for p in points.values()] == [3, 3, 2]
    loss, validation, test = points.values()
    # Epoch 4 is the right edge of both panels, epoch 0 the left; 2.0 and 50 are the upper edges.
    assert loss == [(130.0, 40.0), (208.0, 148.0), (364.0, 202.0)]
    assert validation == [(510.0, 40.0), (588.0, 148.0), (744.0, 256.0)]
    assert test == [(588.0, pytest.approx(126.4, abs=0.05)), (744.0, pytest.approx(212.8, abs=0.05))]
    assert len(list(root.iterfind(".//{*}circle"))) == 8 and not list(root.iterfind(".//{*}script"))


@pytest.mark.parametrize(
    "log", [None, "epoch,train_loss\n", "epoch,seconds\n1,2\n", "epoch,train_loss\n1,nan\n2,inf\nx,1\n"]
)
def test_without_anything_to_draw_there_is_no_plot(run, log):
    (run / "train_log.csv").unlink() if log is None else (run / "train_log.csv").write_text(log)
    entry = entry_of(run)
    assert cards.plot_log(entry) is None and "train_log.svg" not in cards.card(entry)


@pytest.mark.parametrize("values", [[1e-7, 1e-9], [0.0, 0.0], [123456.0, 2.0], [0.42, 4.9], [-1.0, 2.0]])
def test_plot_of_any_size_stays_in_its_frame(run, values):
    rows = "".join(f"{epoch},{value}\n" for epoch, value in enumerate(values, 1))
    (run / "train_log.csv").write_text(f"epoch,train_loss\n{rows}")
    root = ElementTree.fromstring(cards.plot_log(entry_of(run)))
    heights = [float(circle.get("cy")) for circle in root.iterfind(".//{*}circle")]
    assert len(heights) == len(values) and all(40 <= height <= 256 for height in heights)


def test_python_in_the_cards_runs():
    for entry in cards.read_hub(ROOT / "hub"):
        space: dict = {}
        for code in re.findall(r"```python\n(.*?)```", cards.card(entry), re.DOTALL):
            exec(compile(code, f"card of {entry.name}", "exec"), space)
        assert space["probabilities"].shape == (2, 10) and space["model"].num_classes == 5


def test_python_in_the_card_of_a_run_runs(run):
    blocks = re.findall(r"```python\n(.*?)```", cards.card(entry_of(run)), re.DOTALL)
    space: dict = {}
    for code in blocks:
        exec(code.replace("hf-hub:ORG/NAME", f"local-dir:{run}"), space)
    assert len(blocks) == 2 and space["probabilities"].shape == (2, 2)
