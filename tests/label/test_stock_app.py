"""MONAI Label's own app for bundles, with this one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monailabel.interfaces.utils.app import app_instance

from dinomix_monai.data.anatomy import ORGANS

BUNDLE = Path(__file__).parents[2] / "bundle"
NAME = "dinomix_segmentation"


@pytest.mark.slow
def test_the_stock_app_segments_with_the_bundle(studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app_dir = tmp_path / "monaibundle"
    shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle", app_dir)
    bundle = app_dir / "model" / NAME
    shutil.copytree(BUNDLE / "configs", bundle / "configs")
    (bundle / "models").mkdir()
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["bundle_root"] = str(bundle)
    torch.save(parser.get_parsed_content("network_def").state_dict(), bundle / "models" / "model.pt")
    monkeypatch.setattr("monailabel.config.settings.MONAI_LABEL_AUTO_UPDATE_SCORING", False)
    app = app_instance(str(app_dir), str(studies), {"models": NAME, "zoo_source": "local", "sam2": "false"})

    assert app.info()["labels"] == [name.lower() for name in ORGANS]
    result = app.infer({"model": NAME, "image": "case_1", "device": "cpu", "result_dtype": "uint8"})
    image, label = nib.load(studies / "case_1.nii"), nib.load(result["file"])
    assert label.shape == image.shape
    # Through ITK, which keeps directions as a quaternion in single precision.
    np.testing.assert_allclose(label.affine, image.affine, atol=1e-3)
    assert label.get_data_dtype() == np.uint8
    assert 0 < np.asarray(label.dataobj).max() <= 13
