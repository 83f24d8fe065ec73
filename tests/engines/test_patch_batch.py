from __future__ import annotations

import dataclasses

import pytest
import torch

from dinomix_monai.engines import PatchBatch


def patches(size, first=0, is_labeled=True, **changes):
    """Of each patch all values are its number."""
    number = torch.arange(first, first + size).float()
    values = number.view(-1, 1, 1, 1, 1).expand(-1, 1, 2, 2, 2)
    parts = {"image": values, "label": values.to(torch.uint8), "weight": values, "teacher_view": values}
    parts |= {"position": number[:, None].expand(-1, 3), "is_labeled": (is_labeled,) * size}
    return PatchBatch(**{**parts, **changes})


def numbers(tensor):
    return tensor.flatten(1)[:, 0].tolist()


TENSORS = ("image", "label", "weight", "teacher_view", "position")


def test_batches_in_a_row_and_apart_again():
    both = PatchBatch.cat([patches(2), patches(3, 2, is_labeled=False)])
    assert len(both) == 5
    assert all(numbers(getattr(both, name)) == [0, 1, 2, 3, 4] for name in TENSORS)
    assert both.is_labeled == (True, True, False, False, False)
    first, others = both.split(2)
    assert all(numbers(getattr(first, name)) == [0, 1] for name in TENSORS)
    assert all(numbers(getattr(others, name)) == [2, 3, 4] for name in TENSORS)
    assert (first.is_labeled, others.is_labeled) == ((True, True), (False,) * 3)


@pytest.mark.parametrize("missing", TENSORS[1:])
def test_what_one_batch_lacks_both_lack(missing):
    both = PatchBatch.cat([patches(2), patches(1, **{missing: None})])
    assert [name for name in TENSORS if getattr(both, name) is None] == [missing]
    assert all(getattr(part, missing) is None for part in both.split(1))


def test_labels_of_two_types_have_the_wider_one():
    pseudo = patches(1)
    pseudo = dataclasses.replace(pseudo, label=pseudo.label.long())
    assert PatchBatch.cat([patches(1), pseudo]).label.dtype == torch.long


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        patches(1).image = torch.zeros(1)


def test_a_transform_is_given_what_there_is_by_the_names_of_the_bundle():
    data = patches(2, teacher_view=None, position=None).to_dict("source")
    assert set(data) == {"image", "label", "weight", "labeled"}
    data = patches(2).to_dict("source")
    assert set(data) == {"image", "label", "weight", "labeled", "position", "source"}
    assert data["labeled"] == [True, True]


def test_what_a_transform_made_of_it_is_not_labeled():
    mixed = PatchBatch.from_dict(patches(2).to_dict("source"), "source")
    assert mixed.is_labeled == (False, False)
    assert mixed.position is None
    assert all(numbers(getattr(mixed, name)) == [0, 1] for name in TENSORS[:4])


def test_the_teacher_sees_the_image_where_it_has_no_view_of_its_own():
    view = torch.full((1, 3, 2, 2, 2), 7.0)
    assert torch.equal(patches(1, teacher_view=view).seen_by_teacher, view)
    plain = PatchBatch.from_dict(patches(1, teacher_view=None).to_dict("image"), "image")
    assert plain.teacher_view is None
    assert torch.equal(plain.seen_by_teacher, plain.image)
