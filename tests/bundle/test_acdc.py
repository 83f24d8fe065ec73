from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

ACDC = Path(__file__).parents[3] / "shared" / "data" / "acdc_mini"
# What the overlay sets, once more: the fixture's toy settings come after it.
OVERLAY = json.loads((Path(__file__).parents[2] / "bundle" / "configs" / "acdc.json").read_text())
SETTINGS = {name: OVERLAY[name] for name in ("spacing_mm", "patch_size")}
TRAINING = {**SETTINGS, "datalist#allow_outside": True}

pytestmark = pytest.mark.skipif(not (ACDC / "dataset.json").is_file(), reason=f"needs {ACDC}")


@pytest.fixture
def small_acdc(tmp_path: Path) -> Path:
    """Two labeled, two unlabeled and one validation case of ACDC-mini."""
    content = json.loads((ACDC / "dataset.json").read_text())
    for section, cases in (("training", 2), ("unlabeled", 2), ("validation", 1), ("test", 1)):
        content[section] = [
            {key: str(ACDC / value) for key, value in case.items() if key in ("image", "label")}
            for case in content[section][:cases]
        ]
    (tmp_path / "acdc").mkdir()
    (tmp_path / "acdc" / "dataset.json").write_text(json.dumps(content))
    return tmp_path / "acdc"


def test_acdc_trains_validates_and_comes_back_on_its_own_grid(run, small_acdc: Path, tmp_path: Path) -> None:
    trained = run(*("train", "acdc"), dataset_dir=str(small_acdc), epochs=1, steps_per_epoch=2, warm_up=0.0, **TRAINING)
    network = trained.parser.get_parsed_content("network")
    # Thick slices are not merged in depth by the stem or the first step down.
    assert network.stem[0].stride == network.down[0][0].stride == (2, 2, 1)
    with (tmp_path / "history.csv").open() as file:
        row = next(csv.DictReader(file))
    assert 0 <= float(row["val_mean_dice"]) <= 1
    assert float(row["unsupervised"]) >= 0
    labels = json.loads((tmp_path / "models" / "labels.json").read_text())
    assert list(labels.values()) == ["background", "right ventricle", "myocardium", "left ventricle"]

    image = json.loads((small_acdc / "dataset.json").read_text())["test"][0]["image"]
    paths = {"model_file": str(tmp_path / "models" / "model.pt"), "output_dir": str(tmp_path / "segmented")}
    run("inference", "acdc", kind="infer", dataset_dir=image, **paths, **SETTINGS)
    original = nib.load(image)
    label = nib.load(tmp_path / "segmented" / (Path(image).name.removesuffix(".nii.gz") + "_seg.nii.gz"))
    assert label.shape == original.shape
    np.testing.assert_allclose(label.affine, original.affine, atol=1e-4)
    assert np.asarray(label.dataobj).max() <= 3


def test_inference_scales_intensities_as_training_does(workflow, small_acdc: Path, tmp_path: Path) -> None:
    case = json.loads((small_acdc / "dataset.json").read_text())["validation"][0]
    train = workflow("train", "acdc", dataset_dir=str(small_acdc), **TRAINING)
    model = {"model_file": str(tmp_path / "model.pt")}
    inference = workflow("inference", "acdc", kind="infer", dataset_dir=case["image"], **model, **SETTINGS)
    seen = train.parser.get_parsed_content("report#dataset")[0]["image"]
    found = inference.parser.get_parsed_content("dataset")[0]["image"]
    assert torch.equal(seen.as_tensor(), found.as_tensor())
    assert float(found.min()) == 0
    assert float(found.max()) == 1
