from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

ARM = "baseline/self_training"


@pytest.fixture
def first_model(run: Callable, tmp_path: Path) -> Path:
    run("train", "baseline/supervised", epochs=1, output_dir=str(tmp_path / "first"))
    return tmp_path / "first" / "models" / "model.pt"


def voxels(folder: Path) -> list[np.ndarray]:
    return [np.asarray(nib.load(file).dataobj) for file in sorted(folder.rglob("*_seg.nii.gz"))]


def test_a_new_network_learns_from_all_scans_with_the_labels_of_the_first_model(
    run: Callable, phantom: Path, first_model: Path, tmp_path: Path
) -> None:
    second = run("train", ARM, epochs=1, first_model=str(first_model), output_dir=str(tmp_path / "second"))
    dataset = second.parser.get_parsed_content("train#dataset")
    listed = second.parser.get_parsed_content("datalist")
    labels = tmp_path / "second" / "pseudo_labels"
    assert [case["image"] for case in dataset.data] == [case["image"] for case in (*listed.training, *listed.unlabeled)]
    assert [Path(case["label"]).parents[1] for case in dataset.data[len(listed.training) :]] == [labels] * 2
    # They are what inferring writes.
    answers = tmp_path / "answers"
    for case in listed.unlabeled:
        given = {"model_file": str(first_model), "dataset_dir": case["image"], "output_dir": str(answers)}
        run("inference", kind="infer", run_id="inferring", **given)
    assert len(voxels(answers)) == 2
    for own, expected in zip(voxels(labels), voxels(answers)):
        np.testing.assert_array_equal(own, expected)
    # From scratch, and not from the first model.
    weights = [torch.load(file, weights_only=True) for file in (first_model, tmp_path / "second/models/model.pt")]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_labels_are_kept_for_the_same_model_and_made_anew_for_another(
    run: Callable, workflow: Callable, first_model: Path, tmp_path: Path
) -> None:
    def labeled() -> tuple[list[int], list[np.ndarray]]:
        built = workflow("train", ARM, first_model=str(first_model))
        cases = built.parser.get_parsed_content("pseudo_labeled")
        return [Path(case["label"]).stat().st_mtime_ns for case in cases], voxels(tmp_path / "pseudo_labels")

    first = labeled()
    assert labeled()[0] == first[0]
    weights = torch.load(first_model, weights_only=True)
    # A model of the spleen alone.
    weights["head.bias"] += 100 * torch.eye(len(weights["head.bias"]))[1]
    torch.save(weights, first_model)
    second = labeled()
    assert second[0] != first[0]
    assert all((label == 1).all() for label in second[1])


def test_without_a_first_model_the_message_says_how_to_get_one(workflow: Callable) -> None:
    built = workflow("train", ARM)
    with pytest.raises(RuntimeError) as error:
        built.parser.get_parsed_content("pseudo_labeled")
    assert "first_model must be a model that was trained on the labeled cases, got None" in str(error.value.__cause__)
