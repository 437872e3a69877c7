"""What a user gets: light imports, one version, archives with the weights in them, and a README whose examples run."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import timm
import torch
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from timm.models import save_for_hf

import gode_zoo
from gode_zoo.models._pretrained import list_weights

ROOT = Path(__file__).resolve().parent.parent
NEEDED_TO_LOAD = ("config.json", "metrics.json", "model.safetensors")
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(<!-- needs weights -->\n)?```python\n(.*?)```", README, re.DOTALL)


def python(code: str, cwd: Path) -> str:
    """The output of a new interpreter, which takes gode_zoo from `cwd`."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(cwd)!r})\n{code}"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# Imports


def test_import_is_light():
    """Neither the package nor its plots and cards pull in what takes seconds or is an extra."""
    heavy = ("torchdyn", "lightning", "pytorch_lightning", "matplotlib", "sklearn", "scipy", "torchdiffeq")
    code = "import gode_zoo, gode_zoo.plots, gode_zoo.cards; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in python(code, ROOT).split()}
    assert "gode_zoo" in loaded and not loaded & set(heavy)


# ---------------------------------------------------------------------------------------------------------------------
# Version and metadata


@pytest.fixture(scope="module")
def core():
    return WheelBuilder(str(ROOT)).metadata.core


def test_one_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.search(r"^## \[(\d[^\]]*)\] - (unreleased|\d{4}-\d\d-\d\d)$", changes, re.MULTILINE)
    assert released and released[1] == gode_zoo.__version__ == WheelBuilder(str(ROOT)).metadata.version


def test_metadata(core):
    assert core.requires_python == ">=3.10" and core.license_expression == "Apache-2.0"
    names = {re.match(r"[a-z-]+", requirement)[0] for requirement in core.dependencies}
    wanted = {
        "torch",
        "torchvision",
        "timm",
        "torchdyn",
        "huggingface-hub",
        "safetensors",
        "pyyaml",
        "typer",
        "rich",
        "scipy",
        "filelock",
    }
    assert names == wanted
    assert core.scripts == {"gode-zoo": "gode_zoo.cli:main"}
    assert {"test", "dev", "demo", "plots"} <= core.optional_dependencies.keys()


def test_extras_that_are_named_anywhere_exist(core):
    named = set()
    for path in (ROOT / "Makefile", ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "gode_zoo").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"(?:gode_zoo|-e '\.)\[([a-z]+)\]", text))
        if path.name == "Makefile":
            named |= set(re.findall(r"\$\(VENV\)/([a-z]+)\.stamp", text))
    assert {"test", "demo", "plots", "dev"} <= named <= core.optional_dependencies.keys()


# ---------------------------------------------------------------------------------------------------------------------
# Archives


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with one stand-in for published weights, and beside them what must not be packed."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "gode_zoo", root / "gode_zoo", ignore=shutil.ignore_patterns("__pycache__", "hub"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, root)
    folder = root / "hub" / "gode_mnist_m4.modern"
    folder.mkdir(parents=True)
    torch.manual_seed(1234)
    model = timm.create_model("gode_mnist_m4")
    save_for_hf(model, folder, model_config={"pretrained_cfg": {"tag": "modern"}}, safe_serialization=True)
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "metrics.json").write_text(json.dumps({"sha256": sha256}))
    for name in ("README.md", "recipe.yaml", "train_log.csv", "checkpoint.pt"):
        (folder / name).write_text(name)
    return root


def names_in(builder) -> set[str]:
    return {file.distribution_path for file in builder.recurse_included_files()}


def test_wheel_has_what_loading_needs(project):
    names = names_in(WheelBuilder(str(project)))
    hub = {name for name in names if "/hub/" in name}
    assert hub == {f"gode_zoo/hub/gode_mnist_m4.modern/{name}" for name in NEEDED_TO_LOAD}
    assert all(name.startswith("gode_zoo/") for name in names)
    for path in (ROOT / "gode_zoo").rglob("*"):
        if path.suffix in (".py", ".yaml"):
            assert path.relative_to(ROOT).as_posix() in names


def test_source_archive_has_the_hub_but_no_checkpoint(project):
    names = names_in(SdistBuilder(str(project)))
    hub = {name.rpartition("/")[2] for name in names if name.startswith("hub/gode_mnist_m4.modern/")}
    assert hub == {*NEEDED_TO_LOAD, "README.md", "recipe.yaml", "train_log.csv"}
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_this_repository_packs_its_own_weights():
    names = names_in(WheelBuilder(str(ROOT)))
    for _, _, folder in list_weights():
        assert {f"gode_zoo/hub/{folder.name}/{name}" for name in NEEDED_TO_LOAD} <= names


def test_installed_wheel_loads_pretrained_weights(project, tmp_path):
    """Unpacked elsewhere, as pip does it: the weights that were packed come back, and recipes are there."""
    (wheel,) = WheelBuilder(str(project)).build(directory=str(tmp_path), versions=["standard"])
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    info = site / f"gode_zoo-{gode_zoo.__version__}.dist-info"
    assert (info / "licenses" / "LICENSE").is_file()
    assert "gode-zoo = gode_zoo.cli:main" in (info / "entry_points.txt").read_text()
    assert Parser().parsestr((info / "METADATA").read_text(encoding="utf-8"))["Requires-Python"] == ">=3.10"
    code = """
import gode_zoo, timm, torch
from safetensors.torch import load_file
from gode_zoo.models._pretrained import find_weights
from gode_zoo.recipes import list_recipes
folder = find_weights("gode_mnist_m4", "modern")
model = timm.create_model("gode_mnist_m4", pretrained=True)
packed = load_file(folder / "model.safetensors")
assert all(torch.equal(value, packed[name]) for name, value in model.state_dict().items())
print(folder, *list_recipes(), sep="\\n")
"""
    folder, *recipes = python(code, site).splitlines()
    assert Path(folder) == site / "gode_zoo" / "hub" / "gode_mnist_m4.modern"
    assert recipes == sorted(path.stem for path in (ROOT / "gode_zoo" / "recipes").glob("*.yaml"))


def test_editable_install_points_at_the_checkout(project, tmp_path):
    (wheel,) = WheelBuilder(str(project)).build(directory=str(tmp_path), versions=["editable"])
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".pth"))
        assert archive.read(path).decode().strip() == str(project)
        assert not [name for name in archive.namelist() if name.endswith(".safetensors")]


# ---------------------------------------------------------------------------------------------------------------------
# README and Makefile


def test_readme_opens_with_the_two_commands():
    first = README[: README.index("## ")]
    assert first.index("make demo") < first.index("make test")


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_in_the_readme_runs(number):
    needs_weights, code = BLOCKS[number]
    if needs_weights and ("gode_mnist_m4", "modern") not in [(arch, tag) for arch, tag, _ in list_weights()]:
        pytest.skip("needs hub/gode_mnist_m4.modern, which is not published yet")
    exec(compile(code, f"README.md, block {number}", "exec"), {})


def test_readme_has_python_for_timm_torchdyn_and_plots():
    assert len(BLOCKS) == README.count("```python") >= 4
    runnable = "".join(code for needs_weights, code in BLOCKS if not needs_weights)
    for word in ("timm.create_model", "gode_zoo.torchdyn", "plot_kernel"):
        assert word in runnable


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith(("https://", "#")):
            assert (ROOT / target).exists(), target


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_says_what_it_does(tmp_path):
    def steps(goal: str) -> str:
        command = ["make", "-n", goal, f"VENV={tmp_path}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    order = ["-m venv", "-e '.[test]'", "ruff check .", "ruff format --check .", "mypy", "-m pytest"]
    places = [steps("test").index(step) for step in order]
    assert places == sorted(places)
    assert steps("demo").index("-e '.[demo]'") < steps("demo").index("-m gode_zoo.demo")
    assert "-m gode_zoo.cards" in steps("cards")
    assert "make test" in (ROOT / ".ci" / "run").read_text()
