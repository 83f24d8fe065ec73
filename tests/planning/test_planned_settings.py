from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import dinomix_monai.planning.planned_settings as module
from dinomix_monai.data import make_datalist
from dinomix_monai.planning import PlannedSettings, print_plan
from tests.toys import as_anybodys, make_toy_phantom

PHANTOM = {
    "spacing_mm": [4.5, 4.5, 5.5],
    "patch_size": [64, 64, 32],
    "strides": 2,
    "modules": ["decoder.1"],
    "epochs": 14,
}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_phantom(tmp_path_factory.mktemp("phantom"), cases=(1, 1, 0, 0))


@pytest.fixture
def own(phantom: Path, tmp_path: Path) -> Path:
    """The same scans as anybody's."""
    return as_anybodys(shutil.copytree(phantom, tmp_path / "own"))


def settings(dataset_dir: Path | None, **options: Any) -> PlannedSettings:
    return PlannedSettings(dataset_dir, PHANTOM, "cpu", 25, **options)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Data sets whose scans were looked at."""
    seen: list[Any] = []
    take = module.take_fingerprint
    monkeypatch.setattr(module, "take_fingerprint", lambda datalist: (seen.append(datalist), take(datalist))[1])
    return seen


@pytest.mark.parametrize(
    "of", ["nothing", "none of the command line", "the phantom", "a phantom that is not there yet"]
)
def test_settings_of_the_phantom_are_given_and_no_scan_is_read(of: str, phantom: Path, unread: list) -> None:
    missing = phantom / "missing"
    options: dict[str, Any] = {
        "nothing": (None, {}),
        "none of the command line": ("none", {}),
        "the phantom": (phantom, {}),
    }
    folder, given = options.get(of, (missing, {"phantom_dir": missing}))
    plan = settings(folder, **given)
    assert {name: plan(name, [9, 9, 9]) for name in PHANTOM} == PHANTOM
    assert plan.asked.keys() == {"spacing_mm", "patch_size", "network_def#strides", "distiller#modules", "epochs"}
    assert not unread
    assert not missing.exists()


def test_settings_of_other_scans_go_by_them_and_by_a_voxel_size_that_is_given(own: Path, unread: list) -> None:
    plan = settings(own)
    assert plan("spacing_mm") == [8.0, 8.0, 10.0]
    assert (plan("patch_size", [8.0, 8.0, 10.0]), plan("epochs")) == ([32, 32, 16], 80)
    assert plan("patch_size", [16.0, 16.0, 20.0]) == [16, 16, 8]
    # What a plan has no reason to change.
    assert plan("modules", [8.0, 8.0, 10.0]) == PHANTOM["modules"]
    assert len(unread) == 1


def test_validations_and_the_memory_of_the_ema_teacher_go_by_a_length_that_is_given(own: Path) -> None:
    plan = PlannedSettings(own, {**PHANTOM, "val_interval": 7, "decay": 0.98}, "cpu", 25)
    assert (plan("val_interval"), plan("val_interval", epochs=160), plan("val_interval", epochs=3)) == (10, 20, 1)
    assert (plan("decay", epochs=159), plan("decay", epochs=160)) == (0.98, 0.99)


def test_a_plan_is_printed_of_what_was_asked(own: Path, capsys: pytest.CaptureFixture) -> None:
    plan = settings(own)
    print_plan(plan, [1.0, 1.0, 1.0], 80, [])
    assert capsys.readouterr().out == ""
    plan("patch_size", [16.0, 16.0, 20.0])
    print_plan(plan, [16.0, 16.0, 20.0], 80, [])
    printed = capsys.readouterr().out
    assert printed.startswith(
        "Settings for 1 training, 1 unlabeled, 0 validation, 0 test cases; one that you give wins."
    )
    assert "patch_size: [16, 16, 8]\n    In the proportions of a scan" in printed
    assert "spacing_mm:" not in printed
    # A class that few voxels are left of, whoever has chosen their size.
    assert "Warning: " in printed
    assert "with more memory (--memory_gb)" in printed


def test_no_settings_are_announced_where_all_are_given_and_the_scans_own_voxels_are_fine_enough(
    own: Path, capsys: pytest.CaptureFixture
) -> None:
    plan = settings(own)
    plan("modules", [8.0, 8.0, 10.0])
    print_plan(plan, [8.0, 8.0, 10.0], 80, [])
    printed = capsys.readouterr().out
    assert printed.startswith("Warning: ")
    assert "Only finer scans would change it" in printed


def test_scans_that_cannot_be_read_have_all_that_is_wrong_named(own: Path) -> None:
    listed = json.loads((own / "dataset.json").read_text())
    broken = [own / listed["training"][0]["label"], own / listed["unlabeled"][0]["image"]]
    for file in broken:
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="dataset_dir must hold a data set without errors") as error:
        settings(own)("spacing_mm")
    assert all(file.name in str(error.value) for file in broken)
    with pytest.raises((OSError, ValueError), match=r"^(?!dataset_dir must hold)"):
        settings(own, check_data=False)("spacing_mm")


def test_memory_and_modality_are_used(own: Path) -> None:
    phantom = {**PHANTOM, "intensity_window": [0, 1]}
    windows = {
        name: PlannedSettings(own, phantom, torch.device("cpu"), 25, modality=name)("intensity_window")
        for name in ("CT", "mr")
    }
    assert windows["mr"] is None
    assert windows["CT"][0] < windows["CT"][1]
    with pytest.raises(ValueError, match=r"memory_gb must be enough"):
        settings(own, memory_gb=1)("patch_size")
    with pytest.raises(
        ValueError, match="modality must be one of CT, MR, PET, or one for each channel with commas between, got US"
    ):
        settings(own, modality="US")
    with pytest.raises(ValueError, match="modality must be one for all channels, or one for each of 1, got CT, PET"):
        settings(own, modality="CT,PET")("spacing_mm")


@pytest.mark.parametrize("is_made", [False, True], ids=["as it is", "made anew by init"])
def test_the_modality_of_a_list_of_the_decathlon_counts_more_than_intensities(own: Path, is_made: bool) -> None:
    listed = json.loads((own / "dataset.json").read_text())
    (own / "dataset.json").write_text(json.dumps(listed | {"modality": {"0": "MRI"}}))
    if is_made:
        make_datalist(own, overwrite=True)
    phantom = {**PHANTOM, "intensity_window": [0, 1]}
    plan = PlannedSettings(own, phantom, "cpu", 25)
    assert plan("intensity_window") is None
    assert "(dataset.json calls them MRI)" in plan.plan().reasons["intensity_window"]


def test_one_ct_that_is_cut_to_a_window_is_ct(own: Path) -> None:
    listed = json.loads((own / "dataset.json").read_text())
    image = own / listed["training"][0]["image"]
    volume = nib.load(image)
    window = volume.get_fdata().round().clip(-160, 240).astype(np.int16)
    nib.save(nib.Nifti1Image(window, volume.affine), image)
    plan = PlannedSettings(own, {**PHANTOM, "intensity_window": [0, 1]}, "cpu", 25)
    low, high = plan("intensity_window")
    assert -160 <= low < high <= 240
    assert not plan.plan().doubts
