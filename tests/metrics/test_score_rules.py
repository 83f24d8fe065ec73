from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from medpy.metric import binary
from scipy import ndimage
from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances
from torch.nn import functional as F

from dinomix_monai.metrics import GALossRule, Outcome, PublishedRule, SoundRule, score_rule

# DeepMind's package calls scipy by names of long ago.
pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")

SPACING = (0.7, 1.3, 5.0)
SIZE = (12, 14, 10)


def cube(*corner, side=4, size=(16, 16, 16), value=1):
    """A label map (1, H, W[, D]) with a cube from a corner on."""
    label = torch.zeros(1, *size, dtype=torch.int64)
    label[(0, *(slice(at, at + side) for at in corner))] = value
    return label


def blob(generator, share, size=SIZE):
    """A random smooth shape that fills a share of a volume, up to its rim, as a label map (1, H, W, D)."""
    field = ndimage.gaussian_filter(generator.normal(size=size), 1.5)
    return torch.as_tensor(field > np.quantile(field, 1 - share))[None].long()


def voxel(*at, size=SIZE):
    return cube(*at, side=1, size=size)


def pairs():
    """Label maps of prediction and label that both have class 1."""
    generator = np.random.default_rng(0)
    shares = [(0.3, 0.3), (0.1, 0.6), (0.5, 0.05), (0.9, 0.2)]
    found = {f"blobs {a} {b}": (blob(generator, a), blob(generator, b)) for a, b in shares}
    ball = blob(generator, 0.3)
    return {
        **found,
        "equal": (ball, ball),
        "full and blob": (torch.ones_like(ball), ball),
        "voxel and blob": (voxel(6, 6, 4), ball),
        "voxels in corners": (voxel(0, 0, 0), voxel(11, 13, 9)),
        "slab at the rim and blob": ((torch.arange(SIZE[0]) < 2).long().view(1, -1, 1, 1).expand(1, *SIZE), ball),
    }


PAIRS = pairs()
each_pair = pytest.mark.parametrize(("prediction", "label"), PAIRS.values(), ids=PAIRS)


def scores(rule, prediction, label, spacing_mm=(1, 1, 1), num_classes=2):
    return rule(prediction, label, spacing_mm, num_classes)[1]


def directed_distances(mask, other, spacing_mm):
    """Distance in mm of each surface voxel of a mask to the surface of another."""
    surfaces = [m & ~ndimage.binary_erosion(m) for m in (mask, other)]
    return ndimage.distance_transform_edt(~surfaces[1], sampling=spacing_mm)[surfaces[0]]


class TestSoundRule:
    @each_pair
    @pytest.mark.parametrize("spacing_mm", [(1, 1, 1), SPACING], ids=["isotropic", "anisotropic"])
    def test_dice_and_assd_are_those_of_medpy(self, prediction, label, spacing_mm):
        dice, _, assd, _ = scores(SoundRule(), prediction, label, spacing_mm)[:, 0]
        masks = [x[0].numpy() == 1 for x in (prediction, label)]
        assert dice == pytest.approx(binary.dc(*masks))
        assert assd == pytest.approx(binary.assd(*masks, voxelspacing=spacing_mm), rel=1e-5)

    @each_pair
    @pytest.mark.parametrize("spacing_mm", [(1, 1, 1), SPACING], ids=["isotropic", "anisotropic"])
    def test_nsd_is_that_of_deepmind_at_2_mm(self, prediction, label, spacing_mm):
        masks = [x[0].numpy() == 1 for x in (label, prediction)]
        expected = compute_surface_dice_at_tolerance(compute_surface_distances(*masks, spacing_mm), tolerance_mm=2)
        assert scores(SoundRule(), prediction, label, spacing_mm)[1, 0] == pytest.approx(expected, abs=1e-6)

    @each_pair
    def test_hd95_is_the_greater_of_the_directed_percentiles_of_scipy(self, prediction, label):
        masks = [x[0].numpy() == 1 for x in (prediction, label)]
        both_ways = (directed_distances(*masks, SPACING), directed_distances(*masks[::-1], SPACING))
        expected = max(np.percentile(distances, 95) for distances in both_ways)
        assert scores(SoundRule(), prediction, label, SPACING)[3, 0] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize(("axis", "distance_mm"), [(0, 3 * 0.5), (1, 3 * 2.0), (2, 3 * 5.0)])
    def test_parallel_planes_are_their_distance_in_mm_apart(self, axis, distance_mm):
        label, prediction = torch.zeros(2, 1, 10, 10, 10, dtype=torch.int64)
        label.movedim(axis + 1, 0)[2] = 1
        prediction.movedim(axis + 1, 0)[5] = 1
        dice, _, assd, hd95 = scores(SoundRule(), prediction, label, (0.5, 2.0, 5.0))[:, 0]
        assert [dice, assd, hd95] == pytest.approx([0, distance_mm, distance_mm])

    def test_dice_is_that_of_voxels_counted_by_hand(self):
        label = cube(2, 2, 2, side=8)  # 512 voxels
        prediction = cube(2, 2, 4, side=8)  # 512 voxels, 8 * 8 * 6 of them inside
        assert scores(SoundRule(), prediction, label)[0, 0] == pytest.approx(2 * 384 / (512 + 512))

    def test_no_warning_is_heard(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for prediction in (cube(1, 1, 1), cube(1, 1, 1, value=0)):
                scores(SoundRule(), prediction, cube(1, 1, 2), num_classes=3)

    def test_slices_are_scored_too(self):
        label, prediction = cube(2, 2, size=(8, 8)), cube(2, 3, size=(8, 8))
        masks = [x[0].numpy() == 1 for x in (prediction, label)]
        # Every point of either outline is at most a pixel of 2 mm from the other.
        expected = [0.75, 1, binary.assd(*masks, voxelspacing=(1, 2)), 2]
        assert scores(SoundRule(), prediction, label, (1, 2))[:, 0] == pytest.approx(expected)

    def test_a_missed_class_has_the_worst_scores_and_the_diagonal_of_the_image(self):
        label = cube(8, 8, 8, size=(16, 12, 20))
        outcomes, found = SoundRule()(torch.zeros_like(label), label, (1, 2, 3), 2)
        assert outcomes == [Outcome.MISSED]
        diagonal_mm = math.sqrt(16**2 + 24**2 + 60**2)
        assert found[:, 0] == pytest.approx([0, 0, diagonal_mm, diagonal_mm])

    def test_no_distance_exceeds_what_a_miss_costs(self):
        corners = voxel(0, 0, 0), voxel(11, 13, 9)
        missed = scores(SoundRule(), torch.zeros_like(corners[0]), corners[1], SPACING)
        assert (scores(SoundRule(), *corners, SPACING)[2:] < missed[2:]).all()

    @pytest.mark.parametrize("predicted", [True, False])
    def test_a_class_that_the_label_lacks_is_left_out_whatever_was_predicted(self, predicted):
        label = cube(1, 1, 1)
        prediction = label + cube(8, 8, 8, value=2) if predicted else label
        outcomes, found = SoundRule()(prediction, label, (1, 1, 1), 3)
        assert outcomes == [Outcome.FOUND, Outcome.INVENTED if predicted else Outcome.ABSENT]
        assert found[:, 0].tolist() == [1, 1, 0, 0]
        assert np.isnan(found[:, 1]).all()

    def test_each_class_is_scored_on_its_own(self):
        label = cube(1, 1, 1) + cube(8, 8, 8, value=2)
        prediction = cube(1, 1, 1) + cube(8, 8, 10, value=2)
        dice, _, _, hd95 = scores(SoundRule(), prediction, label, num_classes=3)
        assert dice == pytest.approx([1, 0.5])
        assert hd95 == pytest.approx([0, 2])

    def test_a_class_found_in_the_wrong_place_is_found(self):
        outcomes, found = SoundRule()(cube(1, 1, 1), cube(1, 1, 9), (1, 1, 1), 2)
        assert outcomes == [Outcome.FOUND]
        assert found[[0, 3], 0].tolist() == [0, 8]


@pytest.fixture
def small_grid(monkeypatch):
    """The published rules on a smaller grid, which takes less time."""
    monkeypatch.setattr(PublishedRule, "size", (20, 20, 10))


def published_by_medpy(prediction, label, num_classes, size=(10, 20, 20)):
    """Dice in percent and ASD of each class, on arrays in the protocol's order and size, shape (2, classes)."""
    # x, y, z -> z, y, x as SimpleITK reads
    volumes = [x[0].permute(2, 1, 0)[None, None].float() for x in (prediction, label)]
    prediction, label = (F.interpolate(x, size=size, mode="nearest")[0, 0].numpy() for x in volumes)
    values = []
    for c in range(1, num_classes):
        masks = prediction == c, label == c
        if all(mask.any() for mask in masks):
            values.append((binary.dc(*masks) * 100, binary.asd(*masks)))
        else:
            values.append((0, 128) if any(mask.any() for mask in masks) else (1, 0))
    return np.array(values).T


class TestPublishedRule:
    def test_the_grid_is_that_of_the_protocol(self):
        prediction, label = PAIRS["blobs 0.3 0.3"]
        expected = published_by_medpy(prediction, label, 2, size=(80, 160, 160))
        np.testing.assert_allclose(scores(PublishedRule(), prediction, label), expected, rtol=1e-5)

    @each_pair
    @pytest.mark.usefixtures("small_grid")
    def test_found_classes_have_the_scores_of_medpy_whatever_the_spacing(self, prediction, label):
        expected = published_by_medpy(prediction, label, 2)
        for spacing_mm in ((1, 1, 1), SPACING):
            np.testing.assert_allclose(scores(PublishedRule(), prediction, label, spacing_mm), expected, rtol=1e-5)

    @pytest.mark.usefixtures("small_grid")
    def test_missed_invented_and_absent_classes_have_fixed_scores(self):
        label = cube(1, 1, 1) + cube(8, 8, 8, value=2)
        prediction = cube(1, 1, 1) + cube(8, 8, 8, value=3)
        outcomes, found = PublishedRule()(prediction, label, (1, 1, 1), 5)
        assert outcomes == [Outcome.FOUND, Outcome.MISSED, Outcome.INVENTED, Outcome.ABSENT]
        assert found.T.tolist() == [[100, 0], [0, 128], [0, 128], [1, 0]]
        np.testing.assert_array_equal(found, published_by_medpy(prediction, label, 5))

    def test_distance_counts_from_prediction_to_label_alone(self):
        # The plate lies on the block's surface, but most of the block is far from the plate.
        plate, block = torch.zeros(2, 1, 160, 160, 80, dtype=torch.int64)
        plate[0, 50:60, 50:60, 40], block[0, 50:60, 50:60, 20:41] = 1, 1
        assert scores(PublishedRule(), plate, block)[1, 0] == 0
        assert scores(PublishedRule(), block, plate)[1, 0] > 5

    def test_maps_of_the_rules_size_are_not_resampled(self):
        label = (torch.rand(1, 160, 160, 80, generator=torch.Generator().manual_seed(0)) > 0.5).long()
        assert torch.equal(PublishedRule().on_grid(label), label.float())

    def test_other_maps_are_resized_to_the_voxel_at_the_rounded_down_place(self):
        label = torch.randint(0, 5, (1, 70, 200, 33), generator=torch.Generator().manual_seed(0))
        places = [np.arange(n) * side // n for n, side in zip((160, 160, 80), label.shape[1:])]
        expected = label[0].numpy()[np.ix_(*places)]
        np.testing.assert_array_equal(PublishedRule().on_grid(label)[0].numpy(), expected)

    def test_slices_are_refused(self):
        message = r"label must be a volume \(1, H, W, D\) for the published rule, got \(1, 8, 8\). Score slices by"
        with pytest.raises(ValueError, match=message):
            PublishedRule()(cube(2, 2, size=(8, 8)), cube(2, 2, size=(8, 8)), (1, 1), 2)


@pytest.mark.usefixtures("small_grid")
class TestGALossRule:
    def test_only_a_class_in_neither_differs_from_the_published_rule(self):
        label = cube(1, 1, 1) + cube(8, 8, 8, value=2)
        prediction = cube(1, 1, 2) + cube(8, 8, 8, value=3)
        found, published = (scores(rule, prediction, label, num_classes=5) for rule in (GALossRule(), PublishedRule()))
        assert found[:, 3].tolist() == [100, 0]
        np.testing.assert_array_equal(found[:, :3], published[:, :3])

    def test_a_case_with_nothing_predicted_has_zeros_and_so_no_distance(self):
        label = cube(1, 1, 1)
        outcomes, found = GALossRule()(torch.zeros_like(label), label, (1, 1, 1), 3)
        assert outcomes == [Outcome.MISSED, Outcome.ABSENT]
        assert not found.any()


@pytest.mark.parametrize(("name", "kind"), [("sound", SoundRule), ("published", PublishedRule), ("galoss", GALossRule)])
def test_a_rule_is_found_by_its_name(name, kind):
    assert type(score_rule(name)) is kind
    assert score_rule(name).name == name
    assert len(score_rule(name).unmatched(Outcome.MISSED, 1)) == len(score_rule(name).metrics)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="score rule must be one of sound, published, galoss, got 'dhc'"):
        score_rule("dhc")


POSSIBLE = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)


def test_a_class_is_scored_where_somebody_has_looked_for_it():
    label, prediction = cube(0, 0, 0), cube(1, 0, 0)
    # Half of the volume nobody has looked at, and of the rest nobody knows where class 2 is.
    label[label == 0] = 3
    label[..., 2:] = 4
    outcomes, scores = SoundRule()(prediction, label, (1, 1, 1), 3, POSSIBLE)
    assert outcomes == [Outcome.FOUND, Outcome.NOT_ANNOTATED]
    # 3 of 4 layers overlap, in the two slices that count.
    assert scores[0, 0] == pytest.approx(0.75)
    assert np.isnan(scores[1:]).all()
    assert np.isnan(scores[:, 1]).all()
    # Outside of them it counts for nothing.
    prediction[..., 10:] = 1
    assert SoundRule()(prediction, label, (1, 1, 1), 3, POSSIBLE)[1][0, 0] == pytest.approx(0.75)


def test_complete_labels_have_the_same_scores_with_sets_of_classes():
    label, prediction = cube(0, 0, 0) + 2 * cube(8, 8, 8), cube(1, 0, 0) + 2 * cube(8, 8, 7)
    plain, partial = (SoundRule()(prediction, label, (1, 1, 1), 3, possible) for possible in (None, POSSIBLE))
    assert plain[0] == partial[0]
    np.testing.assert_array_equal(plain[1], partial[1])


def test_every_rule_leaves_out_what_nobody_has_looked_for():
    label = cube(0, 0, 0)
    label[label == 0] = 3
    for rule in (SoundRule(), PublishedRule(), GALossRule()):
        for prediction in (cube(0, 0, 0), torch.zeros_like(label)):
            outcomes, scores = rule(prediction, label, (1, 1, 1), 3, POSSIBLE)
            assert outcomes[1] is Outcome.NOT_ANNOTATED
            assert np.isnan(scores[:, 1]).all()
            assert np.isfinite(scores[0, 0])
