from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from dinomix_monai.volumes import Annotation, PartialLabels, read_annotation

NAMES = ("background", "liver", "spleen", "gland")


def read(**entry: Any) -> Annotation | None:
    return read_annotation(entry, NAMES, "a.nii")


def sets(labels: PartialLabels) -> list[set[int]]:
    return [set(classes) for classes in labels.possible]


def test_a_case_is_complete_unless_it_says_otherwise() -> None:
    assert read() is None
    assert read(annotated=["gland", "liver", "spleen"]) is None
    labels = PartialLabels(4)
    assert labels.num_codes == 4
    values = np.arange(4).reshape(1, 2, 2)
    assert labels.coded(values, "a.nii") is values


def test_an_annotation_is_said_as_it_was_read() -> None:
    for entry in (
        {"annotated": ["liver", "gland"]},
        {"annotated": ["liver", "spleen"], "annotated_slices": {"spleen": [0, 4]}},
    ):
        assert read(**entry).entries(NAMES) == entry


def test_a_voxel_that_nobody_has_drawn_on_may_have_what_nobody_has_looked_for() -> None:
    labels = PartialLabels(4, {"a.nii": read(annotated=["liver"]), "b.nii": read(annotated=["liver", "gland"])})
    assert sets(labels) == [{0, 2}, {0, 2, 3}]
    values = np.array([[[0, 1, 0]]])
    assert labels.coded(values, "a.nii").tolist() == [[[5, 1, 5]]]
    assert labels.coded(values, "b.nii").tolist() == [[[4, 1, 4]]]
    assert labels.coded(values, "complete.nii").tolist() == values.tolist()
    assert labels.table().astype(int).tolist()[4:] == [[1, 0, 1, 0], [1, 0, 1, 1]]


def test_slices_count_along_the_third_axis_of_the_file_and_class_by_class() -> None:
    everywhere = PartialLabels(4, {"a.nii": read(annotated_slices=[1])})
    values = np.array([[[0, 0, 0], [0, 2, 0]]])
    assert everywhere.coded(values, "a.nii").tolist() == [[[4, 0, 4], [4, 2, 4]]]
    assert sets(everywhere) == [{0, 1, 2, 3}]
    mixed = PartialLabels(4, {"a.nii": read(annotated=["liver", "spleen"], annotated_slices={"spleen": [0, 1]})})
    assert sets(mixed) == [{0, 2, 3}, {0, 3}]
    assert mixed.coded(values, "a.nii").tolist() == [[[5, 5, 4], [5, 2, 4]]]


def test_an_ignored_voxel_may_have_any_class() -> None:
    labels = PartialLabels(4, {"a.nii": read(annotated=["liver", "spleen"])}, has_ignore=True)
    assert sets(labels) == [{0, 1, 2, 3}, {0, 3}]
    assert labels.coded(np.array([[[0, 4, 1]]]), "a.nii").tolist() == [[[5, 4, 1]]]
    assert labels.coded(np.array([[[0, 4, 3]]]), "b.nii").tolist() == [[[0, 4, 3]]]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"annotated": ["lever"]},
            r"must name classes of `labels`, liver, spleen, gland, got 'lever'\. Did you mean liver",
        ),
        ({"annotated": ["background"]}, "must name classes of `labels`"),
        ({"annotated": []}, "belongs under `unlabeled`"),
        ({"annotated": "liver"}, "must be a list with names of classes, got 'liver'"),
        ({"annotated_slices": [-1]}, r"must be numbers of slices, from 0 on, .* got \[-1\]"),
        ({"annotated_slices": [1.5]}, "must be numbers of slices"),
        ({"annotated_slices": []}, "must be numbers of slices"),
        ({"annotated_slices": {"lung": [1]}}, "got 'lung'"),
        ({"annotated": ["liver"], "annotated_slices": {"spleen": [1]}}, "annotated of a.nii must have spleen"),
    ],
)
def test_what_cannot_be_is_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**entry)


def test_a_drawing_that_contradicts_is_refused() -> None:
    labels = PartialLabels(4, {"a.nii": read(annotated=["liver"], annotated_slices=[0])})
    with pytest.raises(ValueError, match=r"got a\.nii with the value 2 in slice 0"):
        labels.coded(np.array([[[2, 0]]]), "a.nii")
    with pytest.raises(ValueError, match=r"got a\.nii with the value 1 in slice 1"):
        labels.coded(np.array([[[0, 1]]]), "a.nii")
    with pytest.raises(ValueError, match=r"annotated_slices of a\.nii must be below 2, its slices, got 5"):
        PartialLabels(4, {"a.nii": read(annotated_slices=[1, 5])}).coded(np.zeros((1, 1, 2)), "a.nii")


def test_there_are_at_most_256_values() -> None:
    with pytest.raises(ValueError, match="must be at most 256, got 256 and 1"):
        PartialLabels(256, has_ignore=True)


def test_a_model_with_more_classes_has_others_for_the_values_of_a_file() -> None:
    classes = [0, 4, 2]
    whole = Annotation().renumbered(classes, 5)
    part = Annotation(frozenset({1}), {2: frozenset({0})}).renumbered(classes, 5)
    assert (whole.missing, part.missing, dict(part.slices)) == ({1, 3}, {1, 3, 4}, {2: {0}})
    labels = PartialLabels(5, {"a.nii": whole, "b.nii": part}, has_ignore=True, file_classes=classes)
    assert labels.num_file_values == 4
    found = labels.coded(np.array([[[0, 1, 2, 3]]], dtype=np.uint8), "a.nii")[0, 0]
    assert found.dtype == np.uint8
    sets = [set(np.flatnonzero(row)) for row in labels.table()[found]]
    assert sets == [{0, 1, 3}, {4}, {2}, {0, 1, 2, 3, 4}]
    with pytest.raises(ValueError, match=re.escape("got b.nii with the value 1 in slice 0")):
        labels.coded(np.array([[[1, 0]]]), "b.nii")


def test_values_alone_may_differ() -> None:
    labels = PartialLabels(3, file_classes=[0, 2, 1])
    assert labels.possible == []
    assert labels.coded(np.array([[[0, 1, 2]]]), "a.nii").tolist() == [[[0, 2, 1]]]
