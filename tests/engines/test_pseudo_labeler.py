from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.transforms import KeepLargestConnectedComponent

from dinomix_monai.engines import PseudoLabeler


def logits_of(probabilities):
    """Logits of shape (1, C, n, 1, 1) whose softmax is ``probabilities``, one row for each voxel."""
    return torch.tensor(probabilities).T[None, :, :, None, None].log()


def test_the_label_is_the_most_probable_class():
    label, weight = PseudoLabeler(3)(logits_of([[0.1, 0.7, 0.2], [0.98, 0.01, 0.01], [0.2, 0.3, 0.5]]))
    assert label.flatten().tolist() == [1, 0, 2]
    assert label.shape == weight.shape == (1, 1, 3, 1, 1)


def test_at_first_every_class_has_the_same_threshold():
    labeler = PseudoLabeler(3, threshold=0.8, floor=0.5, decay=1.0)
    _, weight = labeler(logits_of([[0.81, 0.1, 0.09], [0.79, 0.12, 0.09], [0.05, 0.05, 0.9], [0.1, 0.6, 0.3]]))
    assert labeler.thresholds().tolist() == pytest.approx([0.8] * 3)
    assert weight.flatten().tolist() == [1, 0, 1, 0]


def test_the_thresholds_follow_the_formula_by_hand():
    labeler = PseudoLabeler(4, threshold=0.9, floor=0.5, decay=0.75)
    batch = logits_of([[0.96, 0.02, 0.01, 0.01], [0.92, 0.02, 0.03, 0.03], [0.1, 0.6, 0.2, 0.1], [0.1, 0.4, 0.3, 0.2]])
    status = [1.0, 1.0, 1.0, 1.0]
    for _ in range(5):
        labeler(batch)
        # Classes 0 and 1 are predicted in two voxels each, the others nowhere: they stay as they are.
        status[0] = 0.75 * status[0] + 0.25 * (0.96 + 0.92) / 2
        status[1] = 0.75 * status[1] + 0.25 * (0.6 + 0.4) / 2
    assert labeler.class_confidence.tolist() == pytest.approx(status, rel=1e-5)
    expected = [max(0.9 * value / max(status), 0.5) for value in status]
    assert labeler.thresholds().tolist() == pytest.approx(expected, rel=1e-5)
    assert 0.5 < expected[1] < expected[0] < expected[2] == 0.9


def test_a_class_that_is_never_sure_gets_the_floor():
    labeler = PseudoLabeler(3, threshold=0.9, floor=0.6, decay=0.0)
    _, weight = labeler(logits_of([[0.99, 0.005, 0.005], [0.3, 0.55, 0.15], [0.2, 0.65, 0.15]]))
    assert labeler.thresholds()[1].item() == pytest.approx(0.6)
    assert weight.flatten().tolist() == [1, 0, 1]


def test_the_most_confident_class_has_the_full_threshold_however_unsure_it_is():
    labeler = PseudoLabeler(2, threshold=0.9, floor=0.0, decay=1.0)
    labeler.class_confidence.copy_(torch.tensor([0.6, 0.3]))
    assert labeler.thresholds().tolist() == pytest.approx([0.9, 0.45])


def test_a_voxel_counts_from_the_threshold_of_its_own_class():
    labeler = PseudoLabeler(2, threshold=0.9, floor=0.0, decay=1.0)
    labeler.class_confidence.copy_(torch.tensor([1.0, 0.8]))  # thresholds of 0.9 and 0.72
    _, weight = labeler(logits_of([[0.89, 0.11], [0.91, 0.09], [0.29, 0.71], [0.27, 0.73]]))
    assert weight.flatten().tolist() == [0, 1, 0, 1]


def test_the_share_of_the_voxels_that_count_is_that_since_the_last_call():
    labeler = PseudoLabeler(3, threshold=0.9, floor=0.9)
    labeler(logits_of([[0.95, 0.05, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0]]))
    labeler(logits_of([[0.99, 0.01, 0.0]]))
    torch.testing.assert_close(labeler.take_confident_shares(), torch.tensor([2 / 3, 0.0, torch.nan]), equal_nan=True)
    assert labeler.take_confident_shares().isnan().all()


def test_no_gradient_reaches_the_logits():
    label, weight = PseudoLabeler(3)(torch.rand(2, 3, 4, 4, 4, requires_grad=True))
    assert not label.requires_grad
    assert not weight.requires_grad


def test_images_of_two_dimensions_and_half_precision_are_fine():
    label, weight = PseudoLabeler(3)(torch.rand(2, 3, 4, 5).half())
    assert label.shape == weight.shape == (2, 1, 4, 5)
    assert weight.dtype == torch.float32


def test_the_status_is_what_is_saved():
    labeler = PseudoLabeler(3, decay=0.5)
    labeler(torch.rand(2, 3, 4, 4, 4))
    other = PseudoLabeler(3, decay=0.5)
    other.load_state_dict(labeler.state_dict())
    assert list(labeler.state_dict()) == ["class_confidence"]
    assert torch.equal(other.thresholds(), labeler.thresholds())
    assert not list(labeler.parameters())


@pytest.mark.parametrize(("threshold", "floor"), [(0.5, 0.6), (1.1, 0.5), (0.9, -0.1)])
def test_thresholds_out_of_order_are_refused(threshold, floor):
    with pytest.raises(ValueError, match=rf"floor and threshold must be 0 <= floor .*, got {floor} and {threshold}"):
        PseudoLabeler(3, threshold=threshold, floor=floor)


def test_alignment_follows_the_formula_by_hand():
    labeler = PseudoLabeler(3, threshold=0.5, floor=0.5, decay=0.5, alignment=1.0, labeled_voxels=[49, 29, 19])
    label, _ = labeler(logits_of([[0.1, 0.7, 0.2], [0.44, 0.2, 0.36]]))
    # Predicted shares are 0.27, 0.45 and 0.28; labeled ones 0.5, 0.3 and 0.2, and the average moves halfway from there.
    average = (0.5 + 0.27) / 2, (0.3 + 0.45) / 2, (0.2 + 0.28) / 2
    assert labeler.predicted_shares.tolist() == pytest.approx(average)
    first = [p * share / mean for p, share, mean in zip((0.1, 0.7, 0.2), (0.5, 0.3, 0.2), average)]
    second = [p * share / mean for p, share, mean in zip((0.44, 0.2, 0.36), (0.5, 0.3, 0.2), average)]
    assert label.flatten().tolist() == [1, 0]
    assert labeler.class_confidence[:2].tolist() == pytest.approx(
        [0.5 + 0.5 * second[0] / sum(second), 0.5 + 0.5 * first[1] / sum(first)]
    )


def test_alignment_brings_a_class_back_that_the_teacher_forgets():
    batch = logits_of([[0.02, 0.95, 0.03]] * 3 + [[0.02, 0.58, 0.40]])
    labels = {}
    for alignment in (0.0, 1.0):
        labeler = PseudoLabeler(3, decay=0.5, alignment=alignment, labeled_voxels=[20, 700, 300])
        for _ in range(20):
            labels[alignment] = labeler(batch)[0].flatten().tolist()
    assert labels == {0.0: [1, 1, 1, 1], 1.0: [1, 1, 1, 2]}


def test_aligned_probabilities_change_by_a_bounded_factor():
    labeler = PseudoLabeler(3, threshold=0.5, floor=0.0, decay=0.0, alignment=1.0, labeled_voxels=[0, 9999, 0])
    # Five times one class and a fifth of the other: enough to turn the first voxel and not the second.
    labels = [labeler(logits_of([[0.01, p, 0.99 - p]]))[0].item() for p in (0.05, 0.03)]
    assert labels == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alignment": -0.1}, r"alignment must be >= 0, got -0.1"),
        ({"alignment": 1.0}, "labeled_voxels must have the voxels of 3 classes"),
        ({"alignment": 1.0, "labeled_voxels": [1, 2]}, "labeled_voxels must have the voxels of 3 classes"),
    ],
)
def test_alignment_needs_the_labeled_voxels(arguments, message):
    with pytest.raises(ValueError, match=message):
        PseudoLabeler(3, **arguments)


def test_a_voxel_that_counts_has_the_weight_that_is_asked_for():
    _, weight = PseudoLabeler(3, threshold=0.9, floor=0.9, weight=0.5)(logits_of([[0.95, 0.03, 0.02], [0.5, 0.3, 0.2]]))
    assert weight.flatten().tolist() == [0.5, 0.0]
    with pytest.raises(ValueError, match="weight must be > 0, got 0"):
        PseudoLabeler(3, weight=0)


def test_labels_are_cleaned_patch_by_patch_and_weights_are_not():
    line = torch.tensor([1, 0, 1, 1, 2, 0])
    logits = (
        9 * torch.nn.functional.one_hot(torch.stack([line, line.flip(0)]), 3).movedim(-1, 1)[..., None, None].float()
    )
    labeler = PseudoLabeler(3, clean_label=KeepLargestConnectedComponent(is_onehot=False))
    label, weight = labeler(logits)
    assert label.flatten(1).tolist() == [[0, 0, 1, 1, 2, 0], [0, 2, 1, 1, 0, 0]]
    assert label.dtype == torch.long
    assert weight.all()


def test_logits_that_are_not_finite_leave_the_averages_as_they_are():
    labeler = PseudoLabeler(2, alignment=1.0, labeled_voxels=[6, 2])
    labeler(torch.tensor([[2.0, 0.0], [0.0, 3.0]])[..., None, None])
    before = {name: value.clone() for name, value in labeler.state_dict().items()}
    label, weight = labeler(torch.tensor([[math.nan, 0.0], [0.0, 3.0]])[..., None, None])
    assert (label.shape, weight.shape) == ((2, 1, 1, 1),) * 2
    after = labeler.state_dict()
    assert before.keys() == after.keys()
    assert torch.equal(before["predicted_shares"], after["predicted_shares"])
    assert after["class_confidence"].isfinite().all()


def test_labels_that_are_not_complete_are_filled_by_what_is_possible():
    possible = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)
    labeler = PseudoLabeler(3, threshold=0.8, floor=0.5, possible=possible, weight=0.7)
    # The most probable class of the third voxel is not possible there, and of the last one not sure enough.
    logits = logits_of([[0.9, 0.05, 0.05], [0.1, 0.1, 0.8], [0.05, 0.7, 0.25], [0.1, 0.9, 0.0], [0.4, 0.35, 0.25]])
    label = torch.tensor([1, 0, 3, 4, 3]).view(1, 1, 5, 1, 1)
    before = labeler.class_confidence.clone()
    found, weight = labeler.complete(label, logits)
    assert found.flatten().tolist() == [1, 0, 2, 1, 0]
    assert weight.flatten().tolist() == pytest.approx([1, 1, 0.7, 0.7, 0])
    assert torch.equal(labeler.class_confidence, before)
    assert labeler.completes
    assert not PseudoLabeler(3).completes
