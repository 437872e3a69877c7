"""Augmentation against the same done image by image."""

import torch
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from gode_zoo.augmentation import (
    mirrored_in_epoch,
    mix,
    mixing_weight,
    random_crop,
    random_cutout,
    random_flip,
    random_rotation,
)


def test_random_crop_equals_cutting_one_by_one():
    images = torch.randint(1, 256, (5, 2, 6, 7), dtype=torch.uint8)
    cropped = random_crop(images, 2, torch.Generator().manual_seed(1))
    tops, lefts = torch.randint(0, 5, (2, 5, 1), generator=torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for i in range(5):
        assert torch.equal(cropped[i], padded[i, :, tops[i] : tops[i] + 6, lefts[i] : lefts[i] + 7])
    offsets = {(int(t), int(x)) for t, x in zip(tops, lefts, strict=True)}
    assert len(offsets) > 1


def test_random_flip_mirrors_half_and_leaves_the_rest():
    images = torch.randint(0, 256, (1000, 1, 3, 4), dtype=torch.uint8)
    flipped = random_flip(images, torch.Generator().manual_seed(0))
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert bool((same | mirrored).all()) and 420 < int(mirrored.sum()) < 580


def test_rotation_is_torchvisions_by_angles_either_way():
    images = torch.randint(0, 256, (40, 2, 11, 8), dtype=torch.uint8)
    turned = random_rotation(images, 30.0, torch.Generator().manual_seed(0))
    angles = torch.empty(40).uniform_(-30.0, 30.0, generator=torch.Generator().manual_seed(0)).tolist()
    assert min(angles) < -20 and max(angles) > 20 and turned.dtype == torch.uint8
    for image, got, angle in zip(images, turned, angles, strict=True):
        expected = rotate(image.float(), angle, InterpolationMode.BILINEAR)
        assert (got - expected).abs().max() <= 0.51


def test_alternating_flip_shows_each_image_both_ways_in_any_two_epochs():
    seen = torch.stack([mirrored_in_epoch(1000, epoch, seed=3) for epoch in range(4)])
    assert (seen[:-1] != seen[1:]).all() and torch.equal(seen[0], seen[2])
    assert 400 < seen[0].sum() < 600
    assert not torch.equal(seen[0], mirrored_in_epoch(1000, 0, seed=4))


def test_cutout_clears_one_square_centred_anywhere():
    x = torch.ones(500, 2, 9, 7)
    cut = random_cutout(x, 4, torch.Generator().manual_seed(0))
    sizes = []
    for before, after in zip(x, cut, strict=True):
        assert torch.equal(after[0], after[1])
        rows, columns = (after[0] == 0).any(1).nonzero().flatten(), (after[0] == 0).any(0).nonzero().flatten()
        inside = torch.zeros(9, 7, dtype=torch.bool)
        inside[rows[:, None], columns] = True
        assert torch.equal(after, before.masked_fill(inside, 0.0))
        sizes.append((len(rows), len(columns)))
    heights, widths = zip(*sizes, strict=True)
    assert max(heights) == max(widths) == 4  # whole inside,
    assert min(heights) == min(widths) == 2  # and half of it at the border
    centres = (cut[:, 0] == 0).float().mean(0)
    assert (centres > 0.05).all()


def test_a_mixture_and_its_loss():
    weight = mixing_weight(0.4, seed=1, step=7)
    assert weight == mixing_weight(0.4, seed=1, step=7) != mixing_weight(0.4, seed=1, step=8)
    weights = torch.tensor([mixing_weight(2.0, 0, step) for step in range(2000)])
    assert abs(weights.mean() - 0.5) < 0.02 and abs(weights.var() - 0.05) < 0.005  # of Beta(2, 2)
    x = torch.randn(3, 1, 2, 2)
    for i, image in enumerate(mix(x, weight)):
        torch.testing.assert_close(image, weight * x[i] + (1 - weight) * x[2 - i])
    logits, labels = torch.randn(3, 5), torch.tensor([4, 0, 2])
    soft = mix(F.one_hot(labels, 5).float(), weight)
    mixed = weight * F.cross_entropy(logits, labels) + (1 - weight) * F.cross_entropy(logits, labels.flip(0))
    torch.testing.assert_close(F.cross_entropy(logits, soft), mixed)
