"""Batches for the tests of PIC, transforms that mix them, and its formula number by number."""

from __future__ import annotations

import numpy as np
import torch

from dinomix_monai.transforms import PICCutMix

SHAPES = [(8, 8), (8, 8, 8)]
COUNTS = [10_000, 900, 100, 25, 9]
"""Of background and four classes."""


def full(value, shape=(4, 4, 4)):
    """One patch of one value, (1, 1, ...)."""
    return torch.full((1, 1, *shape), float(value))


def batch_of(values, shape=(4, 4, 4)):
    """Patches of one value each."""
    return torch.cat([full(value, shape) for value in values])


def one_voxel_mixer(counts=COUNTS, **kwargs):
    """Boxes of a single voxel, one for each mixed patch."""
    settings = {"num_boxes": 1, "box_fraction": (0.01, 0.01), "blind_share": 0.0, **kwargs}
    return PICCutMix(counts, **settings).set_random_state(seed=0)


def whole_patch_mixer(affine_grid):
    """The donor replaces the recipient altogether."""
    settings = {"num_boxes": 1, "box_fraction": (1.0, 1.0), "blind_share": 1.0, "affine_grid": affine_grid}
    return PICCutMix([1, 1], {"labeled_to_unlabeled": 1}, **settings).set_random_state(0)


def noise_batch(seed, shape=(6, 6, 6), labeled=(True, True, False, False)):
    """Labels of three classes, weights with zeros, and two images."""
    generator = torch.Generator().manual_seed(seed)
    size = (len(labeled), 1, *shape)
    label = torch.randint(0, 3, size, generator=generator)
    weight = (torch.rand(size, generator=generator) - 0.3).clamp(min=0)
    images = (torch.rand(size, generator=generator), torch.rand(len(labeled), 2, *shape, generator=generator))
    return (label, weight, *images), list(labeled)


def noise_mixer(**kwargs):
    return PICCutMix([100, 10, 3], **{"blind_share": 0.3, "bank_size": 2, **kwargs}).set_random_state(seed=0)


def equal(results, others):
    return all(torch.equal(a, b) for a, b in zip(results, others, strict=True))


def next_numbers(random_state):
    """What ``numpy.random`` or a ``RandomState`` would draw next; it does not draw them."""
    copy = np.random.RandomState()
    copy.set_state(random_state.get_state())
    return copy.random_sample(3).tolist()


def plain_formula(counts, progress, beta, curriculum, gamma):
    """The formulas of docs/method.md, number by number."""
    s = min(progress / curriculum, 1) ** gamma
    total = sum((1 / (n + 1)) ** beta for n in counts)
    return [(1 - s) * (1 / (n + 1)) ** beta / total + s / len(counts) for n in counts]
