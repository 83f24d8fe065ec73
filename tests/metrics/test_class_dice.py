from __future__ import annotations

import numpy as np
import torch

from dinomix_monai.metrics.class_dice import class_dice


def test_a_class_that_is_not_there_has_no_dice_and_a_missed_one_has_0():
    found, label = (torch.tensor(values).view(2, 2, 1) for values in ([0, 1, 1, 3], [0, 1, 2, 0]))
    np.testing.assert_allclose(class_dice(found, label, 4), [2 / 3, 0, np.nan])
