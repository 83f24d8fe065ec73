from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from dinomix_monai.probe import PointFeatures, labels_at_points
from dinomix_monai.teacher import SliceTokens


class MeanTeacher:
    """Gives the mean of each square of 4 pixels."""

    stride, embed_dim, fingerprint = 4, 1, "mean"

    def __call__(self, x):
        return torch.nn.functional.avg_pool2d(x[:, :1], 4)


def scan(array, spacing=(2.0, 2.0, 5.0)):
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return MetaTensor(torch.as_tensor(array, dtype=torch.float32)[None], affine=affine)


def features_of(**arguments):
    return PointFeatures(SliceTokens(MeanTeacher(), channels="repeat"), **arguments)


def test_points_lie_the_given_distance_apart():
    assert features_of(point_mm=4.0).points(scan(torch.zeros(20, 12, 3))) == (10, 6)
    assert features_of(point_mm=1000.0).points(scan(torch.zeros(20, 12, 3))) == (1, 1)


def test_a_token_stands_for_the_given_length_whatever_the_spacing():
    image = torch.arange(8.0 * 16).view(8, 16, 1).repeat(1, 1, 3) / 128
    tokens = features_of(token_mm=8.0).tokens(scan(image), [2, 0])
    expected = image[..., 0].unfold(0, 4, 4).unfold(1, 4, 4).mean((-1, -2))
    assert tokens.shape == (2, 1, 2, 4)
    torch.testing.assert_close(tokens[:, 0], expected.expand(2, 2, 4))


def test_tokens_stand_where_their_voxels_are():
    image = torch.zeros(16, 16, 2)
    image[8:12, 4:8, 1] = 1
    features = features_of(token_mm=8.0, point_mm=8.0)(scan(image), [1])
    assert features.shape == (1, 4, 4, 9)
    assert features[0, ..., 0].nonzero().tolist() == [[2, 1]]


def test_without_a_teacher_there_are_the_intensities_around_each_point():
    image = torch.rand(6, 6, 1)
    features = PointFeatures(None, point_mm=2.0)(scan(image), [0])
    assert features.shape == (1, 6, 6, 25 + 8)
    torch.testing.assert_close(features[0, 2, 3, :25].view(5, 5), image[0:5, 1:6, 0])
    with pytest.raises(ValueError, match="slice_tokens must be a teacher's for tokens, got None"):
        PointFeatures(None).tokens(scan(image), [0])


def test_positions_are_those_in_the_box_around_the_body():
    image = torch.zeros(10, 10, 4)
    image[2:6, 4:8, 1:3] = 1  # the body; its center is at voxel 4, 6, 2
    features = PointFeatures(None, point_mm=2.0)(scan(image), [1, 2])[..., 25:]
    x, y, z = -0.75, 0.25, -0.5  # the voxel 2, 6, 1
    expected = torch.tensor([x, y, z, x * x, y * y, z * z, x * y, x * z])
    torch.testing.assert_close(features[0, 2, 6], expected)
    torch.testing.assert_close(features[1, 2, 6, 2], torch.tensor(0.5))


def test_an_empty_scan_has_finite_features():
    assert features_of()(scan(torch.zeros(16, 16, 2)), [0, 1]).isfinite().all()


def test_labels_are_those_of_the_voxels_at_the_points():
    label = torch.arange(6 * 6 * 2).view(1, 6, 6, 2)
    found = labels_at_points(MetaTensor(label), (3, 2), [1])
    # Points are centers of parts of 2 x 3 voxels; where one falls between two voxels the later one counts.
    assert found.tolist() == label[0, 1::2, 1::3, 1][None].tolist()


def test_an_image_without_a_spacing_and_lengths_of_0_are_refused():
    with pytest.raises(TypeError, match="image must be a MetaTensor"):
        features_of()(torch.zeros(1, 4, 4, 1), [0])
    with pytest.raises(ValueError, match=r"token_mm and point_mm must be > 0, got 0 and 4\.7"):
        features_of(token_mm=0)
