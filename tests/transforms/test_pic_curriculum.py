from __future__ import annotations

import math

import numpy as np
import pytest

from dinomix_monai.transforms import ClassCurriculum, class_probabilities, imbalance
from tests.transforms.pic_batches import COUNTS, plain_formula


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("beta", "curriculum", "gamma"), [(0.5, 1.0, 1.0), (1.0, 0.6, 2.0), (0.0, 0.3, 0.5)])
def test_class_probabilities_are_those_of_the_formula(progress, beta, curriculum, gamma):
    p = class_probabilities(COUNTS[1:], progress, beta, curriculum, gamma)
    assert p.tolist() == pytest.approx(plain_formula(COUNTS[1:], progress, beta, curriculum, gamma))
    assert p.sum() == pytest.approx(1)


def test_class_probabilities_at_the_start_are_those_counted_by_hand():
    # 1 / sqrt(n + 1): 1/10, 1/2 and 1, of 1.6.
    assert class_probabilities([99, 3, 0], 0.0).tolist() == pytest.approx([0.0625, 0.3125, 0.625])


@pytest.mark.parametrize("progress", [0.5, 1.0])
def test_class_probabilities_are_uniform_after_the_curriculum(progress):
    assert class_probabilities([99, 3, 0], progress, curriculum=0.5).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("num_classes", range(1, 16))
@pytest.mark.parametrize("count", [0, 7, 1e9])
def test_imbalance_of_equal_counts_is_0(num_classes, count):
    assert imbalance([count] * num_classes) == pytest.approx(0, abs=1e-12)
    assert imbalance([count] * num_classes) >= 0


def test_imbalance_of_a_single_class_among_many_is_1():
    assert imbalance([0, 5, 0]) == pytest.approx(1)


def test_imbalance_is_one_minus_normalized_entropy():
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    for scale in (1, 1e6):
        assert imbalance([scale, 3 * scale]) == pytest.approx(1 - entropy / math.log(2))


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_donors_with_ground_truth_go_by_the_labeled_set_and_others_by_what_was_pseudo_labeled(progress):
    curriculum = ClassCurriculum(COUNTS, beta=0.7, curriculum=0.8, gamma=2.0)
    curriculum.progress = progress
    curriculum.unlabeled_counts = np.array([1.0, 5.0, 0.0, 70.0, 6.0])
    for labeled, counts in ((True, COUNTS[1:]), (False, [5, 0, 70, 6])):
        expected = plain_formula(counts, progress, 0.7, 0.8, 2.0)
        assert curriculum.probabilities(labeled).tolist() == pytest.approx(expected)


def test_the_average_of_unlabeled_patches_starts_at_0_and_moves_by_what_the_decay_leaves():
    curriculum = ClassCurriculum([5, 5, 5], count_decay=0.75)
    assert curriculum.unlabeled_counts.tolist() == [0, 0, 0]
    curriculum.count_unlabeled_patch(np.array([8, 4, 0]))
    curriculum.count_unlabeled_patch(np.array([0, 4, 16]))
    assert curriculum.unlabeled_counts.tolist() == [1.5, 1.75, 4]
    assert curriculum.labeled_counts.tolist() == [5, 5, 5]


def test_a_state_brings_back_progress_and_counts():
    curriculum, other = ClassCurriculum([8, 4, 2]), ClassCurriculum([1, 1, 1])
    curriculum.progress = 0.25
    curriculum.count_unlabeled_patch(np.array([7, 5, 3]))
    other.load_state_dict(curriculum.state_dict())
    assert other.progress == 0.25
    assert other.labeled_counts.tolist() == [8, 4, 2]
    assert other.unlabeled_counts.tolist() == curriculum.unlabeled_counts.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labeled_counts": [5]}, r"labeled_counts must list >= 0 voxels for background and each class, got \[5\]"),
        ({"labeled_counts": [5, -1]}, r"labeled_counts must list >= 0 voxels .*, got \[5, -1\]"),
        ({"curriculum": 0}, r"curriculum and gamma must be > 0 and beta >= 0, got 0, 1\.0 and 0\.5"),
        ({"gamma": 0}, r"curriculum and gamma must be > 0 and beta >= 0, got 1\.0, 0 and 0\.5"),
        ({"beta": -1}, r"curriculum and gamma must be > 0 and beta >= 0, got 1\.0, 1\.0 and -1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassCurriculum(**{"labeled_counts": [5, 5], **arguments})
