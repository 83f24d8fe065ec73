from __future__ import annotations

import numpy as np
import pytest
import torch

from dinomix_monai.report import SliceOverlays, class_colors


@pytest.fixture
def case() -> dict[str, torch.Tensor]:
    """Two classes in slice 1, at the patient's left and front; class 1 alone in slice 0, and a code of a set."""
    image, label, pred = torch.full((2, 4, 3, 2), 0.5), torch.zeros(1, 4, 3, 2), torch.zeros(1, 4, 3, 2)
    image[0, 0, 0, 1] = 2.0
    label[0, :, :, 0] = 1
    label[0, 0, 2, 1], label[0, 1, 2, 1], label[0, 2, 2, 1] = 1, 2, 7
    pred[0, 3, 0, 1] = 2
    return {"image": image, "label": label, "pred": pred}


def test_ground_truth_and_prediction_lie_over_the_slice_with_most_classes(case) -> None:
    overlays = SliceOverlays(num_classes=3)
    (image,), (truth,) = overlays.of_batch([case])
    (prediction,) = overlays.of_output([case])
    # Rows from front to back, columns from the patient's right, which is the end of the first axis, to the left.
    expected = np.full((3, 3, 4), 0.5)
    expected[:, 2, 3] = 1.0
    np.testing.assert_allclose(image, expected)
    red_green_blue, opacity = class_colors(3)[:, :3], 0.6
    of_truth = expected.copy()
    of_truth[:, 0, 3], of_truth[:, 0, 2] = (0.5 * (1 - opacity) + opacity * red_green_blue[value] for value in (1, 2))
    np.testing.assert_allclose(truth, of_truth)
    of_prediction = expected.copy()
    of_prediction[:, 2, 0] = 0.5 * (1 - opacity) + opacity * red_green_blue[2]
    np.testing.assert_allclose(prediction, of_prediction)


def test_without_a_case_there_is_nothing_to_show() -> None:
    overlays = SliceOverlays(num_classes=3)
    assert overlays.of_batch(None) == ([None], [None])
    assert overlays.of_output(None) == [None]
