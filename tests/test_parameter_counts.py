"""Parameter counts of every row of the paper's Tables 1, 2 and 4, to the unit."""

import pytest
import timm

import gode_zoo  # noqa: F401  (registers the models)

TABLE_1 = {
    "gode_mnist_m4": 428_042,
    "gode_cifar10_m8": 724_106,
    "odenet_mnist": 208_266,
    "odenet_cifar10": 209_418,
    "resnet6_mnist": 576_778,
    "resnet20_cifar10": 1_613_706,
    "resnet1_mnist": 132_874 + 73_984,
    "resnet1_cifar10": 134_026 + 73_984,
    "stem_mnist": 132_874,
    "stem_cifar10": 134_026,
}
TABLE_2 = [
    (2, 1, 1, 281_738),
    (4, 1, 1, 429_194),
    (6, 1, 1, 576_650),
    (8, 1, 1, 724_106),
    (10, 1, 1, 871_562),
    (12, 1, 1, 1_019_018),
    (8, 2, 1, 724_106),
    (8, 3, 1, 724_106),
    (8, 4, 1, 724_106),
    (8, 5, 1, 724_106),
    (8, 1, 2, 724_106),
    (8, 1, 3, 724_106),
]
TABLE_4 = [
    (2, 1, 207_754),
    (2, 2, 281_738),
    (2, 3, 355_594),
    (2, 4, 429_450),
    (4, 1, 281_482),
    (4, 2, 429_194),
    (4, 3, 576_778),
    (4, 4, 724_362),
    (6, 1, 355_210),
    (6, 2, 576_650),
    (6, 3, 797_962),
    (6, 4, 1_019_274),
    (8, 1, 428_938),
    (8, 2, 724_106),
    (8, 3, 1_019_146),
    (8, 4, 1_314_186),
]


def count(name: str, **kwargs) -> int:
    return sum(p.numel() for p in timm.create_model(name, **kwargs).parameters())


MNIST_BASE = 132_874
RELATED = {
    # m pieces of 2 · 9 w² kernels and 4 w norms for w = 16, 32, 64; stitches; stem (144 + 32), last norm (128), head (650).
    "continuousnet_mnist": 4 * (96_768 + 448) + (7_488 + 29_824) + 954,
    "galerkin_mnist": MNIST_BASE + 5 * 73_728 + 2 * 128,
    # 97·64 + 64, 65·64·9 + 64 and 65·96 + 96 in the field; 32 channels more in the last norm and the head.
    "anode_mnist": MNIST_BASE + 6_272 + 37_504 + 6_336 + 64 + 320,
    "anodev2_mnist": MNIST_BASE + 2 * (36_864 + 4) + 2 * 128,
    "splinet_mnist": 28 * 28 * 64 + 64 + 5 * (64 * 64 + 64) + 650,
}


@pytest.mark.parametrize(("name", "expected"), (TABLE_1 | RELATED).items())
def test_table_1_controls_and_related_systems(name, expected):
    assert count(name) == expected


@pytest.mark.parametrize(("m", "k", "t", "expected"), TABLE_2)
def test_table_2(m, k, t, expected):
    model = timm.create_model("gode_cifar10_m8", num_basis=m, degree=k, t_span=(0.0, float(t)))
    assert sum(p.numel() for p in model.parameters()) == expected
    assert len(model.block.step_sizes) == 20 * t


@pytest.mark.parametrize(("m", "num_convs", "expected"), TABLE_4)
def test_table_4(m, num_convs, expected):
    assert count("gode_cifar10_m8", num_basis=m, num_convs=num_convs) == expected
