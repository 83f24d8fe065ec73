from __future__ import annotations

import io
import math
from collections import Counter

import numpy as np
import pytest
import torch
from monai.transforms import RandAffineGrid
from scipy.stats import chisquare

from dinomix_monai.transforms import PICCutMix
from tests.transforms.pic_batches import (
    batch_of,
    equal,
    full,
    next_numbers,
    noise_batch,
    noise_mixer,
    one_voxel_mixer,
    plain_formula,
)


def test_there_are_as_many_mixed_patches_as_unlabeled_ones():
    batch, _ = noise_batch(0)
    assert all(len(part) == 3 for part in noise_mixer()(*batch, labeled=[True, False, False, False]))


def test_where_the_recipient_is_the_only_donor_nothing_is_pasted():
    label, image = batch_of([1]), torch.rand(1, 1, 4, 4, 4)
    mixer = one_voxel_mixer(counts=[1, 1], directions={"labeled_to_labeled": 1})
    mixed = mixer(label, torch.ones_like(label), image, labeled=[True], num_mixed=20)
    assert equal(mixed, [part.expand(20, -1, -1, -1, -1) for part in (label, torch.ones_like(label), image)])
    assert len(mixer.bank.donors(True)) == 1


def test_donors_of_earlier_batches_are_used_until_the_bank_turns_over():
    mixer = one_voxel_mixer([1, 1, 1], directions={"labeled_to_unlabeled": 1}, bank_size=2)
    unlabeled = full(0)
    seen = []
    for value, class_index in ((10, 1), (11, 2), (12, 2), (13, 2)):
        image, label = torch.cat([full(value), unlabeled]), torch.cat([full(class_index), unlabeled])
        mixed = mixer(label, torch.ones_like(label), image, labeled=[True, False], num_mixed=60)[2]
        seen.append({int(value) for value in mixed.unique()} - {0})
    # Class 1 keeps its only donor; of class 2 the newest two stay.
    assert seen == [{10}, {10, 11}, {10, 11, 12}, {10, 12, 13}]


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_classes_of_unlabeled_patches_are_pasted_by_their_own_counts(progress):
    sizes = [64, 16, 4, 1]
    label = torch.zeros(5, 1, 4, 4, 4)
    for index, size in enumerate(sizes):
        label[index].view(-1)[:size] = index + 1
    mixer = one_voxel_mixer(directions={"unlabeled_to_labeled": 1}, beta=1.0, count_decay=0.5)
    mixer.progress = progress
    mixed, _ = mixer(label, torch.ones_like(label), labeled=[False] * 4 + [True], num_mixed=3000)
    # Each patch counts a half, and halves those before it.
    averages = [size * 0.5 ** (4 - index) for index, size in enumerate(sizes)]
    expected = 3000 * np.array(plain_formula(averages, progress, 1.0, 1, 1))
    pasted = Counter(mixed.amax((1, 2, 3, 4)).int().tolist())
    assert chisquare([pasted[c] for c in (1, 2, 3, 4)], expected).pvalue > 0.001


def test_unlabeled_counts_follow_the_confident_voxels_as_a_moving_average():
    mixer = PICCutMix([100, 7, 7], count_decay=0.9)
    label, weight = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    label[:, :, 0, :3] = 1
    label[:, :, 1] = 2
    weight[:, :, 1, :2] = 0  # of class 2 two voxels of four count
    mixer(label, weight, labeled=[True, False])
    assert mixer.class_curriculum.unlabeled_counts == pytest.approx(0.1 * np.array([9, 3, 2]))
    mixer(label[1:], weight[1:] * 0.2, labeled=[False])
    assert mixer.class_curriculum.unlabeled_counts == pytest.approx(0.19 * np.array([9, 3, 2]))
    assert mixer.class_curriculum.labeled_counts.tolist() == [100, 7, 7]


def test_a_class_never_pseudo_labeled_is_the_most_probable():
    mixer = PICCutMix([100, 7, 7])
    mixer(full(1), full(1), labeled=[False])
    p = mixer.class_curriculum.probabilities(labeled=False)
    assert p.tolist() == pytest.approx(plain_formula([0.64, 0], 0, 0.5, 1, 1))
    assert p[1] > p[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_patch_with_a_voxel_that_is_not_finite_is_no_donor(bad):
    mixer = one_voxel_mixer()
    image = full(0.5)[0]
    spoiled = image.clone()
    spoiled[0, 0, 0] = bad
    mixer.add_donors(
        [(full(c)[0], full(1)[0], torch.zeros(3), part) for c, part in ((1, spoiled), (2, image))], [True] * 2
    )
    assert mixer.bank.has_donor(True).tolist() == [False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_labels_of_donors_are_kept_small_and_pasted_as_those_of_the_batch(dtype):
    batch, labeled = noise_batch(0)
    mixer = noise_mixer()
    mixed, *_ = mixer(batch[0].to(dtype), *batch[1:], labeled=labeled)
    expected, *_ = noise_mixer()(*batch, labeled=labeled)
    assert torch.equal(mixed, expected.to(dtype))
    assert mixed.dtype == dtype
    assert {donor[0].element_size() for donor in mixer.bank.donors(True)} == {2}


def test_the_same_seed_gives_the_same_result_and_another_seed_another():
    batch, labeled = noise_batch(0)
    first, again, other = (noise_mixer().set_random_state(seed)(*batch, labeled=labeled) for seed in (5, 5, 6))
    assert equal(first, again)
    assert not equal(first, other)


def test_global_random_states_are_neither_used_nor_changed():
    batch, labeled = noise_batch(0)
    results = []
    for seed in (0, 1):
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = next_numbers(np.random), torch.get_rng_state().tolist()
        results.append(noise_mixer()(*batch, labeled=labeled))
        assert before == (next_numbers(np.random), torch.get_rng_state().tolist())
    assert equal(*results)


def test_without_randomize_the_last_draw_is_repeated():
    batch, labeled = noise_batch(0)
    mixer = noise_mixer()
    first = mixer(*batch, labeled=labeled)
    counts, state = mixer.class_curriculum.unlabeled_counts.copy(), next_numbers(mixer.R)
    for _ in range(2):
        assert equal(mixer(*batch, labeled=labeled, randomize=False), first)
    assert (counts == mixer.class_curriculum.unlabeled_counts).all()
    assert state == next_numbers(mixer.R)
    assert not equal(mixer(*batch, labeled=labeled), first)


def test_without_randomize_deformations_are_repeated_too():
    batch, labeled = noise_batch(0)
    mixer = noise_mixer(affine_grid=RandAffineGrid(rotate_range=(0, 0, 1), scale_range=(0.3, 0.3, 0.3)))
    first = mixer(*batch, labeled=labeled)
    assert equal(mixer(*batch, labeled=labeled, randomize=False), first)
    assert not equal(mixer(*batch, labeled=labeled), first)


def test_a_call_keeps_its_recipes_and_not_those_of_the_call_before():
    mixer = noise_mixer()
    assert mixer.recipes == ()
    batch, labeled = noise_batch(0)
    mixer(*batch, labeled=labeled, num_mixed=3)
    first = mixer.recipes
    mixer(*batch, labeled=labeled, num_mixed=2)
    assert (len(first), len(mixer.recipes)) == (3, 2)


@pytest.mark.parametrize("placement", ["same", "anatomical"])
@pytest.mark.parametrize("affine", [False, True], ids=["as they are", "deformed"])
def test_a_saved_state_that_is_seeded_anew_goes_on_exactly_as_the_uninterrupted_run(placement, affine):
    def new(seed):
        deformation = RandAffineGrid(rotate_range=(0, 0, 1), scale_range=(0.3, 0.3, 0.3)) if affine else None
        return noise_mixer(placement=placement, bank_size=6, affine_grid=deformation).set_random_state(seed)

    def step(mixer, number):
        batch, labeled = noise_batch(number)
        mixer.progress = number / 6
        return mixer(*batch, labeled=labeled, positions=torch.randint(-2, 3, (4, 3)).float())

    # A bank larger than a batch, so that donors from before the interruption are used after it.
    mixer, resumed = new(0), new(99)
    torch.manual_seed(0)
    for number in range(3):
        step(mixer, number)
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    torch.manual_seed(1)
    mixer.set_random_state(7)
    expected = [step(mixer, number) for number in range(3, 6)]
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.progress == 2 / 6
    torch.manual_seed(1)
    resumed.set_random_state(7)
    assert all(equal(step(resumed, number), expected[number - 3]) for number in range(3, 6))
    assert resumed.class_curriculum.unlabeled_counts.tolist() == mixer.class_curriculum.unlabeled_counts.tolist()


def test_the_state_does_not_depend_on_the_random_state():
    states = []
    for seed in (0, 1):
        file = io.BytesIO()
        torch.save(PICCutMix([8, 4, 2]).set_random_state(seed).state_dict(), file)
        states.append(file.getvalue())
    assert states[0] == states[1]


def test_labeled_counts_are_part_of_the_state():
    mixer, other = PICCutMix([8, 4, 2]), PICCutMix([1, 1, 1])
    other.load_state_dict(mixer.state_dict())
    assert other.class_curriculum.labeled_counts.tolist() == [8, 4, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_state_loaded_onto_a_gpu_goes_on_as_on_the_cpu():
    batch, labeled = noise_batch(0)
    positions = torch.tensor([[0.0, 0, 0], [1, 1, 1], [2, 0, 1], [0, 1, 0]])
    mixer, on_gpu = noise_mixer(placement="anatomical"), noise_mixer(placement="anatomical")
    mixer(*batch, labeled=labeled, positions=positions)
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    file.seek(0)
    on_gpu.load_state_dict(torch.load(file, map_location="cuda", weights_only=True))
    expected = mixer.set_random_state(7)(*batch, labeled=labeled, positions=positions)
    mixed = on_gpu.set_random_state(7)(*(part.cuda() for part in batch), labeled=labeled, positions=positions.cuda())
    assert all(part.is_cuda for part in mixed)
    assert equal([part.cpu() for part in mixed], expected)


def test_anatomical_placement_needs_positions():
    message = r"positions must be given for placement='anatomical' \(PatchPositiond writes them\), got None\."
    with pytest.raises(ValueError, match=message):
        PICCutMix([1, 1], placement="anatomical")(full(1), full(1), labeled=[True])


def test_a_bank_of_no_patches_is_refused():
    with pytest.raises(ValueError, match=r"size must be >= 1, got 0\."):
        PICCutMix([5, 5], bank_size=0)
