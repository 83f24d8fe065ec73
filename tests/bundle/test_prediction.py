"""A trained model in Python and by the command ``predict``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from scipy import ndimage

import dinomix_monai
import dinomix_monai.__main__ as commands
from dinomix_monai.data import image_files
from dinomix_monai.engines import ScanLabeler
from dinomix_monai.transforms import LoadVolumed

CPU = {"device": "cpu", "amp": False}


@pytest.fixture
def scan(phantom: Path, tmp_path: Path) -> Path:
    """A scan whose axes are turned and reversed."""
    volume = nib.load(next((phantom / "images").glob("*_006.nii*")))
    turned = volume.as_reoriented(nib.orientations.axcodes2ornt("PSL"))
    (tmp_path / "scans").mkdir()
    nib.save(turned, tmp_path / "scans" / "turned.nii.gz")
    return tmp_path / "scans" / "turned.nii.gz"


def test_a_model_says_what_inferring_says(run: Callable, trained_bundle: Path, scan: Path, tmp_path: Path) -> None:
    model = dinomix_monai.load_model(trained_bundle, **CPU)
    found = model.predict(scan)
    given = {"dataset_dir": str(scan), "model_file": str(trained_bundle / "models" / "model.pt")}
    run("inference", kind="infer", run_id="inferring", output_dir=str(tmp_path / "stock"), **given)
    stock = nib.load(tmp_path / "stock" / "turned_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.label.dataobj), np.asarray(stock.dataobj))
    assert found.label.header == stock.header
    assert found.label.get_data_dtype() == np.uint8
    assert model.class_names[6] == "liver"


def test_uncertainty_is_the_entropy_of_the_same_place_and_high_between_classes(
    trained_bundle: Path, scan: Path
) -> None:
    model = dinomix_monai.load_model(trained_bundle, **CPU)
    found = model.predict(scan)
    label, uncertainty = (np.asarray(one.dataobj) for one in found)
    # Read off by hand: each voxel of the file has a place in mm, and that a place among the network's voxels.
    seen = model._label(scan)
    probabilities = torch.softmax(seen["logits"].as_tensor().double(), dim=0)
    entropy = -(probabilities * probabilities.log()).sum(0) / np.log(14)
    to_network = np.linalg.inv(seen["image"].affine.numpy()) @ nib.load(scan).affine
    indices = np.stack(np.meshgrid(*map(np.arange, label.shape), indexing="ij")).reshape(3, -1)
    places = nib.affines.apply_affine(to_network, indices.T).T
    expected = ndimage.map_coordinates(entropy.numpy(), places, order=1, mode="nearest").reshape(label.shape)
    np.testing.assert_allclose(uncertainty, expected, atol=1e-4)
    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(found.uncertainty.affine, nib.load(scan).affine)
    assert uncertainty.shape == nib.load(scan).shape
    assert 0 <= uncertainty.min() < uncertainty.max() <= 1
    border = np.zeros(label.shape, dtype=bool)
    for axis in range(3):
        border |= np.roll(label, 1, axis) != label
    assert uncertainty[border].mean() > uncertainty[~border].mean()


def test_the_command_writes_label_maps_and_tells_volumes(
    trained_bundle: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copyfile(scan, scan.with_name("other.nii.gz"))
    commands.predict(str(trained_bundle), str(scan.parent), str(tmp_path / "out"), uncertainty=True, **CPU)
    lines = capsys.readouterr().out.splitlines()
    paths = [tmp_path / "out" / f"{name}_seg.nii.gz" for name in ("other", "turned")]
    assert [line.split(":")[0] for line in lines] == [*map(str, paths)]
    label = nib.load(tmp_path / "out" / "turned_seg.nii.gz")
    liver = (np.asarray(label.dataobj) == 6).sum() * np.prod(label.header.get_zooms()) / 1000
    assert liver > 1000
    assert f"liver {liver:.0f} ml" in lines[1]
    assert nib.load(tmp_path / "out" / "turned_uncertainty.nii.gz").get_fdata().max() > 0
    # Where they lie beside scans, neither is segmented.
    shutil.copyfile(scan, tmp_path / "out" / "scan.nii.gz")
    assert [Path(case["image"]).name for case in image_files(tmp_path / "out")] == ["scan.nii.gz"]
    # Once more: a label map of this package may be replaced, a scan that is no label map may not.
    commands.predict(str(trained_bundle), str(scan), str(tmp_path / "out"), **CPU)
    shutil.copyfile(scan, tmp_path / "out" / "turned_seg.nii.gz")
    with pytest.raises(ValueError, match="output_dir must not hold other files under the names of label maps"):
        commands.predict(str(trained_bundle), str(scan), str(tmp_path / "out"), **CPU)


def test_a_folder_without_a_bundle_and_half_of_one_are_refused(trained_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"bundle_root must be the output_dir of a training.*--output_dir"):
        dinomix_monai.load_model(tmp_path)
    shutil.copytree(trained_bundle / "configs", tmp_path / "half" / "configs")
    with pytest.raises(FileNotFoundError, match="model_file must be the weights of a trained model"):
        dinomix_monai.load_model(tmp_path / "half", **CPU)
    with pytest.raises(ValueError, match=r"--devise must be a setting.*Did you mean device"):
        dinomix_monai.load_model(trained_bundle, devise="cpu")


def test_a_scan_that_is_none_is_refused_by_name(trained_bundle: Path, tmp_path: Path) -> None:
    model = dinomix_monai.load_model(trained_bundle, **CPU)
    (tmp_path / "a.nii.gz").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"a\.nii\.gz"):
        model.predict(tmp_path / "a.nii.gz")
    with pytest.raises(FileNotFoundError):
        model.predict(tmp_path / "none.nii.gz")
    with pytest.raises(ValueError, match=r"scan must be one NIfTI file, got .*, a folder, which predict_all segments"):
        model.predict(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_first_scan(
    trained_bundle: Path, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    model = dinomix_monai.load_model(trained_bundle, **CPU)
    monkeypatch.setattr(model, "_predict", lambda image: pytest.fail("a scan was segmented"))
    with pytest.raises(OSError, match=r"output_dir must be a folder .* Pass another by --output_dir\."):
        next(model.predict_all(phantom / "images", tmp_path / "file" / "labels"))


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, dinomix_monai; print('torch' in sys.modules, 'monai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False False\n"


def test_a_scan_is_labeled_as_its_logits_say(phantom: Path, tmp_path: Path) -> None:
    scan = next((phantom / "images").glob("*_006.nii*"))

    def logits(image: torch.Tensor) -> torch.Tensor:
        bright = (image > 0).float()
        return torch.cat([1 - bright, bright], dim=1)

    labeler = ScanLabeler(Compose([LoadVolumed("image")]), logits)
    path = labeler.write(scan, tmp_path)
    assert path.name == f"{scan.name.partition('.')[0]}_seg.nii.gz"
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), np.asarray(nib.load(scan).dataobj) > 0)
