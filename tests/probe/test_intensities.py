from __future__ import annotations

import torch

from dinomix_monai.probe import Intensities


def test_a_token_has_the_intensities_of_its_square():
    image = torch.rand(2, 3, 10, 15)
    tokens = Intensities()(image)
    assert tokens.shape == (2, 25, 2, 3)
    torch.testing.assert_close(tokens[1, :, 1, 2].view(5, 5), image[1, 0, 5:10, 10:15])
