"""What config.json may ask for; refusals of whole repositories are in test_download.py."""

import copy

import pytest

from gode_zoo.hugging_face.folder import build_empty, check_config, read_config, weights_limit
from gode_zoo.models._pretrained import WeightsError

GOOD = {
    "architecture": "gode_mnist_m4",
    "num_classes": 10,
    "num_features": 64,
    "global_pool": "avg",
    "label_names": [str(digit) for digit in range(10)],
    "model_args": {"num_classes": 10, "in_chans": 1, "solver": "rk4", "num_steps": 10, "knots": "clamped"},
    "pretrained_cfg": {"tag": "mine", "custom_load": False, "input_size": [1, 28, 28], "mean": [0.0], "std": [1.0]},
}


def changed(path: str, value: object) -> dict:
    config = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = config
    for key in parents:
        place = place[key]
    place[last] = value
    return config


@pytest.mark.parametrize(
    "config",
    [
        GOOD,
        changed("model_args", {"knots": [0.0] * 3 + [0.5] + [1.0] * 3, "degree": 2, "t_span": [0.0, 1.0]}),
        changed("model_args.drop_rate", 0.1),
        changed("model_args.num_classes", 100_000),
        changed("model_args.step_size", 1 / 4096),
        changed("model_args", {"step_size": 0.5, "t_span": [0.0, 2.0], "rtol": None}),
    ],
)
def test_what_is_allowed(config):
    check_config(config, "here")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("architecture", "resnet50"),
        ("architecture", ["gode_mnist_m4"]),
        ("architecture", "../gode_mnist_m4"),
        ("pretrained_cfg", None),
        ("pretrained_cfg.custom_load", "hf"),
        ("pretrained_cfg.url", "http://127.0.0.1/x.pth"),
        ("pretrained_cfg.state_dict", {}),
        ("pretrained_cfg.hf_hub_id", "other/one"),
        ("pretrained_cfg.source", "local-dir"),
        ("auto_map", {}),
        ("model_args", []),
        ("model_args.num_basis", 5000),
        ("model_args.num_basis", -5000),
        ("model_args.degree", 65),
        ("model_args.num_steps", 10**6),
        ("model_args.num_classes", 10**7),
        ("model_args.rtol", float("nan")),
        ("model_args.rtol", float("inf")),
        ("model_args.knots", [0.0] * 10_001),
        ("model_args.knots", {"a": 1}),
        ("model_args.knots", "x" * 201),
        ("model_args.step_size", 1e-5),
        ("model_args.step_size", "0.1"),
        ("model_args.step_size", 0.0),
    ],
)
def test_what_is_refused(path, value):
    with pytest.raises(WeightsError, match=r"here: config\.json has"):
        check_config(changed(path, value), "here")


def test_a_file_that_is_no_configuration(tmp_path):
    for content in (b"{", b"\xff\xfe", b"[1]", b'"text"', b"[" * 100_000):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(WeightsError, match=r"here: config\.json"):
            read_config(tmp_path / "config.json", "here")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_config(tmp_path / "none.json", "here")


def test_the_model_of_a_configuration_takes_no_memory_and_bounds_the_file():
    model = build_empty(GOOD, "here")
    assert {p.device.type for p in model.parameters()} == {"meta"} and model.block.solver == "rk4"
    assert 8 * 428_042 < weights_limit(model) < 8 * 428_042 + 2**21
    with pytest.raises(WeightsError, match="does not fit gode_mnist_m4"):
        build_empty(changed("model_args.no_such", 1), "here")
