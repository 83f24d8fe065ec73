from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from monai.data import MetaTensor

from dinomix_monai.handlers.bad_step import BadStep


def batch(*files, bad=()):
    """A batch of a patch for each file, some of which have a voxel that is no number."""
    image = torch.zeros(len(files), 1, 2, 2, 2)
    for number in bad:
        image[number, 0, 0, 0, 1] = math.inf
    return {"image": MetaTensor(image, meta={"filename_or_obj": list(files)}), "label": torch.ones(len(files))}


def step(output, labeled, unlabeled=None, iteration=7):
    state = SimpleNamespace(iteration=iteration, output=output, batch=labeled)
    return BadStep(SimpleNamespace(state=state, unlabeled_batch=unlabeled))


def test_the_term_that_is_not_finite_is_named_and_not_the_sum():
    output = {"loss": torch.tensor(math.nan), "supervised": torch.tensor(0.5), "unsupervised": torch.tensor(math.nan)}
    found = step(output, batch("a.nii"))
    assert found.non_finite_terms.keys() == {"unsupervised"}
    assert found.describe() == "its unsupervised loss is nan (cases: a.nii)"


def test_the_sum_is_named_where_it_has_no_terms():
    assert step({"loss": torch.tensor(math.inf)}, batch("a.nii")).describe() == "its loss is inf (cases: a.nii)"


def test_without_a_bad_term_it_is_the_gradient():
    found = step({"loss": torch.tensor(1.0), "supervised": torch.tensor(1.0)}, batch("a.nii"))
    assert found.describe() == "its gradient is not finite (cases: a.nii)"


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "cases"),
    [
        (batch("b.nii", "a.nii"), batch("c.nii"), ["a.nii", "b.nii", "c.nii"]),
        (batch("b.nii", "a.nii", bad=[0]), batch("c.nii"), ["b.nii"]),
        (batch("b.nii", "a.nii", bad=[1]), batch("c.nii", bad=[0]), ["a.nii", "c.nii"]),
        (batch("a.nii", "a.nii"), None, ["a.nii"]),
        ({"image": torch.zeros(1, 1)}, None, []),
        ([torch.zeros(1, 1)], None, []),
    ],
)
def test_cases_are_those_with_bad_voxels_or_else_all(labeled, unlabeled, cases):
    assert step({"loss": torch.tensor(math.nan)}, labeled, unlabeled).cases == cases


def test_the_batch_of_a_site_without_labels_is_saved_as_what_it_is(tmp_path):
    state = SimpleNamespace(iteration=3, output={"loss": torch.tensor(math.nan)}, batch=batch("c.nii"))
    saved = torch.load(
        BadStep(SimpleNamespace(state=state, unlabeled_batch=None, has_labels=False)).save(tmp_path), weights_only=True
    )
    assert "unlabeled" in saved
    assert "labeled" not in saved


def test_what_is_saved_opens_without_code_and_has_everything(tmp_path):
    found = step({"loss": torch.tensor(math.nan)}, batch("a.nii", bad=[0]), batch("c.nii"))
    path = found.save(tmp_path / "bad")
    assert path == tmp_path / "bad" / "step_0000007.pt"
    saved = torch.load(path, weights_only=True)
    assert (saved["step"], saved["cases"]) == (7, ["a.nii"])
    assert math.isnan(saved["terms"]["loss"])
    assert saved["labeled"]["image"][0, 0, 0, 0, 1] == math.inf
    assert type(saved["labeled"]["image"]) is torch.Tensor
    assert saved["unlabeled"].keys() == {"image", "label"}
