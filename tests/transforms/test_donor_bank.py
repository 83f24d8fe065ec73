from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from dinomix_monai.transforms import DonorBank


def patch(value, size=2):
    """A patch of label, weight and image that is told from others by its value."""
    return tuple(torch.full((1, size), float(value)) for _ in range(3))


def values(donors):
    return [int(donor[0][0, 0]) for donor in donors]


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_patch_is_listed_under_each_of_its_classes():
    bank = DonorBank(4, size=2)
    bank.add(patch(7), [1, 3], labeled=True)
    assert [values(bank.donors(True, c)) for c in (1, 2, 3)] == [[7], [], [7]]
    assert bank.has_donor(True).tolist() == [True, False, True]


def test_background_is_never_listed():
    bank = DonorBank(3, size=2)
    bank.add(patch(7), [0], labeled=True)
    assert not bank.has_donor(True).any()
    assert values(bank.donors(True)) == values(bank.donors(True, 0)) == []


def test_one_patch_can_be_left_out():
    bank = DonorBank(4, size=2)
    own = bank.add(patch(7), [1, 3], labeled=True)
    bank.add(patch(8), [3], labeled=True)
    assert values([own]) == [7]
    assert [values(bank.donors(True, c, excluded=own)) for c in (None, 1, 2, 3)] == [[8], [], [], [8]]
    assert bank.has_donor(True, excluded=own).tolist() == [False, False, True]
    assert bank.add(patch(9), [0], labeled=True) is None
    assert values(bank.donors(True, excluded=None)) == [7, 8]


def test_ground_truth_and_pseudo_labels_are_apart():
    bank = DonorBank(2, size=2)
    bank.add(patch(7), [1], labeled=True)
    bank.add(patch(8), [1], labeled=False)
    assert (values(bank.donors(True, 1)), values(bank.donors(False, 1))) == ([7], [8])
    assert (values(bank.donors(True)), values(bank.donors(False))) == ([7], [8])


@pytest.mark.parametrize("flag", [np.True_, torch.tensor(True)], ids=["NumPy", "tensor"])
def test_the_origin_may_be_a_flag_of_a_collated_batch(flag):
    bank = DonorBank(2, size=2)
    bank.add(patch(7), np.array([1]), labeled=flag)
    assert values(bank.donors(True, 1)) == [7]


def test_the_oldest_patch_of_a_class_is_dropped_and_other_classes_keep_it():
    bank = DonorBank(3, size=2)
    bank.add(patch(1), [1, 2], labeled=True)
    bank.add(patch(2), [1], labeled=True)
    bank.add(patch(3), [1], labeled=True)
    assert values(bank.donors(True, 1)) == [2, 3]
    assert values(bank.donors(True, 2)) == [1]


def test_all_patches_of_an_origin_come_once_each():
    bank = DonorBank(3, size=3)
    bank.add(patch(1), [1, 2], labeled=True)
    bank.add(patch(2), [2], labeled=True)
    assert sorted(values(bank.donors(True))) == [1, 2]


def test_a_donor_does_not_change_with_the_batch_it_came_from():
    batch = torch.ones(4, 1, 2)
    bank = DonorBank(2, size=1)
    bank.add((batch[0], batch[1], batch[2]), [1], labeled=True)
    batch.zero_()
    assert values(bank.donors(True, 1)) == [1]


def test_a_donor_does_not_hold_the_rest_of_its_batch():
    batch = torch.ones(100, 1, 2)
    bank = DonorBank(2, size=1)
    bank.add((batch[0], batch[1], batch[2]), [1], labeled=True)
    assert [part.untyped_storage().nbytes() for part in bank.donors(True, 1)[0]] == [8, 8, 8]


def test_a_state_brings_back_every_list_in_its_order():
    bank, other = DonorBank(3, size=2), DonorBank(3, size=2)
    bank.add(patch(1), [1, 2], labeled=True)
    bank.add(patch(2), [1], labeled=True)
    bank.add(patch(3), [2], labeled=False)
    other.add(patch(9), [1, 2], labeled=True)  # what the state must replace
    other.load_state_dict(saved_and_loaded(bank.state_dict()))
    for labeled in (True, False):
        for class_index in (1, 2, None):
            assert values(other.donors(labeled, class_index)) == values(bank.donors(labeled, class_index))


def test_a_state_holds_each_patch_once():
    bank, other = DonorBank(3, size=2), DonorBank(3, size=2)
    bank.add(patch(1), [1, 2], labeled=True)
    state = bank.state_dict()
    assert len(state["patches"]) == 1
    other.load_state_dict(saved_and_loaded(state))
    assert other.donors(True, 1)[0] is other.donors(True, 2)[0]


def test_a_state_leaves_out_what_repeats_and_brings_it_back():
    generator = torch.Generator().manual_seed(0)
    shape = (8, 9, 7)
    along = [torch.rand(side, generator=generator) for side in shape]
    label = torch.randint(0, 3, (1, *shape), generator=generator)
    straight = torch.stack([torch.full(shape, 7.0), *torch.meshgrid(*along, indexing="ij")])
    oblique = torch.stack([torch.full(shape, 7.0), straight[1] + straight[2], straight[3]])
    whole = torch.rand(2, *shape, generator=generator)
    parts = (label, torch.ones(1, *shape), torch.tensor([3.0, 3.0, 3.0]), whole, straight, oblique)
    bank, other = DonorBank(3, size=1), DonorBank(3, size=1)
    bank.add(parts, [1], labeled=True)
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    voxels = label.numel()
    # In full: 8 bytes of a label and 4 of each of ten other channels.
    assert file.tell() < voxels * (8 + 2 * 4) + 10_000 < voxels * (8 + 10 * 4)
    other.load_state_dict(saved_and_loaded(bank.state_dict()))
    (restored,) = other.donors(True, 1)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(restored, parts, strict=True))
    assert all(part.is_contiguous() for part in restored)


def test_a_bank_of_no_patches_is_refused():
    with pytest.raises(ValueError, match=r"size must be >= 1, got 0\."):
        DonorBank(2, size=0)


def test_the_state_of_a_bank_with_other_classes_is_refused():
    with pytest.raises(ValueError, match=r"state must be of a bank with 3 classes, got 2\."):
        DonorBank(3, size=1).load_state_dict(DonorBank(2, size=1).state_dict())


def test_what_a_bank_takes_and_what_it_may_come_to():
    bank = DonorBank(4, size=5)
    assert (bank.nbytes, bank.most_nbytes) == (0, 0)
    bank.add(patch(1), [1, 2, 3], labeled=True)
    bank.add(patch(2), [0], labeled=True)
    bank.add(patch(3, size=1), [2], labeled=False)
    # Three parts of single precision; three classes and two origins.
    assert bank.nbytes == 3 * 4 * (2 + 1)
    assert bank.most_nbytes == 3 * 2 * 5 * 3 * 4 * 2
