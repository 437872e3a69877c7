"""Recipes: what is bundled loads, and what cannot be right is refused with the key, the value and the mend."""

import json
from importlib import resources

import pytest
import timm
import yaml

from gode_zoo import recipes
from gode_zoo.models._pretrained import list_weights
from gode_zoo.recipes import RecipeError, list_recipes, load_recipe, recipe_from_dict


@pytest.mark.parametrize("name", list_recipes())
def test_bundled_recipes_name_a_model_and_survive_yaml(name):
    recipe = load_recipe(name)
    full = "gode3_cifar10_s.speedrun" if name == "speedrun" else name
    assert recipe.name == full and timm.is_model(recipe.model)
    assert recipe_from_dict(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_states_its_evidence(name):
    text = resources.files(recipes).joinpath(f"{name}.yaml").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("# Evidence: ")]
    for arch, tag, folder in list_weights():
        if f"{arch}.{tag}" == name:
            metrics = json.loads((folder / "metrics.json").read_text())
            seeds = metrics["num_seeds"]
            for said in (
                f"{metrics['epochs']} epochs",
                f"{seeds} seed",
                f"{metrics['last']['error']:.2f} % test error",
            ):
                assert said in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, r"unknown key epoch = 3; did you mean 'epochs'"),
        ({"epochs": 0}, r"epochs = 0 .*1 or more"),
        ({"epochs": "3"}, r"epochs = '3' is str, it must be an integer"),
        ({"compile": 1}, r"compile = 1 is int, it must be true or false"),
        ({"optimizer": {"lr": "1e-1"}}, r"optimizer\.lr = '1e-1' is str.*write 0\.1"),
        ({"optimizer": {"lr": float("nan")}}, "finite"),
        ({"optimizer": {"lr": 0.1, "nesterov": True, "momentum": 0.0}}, "needs momentum"),
        ({"schedule": {"name": "onecycle", "gamma": 0.1}}, r"schedule\.gamma = 0\.1 has no effect"),
        ({"schedule": {"name": "step"}}, "needs schedule.milestones"),
        ({"schedule": {"name": "step", "milestones": [2, 1]}}, "rising epochs"),
        ({"model": "../x"}, "names the output folder"),
        ({"tag": "a/b"}, "names the output folder"),
        ({"amp": "fp8"}, "none, bf16"),
        ({"holdout": 1.0}, "holdout = 1.0"),
        ({"optimizer": {"name": "adam", "lr": 0.1}}, "allowed: sgd, muon"),
        ({"augment": {"flip": True, "alternating_flip": True}}, "false beside flip: true"),
        ({"augment": {"rotation": 200}}, r"augment\.rotation = 200.* 0 to 180 degrees"),
        ({"augment": {"cutout": -1}}, "cutout = -1"),
        ({"augment": {"mixup": 0.2}, "family": "poisson", "model_args": {"num_classes": 1}}, "0 with a family"),
    ],
)
def test_impossible_recipes_are_refused(recipe_dict, change, message):
    with pytest.raises(RecipeError, match=message):
        recipe_from_dict(recipe_dict | change)


def test_missing_keys_files_and_broken_yaml(recipe_dict, tmp_path):
    del recipe_dict["epochs"]
    with pytest.raises(RecipeError, match="key epochs is missing"):
        recipe_from_dict(recipe_dict)
    with pytest.raises(RecipeError, match=r"did you mean 'gode_mnist_m4\.modern'"):
        load_recipe("gode_mnist_m4.modem")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(RecipeError, match=r"bad\.yaml: not valid YAML"):
        load_recipe(tmp_path / "bad.yaml")
    (tmp_path / "code.yaml").write_text("model: !!python/object/apply:os.system ['true']")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(tmp_path / "code.yaml")
