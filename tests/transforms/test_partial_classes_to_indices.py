from __future__ import annotations

import numpy as np
import torch
from monai.transforms import ClassesToIndicesd

from dinomix_monai.transforms import PartialClassesToIndicesd
from dinomix_monai.volumes import Annotation, PartialLabels


def indices(transform, label):
    sample = {"label": label}
    found = transform(sample)
    assert found["label"] is label
    return [places.tolist() for places in found["label_cls_indices"]]


def test_what_is_known_to_be_none_of_some_classes_is_background_and_what_may_have_any_class_no_place() -> None:
    partial = PartialLabels(3, {"a": Annotation(missing=frozenset({2}))}, has_ignore=True)
    values = partial.coded(np.array([[[0, 1, 3, 0]]], dtype=np.uint8), "a")
    transform = PartialClassesToIndicesd("label", partial.table(), num_classes=3)
    assert indices(transform, torch.as_tensor(values)[None]) == [[0, 3], [1], []]


def test_complete_labels_have_the_places_that_monai_finds() -> None:
    label = torch.randint(0, 3, (1, 5, 6, 7), generator=torch.Generator().manual_seed(0))
    stock = indices(ClassesToIndicesd("label", num_classes=3), label)
    assert indices(PartialClassesToIndicesd("label", num_classes=3), label) == stock
    assert indices(PartialClassesToIndicesd("label", PartialLabels(3).table(), num_classes=3), label) == stock
