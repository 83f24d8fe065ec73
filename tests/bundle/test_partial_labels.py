"""Label maps that are not complete, from the data list to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from dinomix_monai.data import check_dataset, open_datalist, patch_voxels
from dinomix_monai.metrics import read_scores
from tests.toys import TOY

ORGANS = ("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver")


@pytest.fixture
def partial(edited_phantom: Callable[..., Path], phantom: Path) -> Path:
    """One case has six organs, the other one all in two slices, and the validation case all but the liver."""
    content = json.loads((phantom / "dataset.json").read_text())
    first, second = content["training"]
    (validation,) = content["validation"]
    names = list(content["labels"].values())[1:]
    folder = edited_phantom(
        training=[{**first, "annotated": list(ORGANS)}, {**second, "annotated_slices": [12, 14]}],
        validation=[{**validation, "annotated": [name for name in names if name != "liver"]}],
        labels={**content["labels"], "14": "ignore"},
    )

    def edit(case: dict[str, str], change: Callable[[np.ndarray], None]) -> None:
        volume = nib.load(folder / case["label"])
        values = np.asarray(volume.dataobj).copy()
        change(values)
        nib.save(nib.Nifti1Image(values, volume.affine, volume.header), folder / case["label"])

    def other_organs(values: np.ndarray) -> None:
        values[values > len(ORGANS)] = 0
        values[:3] = 14

    def other_slices(values: np.ndarray) -> None:
        values[..., [z for z in range(values.shape[2]) if z not in (12, 14)]] = 0

    edit(first, other_organs)
    edit(second, other_slices)
    edit(validation, lambda values: values.__setitem__(values == 6, 0))
    return folder


def test_a_training_learns_and_scores_what_was_looked_for(run: Callable, partial: Path, tmp_path: Path) -> None:
    workflow = run("train", "ablation/pic", dataset_dir=str(partial), epochs=2)
    scores = read_scores(tmp_path, "sound")
    assert [outcome.value for outcome in scores.outcomes[0]].index("not annotated") == 5
    assert "not annotated in" in scores.table()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    # What is mixed has classes alone.
    kept = [patch[0] for patch in trainer.mix.mixer.bank.donors(labeled=True)]
    assert kept
    assert max(int(label.max()) for label in kept) < 14
    assert all(bool((patch[1] >= 0).all()) for patch in trainer.mix.mixer.bank.donors(labeled=True))
    assert torch.isfinite(
        torch.tensor(workflow.parser.get_parsed_content("validate#evaluator").state.metrics["val_mean_dice"])
    )


def test_an_annotation_is_never_contradicted_by_what_is_mixed(workflow: Callable, partial: Path) -> None:
    built = workflow("train", "ablation/pic", dataset_dir=str(partial))
    built.initialize()
    get = built.parser.get_parsed_content
    labeler, possible = get("pseudo_labeler"), torch.as_tensor(get("datalist").possible)
    label = next(iter(get("train#dataloader")))["label"].as_tensor().long()
    assert int(label.max()) >= 14
    logits = torch.randn(len(label), 14, *label.shape[2:], generator=torch.Generator().manual_seed(0))
    filled, weight = labeler.complete(label, logits)
    assert possible[label, filled].all()
    assert torch.equal(filled[label < 14], label[label < 14])
    assert set(weight.unique().tolist()) <= {0.0, 1.0}


def test_nothing_is_learned_of_what_nobody_has_looked_for(workflow: Callable, partial: Path) -> None:
    built = workflow("train", "ablation/pic", dataset_dir=str(partial))
    get = built.parser.get_parsed_content
    label = torch.full((1, 1, 4, 4, 4), get("datalist").partial_labels.num_classes)
    logits = torch.randn(1, 14, 4, 4, 4, requires_grad=True)
    get("loss")(logits, label).backward()
    assert not logits.grad.any()


def test_patches_count_a_class_where_it_was_looked_for(partial: Path, phantom: Path) -> None:
    size, spacing = TOY["patch_size"], TOY["spacing_mm"]
    found, complete = (np.array(patch_voxels(open_datalist(each), size, spacing)) for each in (partial, phantom))
    assert found.sum() == pytest.approx(complete.sum())
    # Two slices through the middle show more of the organs than whole volumes do, and no less.
    assert found[6] > 0.5 * complete[6]
    assert found[11] > 0
    naive = open_datalist(partial).training_voxels
    assert naive[11] > 0


def test_the_check_knows_it(partial: Path) -> None:
    assert [finding for finding in check_dataset(partial) if finding.severity == "error"] == []
    content = json.loads((partial / "dataset.json").read_text())
    content["training"][1]["annotated_slices"] = [12]
    content["training"][0]["annotated"] = ["spleen"]
    content["validation"][0].pop("annotated")
    (partial / "other.json").write_text(json.dumps(content))
    findings = check_dataset(partial, file="other.json")
    errors = {Path(finding.file).name: finding.problem for finding in findings if finding.severity == "error"}
    assert "with the value 2 in slice" in errors[Path(content["training"][0]["label"]).name]
    assert "in slice 14" in errors[Path(content["training"][1]["label"]).name]


def test_cps_refuses_it(workflow: Callable, partial: Path) -> None:
    with pytest.raises(RuntimeError, match="require_complete") as caught:
        workflow("train", "baseline/cps", dataset_dir=str(partial)).initialize()
    assert "CPS needs complete label maps" in str(caught.value.__cause__)
