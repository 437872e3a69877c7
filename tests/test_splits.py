"""Splits: by class, seeded, stable, and what cannot be split."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gode_zoo.data import DataError
from gode_zoo.finetuning.splits import describe_balance, split_samples, split_table
from gode_zoo.images.sources import ImageSource, Sample


def source(counts, split=""):
    samples = [Sample(f"{c}/{i}.png", c, split, lambda: None) for c, n in counts.items() for i in range(n)]
    return ImageSource("x", samples, tuple(counts))


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=2).filter(lambda c: max(c.values()) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_class_is_trained_on_and_held_out_in_proportion(counts, fraction, seed):
    whole = source(counts)
    parts = split_samples(whole, fraction, seed)
    assert sorted(s.name for s in parts["train"] + parts["val"]) == sorted(s.name for s in whole.samples)
    held_out = Counter(s.label for s in parts["val"])
    for name, count in counts.items():
        if count == 1:
            assert held_out[name] == 0
        else:
            assert 1 <= held_out[name] <= count - 1
            assert abs(held_out[name] - fraction * count) <= 1
    assert split_table(parts) == split_table(split_samples(whole, fraction, seed))


def test_images_of_another_class_do_not_move_the_split():
    before = split_samples(source({"a": 20, "b": 20}), 0.2, 0)
    after = split_samples(source({"a": 20, "b": 25}), 0.2, 0)
    names = [{s.name for s in parts["val"] if s.label == "a"} for parts in (before, after)]
    assert names[0] == names[1]
    assert split_table(before) != split_table(split_samples(source({"a": 20, "b": 20}), 0.2, 1))


def test_splits_that_are_there_are_kept(caplog):
    samples = (
        source({"a": 3, "b": 3}, "train").samples + source({"a": 1}, "val").samples + source({"b": 2}, "test").samples
    )
    parts = split_samples(ImageSource("x", samples, ("a", "b")), 0.2, 0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 6, "val": 1, "test": 2}
    assert "val has no image of b" in caplog.text
    test_too = split_samples(ImageSource("x", samples[:6] + samples[7:], ("a", "b")), 0.34, 0)
    assert {name: len(part) for name, part in test_too.items()} == {"train": 4, "val": 2, "test": 2}


def test_one_image_a_class(caplog):
    with pytest.raises(DataError, match="every class has one image"):
        split_samples(source({"a": 1, "b": 1}), 0.2, 0)
    assert len(split_samples(source({"a": 1, "b": 2}), 0.2, 0)["val"]) == 1
    assert "1 classes have one image" in caplog.text
    with pytest.raises(ValueError, match=r"val_fraction = 1\.5"):
        split_samples(source({"a": 2, "b": 2}), 1.5, 0)


def test_ten_thousand_classes():
    parts = split_samples(source({str(i): 2 for i in range(10_000)}), 0.2, 0)
    assert len(parts["train"]) == len(parts["val"]) == 10_000


def test_imbalance_is_told():
    assert describe_balance(source({"a": 2, "b": 6}).samples, False) == "training images a class: 2 (a) to 6 (b)"
    assert "--balanced draws" in describe_balance(source({"a": 1, "b": 6}).samples, False)
    assert "drawn equally often" in describe_balance(source({"a": 1, "b": 6}).samples, True)
