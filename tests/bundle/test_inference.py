from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from dinomix_monai.models import write_class_names

# A network that anyone can compute: class 1 where the scaled intensity is above one half, which is 40 HU.
THRESHOLD_HU = 40
THRESHOLD_NETWORK = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
THRESHOLD_WEIGHTS = {"weight": torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1), "bias": torch.tensor([0.5, 0.0])}

ORIENTATIONS = ["RAS", "LPS", "LPI", "RAI", "PIR", "SAL", "IPL", "ASR"]


def blob(size: Sequence[int] = (44, 38, 30)) -> np.ndarray:
    """An off-center ellipsoid with three unlike axes, smooth, in HU: no flip or swap of axes maps it on itself."""
    grid = np.stack(np.meshgrid(*(np.linspace(0, 1, n) for n in size), indexing="ij"), -1)
    distance = (((grid - (0.38, 0.55, 0.62)) / (0.3, 0.22, 0.16)) ** 2).sum(-1)
    return np.clip(THRESHOLD_HU + 200 * (1 - distance), -160, 240)


def save(path: Path, array: np.ndarray, affine: np.ndarray, dtype: type = np.int16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti = nib.Nifti1Image(array.astype(dtype), affine)
    nifti.header.set_xyzt_units("mm")
    nib.save(nifti, path)
    return path


def stored_as(axcodes: str, array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same volume in the same place, with its axes stored in another order and direction (by nibabel)."""
    change = ornt_transform(io_orientation(affine), axcodes2ornt(axcodes))
    return apply_orientation(array, change), affine @ inv_ornt_aff(change, array.shape)


def rotation(degrees: Sequence[float]) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = matrix @ turn
    return matrix


def affine_of(spacing_mm: Sequence[float], degrees: Sequence[float] = (0, 0, 0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) @ np.diag(spacing_mm)
    affine[:3, 3] = (-113.7, 52.1, 871.4)
    return affine


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def root_of(error: BaseException) -> BaseException:
    """The error below those that MONAI raises from it, one for each level of the config."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@pytest.fixture
def model_file(workflow, tmp_path: Path) -> Path:
    """What a training leaves behind, with random weights."""
    path = tmp_path / "models" / "model.pt"
    labels = ["background", "left", "right"]
    write_class_names(path, labels)
    torch.manual_seed(0)
    network = workflow("inference", kind="infer", model_file=str(path)).parser.get_parsed_content("network_def")
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def segment(run, model_file: Path, tmp_path: Path) -> Callable[..., dict[str, nib.Nifti1Image]]:
    """Runs inference.json; label maps by file name."""

    def call(dataset_dir: Path, **overrides: object) -> dict[str, nib.Nifti1Image]:
        output_dir = tmp_path / "output"
        paths = {"dataset_dir": str(dataset_dir), "output_dir": str(output_dir), "model_file": str(model_file)}
        run("inference", kind="infer", run_id="inferring", **{**paths, **overrides})
        return {path.name: nib.load(path) for path in sorted(output_dir.glob("*.nii.gz"))}

    return call


@pytest.fixture
def threshold(segment, tmp_path: Path) -> Callable[..., dict[str, nib.Nifti1Image]]:
    """The same with a network that is a threshold."""
    path = tmp_path / "threshold" / "model.pt"
    write_class_names(path, ["background", "dense"])
    torch.save(THRESHOLD_WEIGHTS, path)
    return lambda dataset_dir: segment(
        dataset_dir, model_file=str(path), network_def=THRESHOLD_NETWORK, spacing_mm=[5.0, 5.0, 6.0]
    )


def test_label_maps_have_shape_affine_and_name_of_their_images(segment, tmp_path: Path) -> None:
    images = {
        "oblique.nii.gz": (blob(), affine_of((7, 8, 9), (12, -20, 31)), np.int16),
        "flipped.nii": (*stored_as("LPI", blob(), affine_of((8, 8, 10))), np.float32),
        "permuted.nii.gz": (*stored_as("SPR", blob(), affine_of((6, 8, 11))), np.float64),
        "anisotropic.nii": (blob((60, 60, 12)), affine_of((4, 4, 25)), np.int16),
        "thin.nii.gz": (blob((40, 40, 3)), affine_of((8, 8, 10)), np.float32),
        "small.nii.gz": (blob((9, 7, 5)), affine_of((8, 8, 10)), np.uint8),
        "fine.nii.gz": (blob((90, 80, 50)), affine_of((3.3, 3.3, 4.1)), np.int16),
        "1.2.840.nii.gz": (blob(), affine_of((8, 8, 10)), np.int32),
        "mirrored.nii.gz": (blob(), np.diag([-1, 1, 1, 1]) @ affine_of((8, 8, 10), (5, 5, 5)), np.int16),
    }
    for name, (array, affine, dtype) in images.items():
        save(tmp_path / "images" / name, array, affine, dtype)
    (tmp_path / "images" / "._fine.nii.gz").write_bytes(b"left by macOS")
    (tmp_path / "images" / "readme.txt").write_text("not an image")

    found = segment(tmp_path / "images")

    assert sorted(found) == sorted(name.split(".nii")[0] + "_seg.nii.gz" for name in images)
    for name in images:
        image, label = nib.load(tmp_path / "images" / name), found[name.split(".nii")[0] + "_seg.nii.gz"]
        assert label.shape == image.shape, name
        np.testing.assert_allclose(label.affine, image.affine, rtol=0, atol=1e-4, err_msg=name)
        assert label.get_data_dtype() == np.uint8, name
        assert np.unique(label.dataobj).max() <= 2, name


def test_a_single_slice_keeps_its_third_axis(segment, tmp_path: Path) -> None:
    file = save(tmp_path / "case.nii.gz", np.full((40, 40, 1), 40), affine_of((8, 8, 10)))
    assert segment(file)["case_seg.nii.gz"].shape == (40, 40, 1)


def test_a_fourth_axis_of_length_one_does_no_harm(threshold, tmp_path: Path) -> None:
    array = blob()
    file = save(tmp_path / "case.nii.gz", array[..., None], affine_of((8, 9, 11)))
    found = np.asarray(threshold(file)["case_seg.nii.gz"].dataobj)
    assert dice(found == 1, array > THRESHOLD_HU) > 0.95


def test_a_tilted_gantry_does_no_harm(threshold, tmp_path: Path) -> None:
    array, affine = blob(), affine_of((8, 9, 11))
    affine[:3, 2] += affine[:3, 1] * 0.15  # 7 degrees
    found = threshold(save(tmp_path / "case.nii.gz", array, affine))["case_seg.nii.gz"]
    np.testing.assert_allclose(found.affine, affine, atol=1e-4)
    assert dice(np.asarray(found.dataobj) == 1, array > THRESHOLD_HU) > 0.95


def test_voxels_that_are_no_numbers_spoil_nothing_beyond_them(threshold, tmp_path: Path) -> None:
    array = blob()
    expected = array > THRESHOLD_HU
    array[:, :3] = np.nan
    file = save(tmp_path / "case.nii.gz", array, affine_of((8, 9, 11)), np.float32)
    with pytest.warns(UserWarning, match=r"case\.nii\.gz has 3960 voxels that are NaN or infinite"):
        found = threshold(file)["case_seg.nii.gz"]
    assert dice(np.asarray(found.dataobj) == 1, expected) > 0.95


def test_one_file_is_enough(segment, tmp_path: Path) -> None:
    save(tmp_path / "images" / "other.nii.gz", blob(), affine_of((8, 8, 10)))
    file = save(tmp_path / "images" / "this.nii.gz", blob(), affine_of((8, 8, 10)))
    assert list(segment(file)) == ["this_seg.nii.gz"]


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_labels_lie_where_the_image_says(threshold, tmp_path: Path, axcodes: str) -> None:
    array, affine = stored_as(axcodes, blob(), affine_of((8, 9, 11)))
    file = save(tmp_path / "case.nii.gz", array, affine)
    found = np.asarray(threshold(file)["case_seg.nii.gz"].dataobj)
    assert dice(found == 1, array > THRESHOLD_HU) > 0.95
    # Half a voxel is what a wrong convention of voxel centers would move it by.
    shift = np.argwhere(found == 1).mean(0) - np.argwhere(array > THRESHOLD_HU).mean(0)
    assert np.abs(shift).max() < 0.2


@pytest.mark.parametrize(
    ("spacing_mm", "degrees"),
    [((8, 9, 11), (15, -10, 35)), ((3, 4, 20), (0, 0, 0)), ((4, 9, 12), (-25, 20, 10)), ((16, 16, 6), (0, 30, 0))],
)
def test_labels_lie_where_an_oblique_or_anisotropic_image_says(
    threshold, tmp_path: Path, spacing_mm: Sequence[float], degrees: Sequence[float]
) -> None:
    array = blob()
    file = save(tmp_path / "case.nii.gz", array, affine_of(spacing_mm, degrees), np.float32)
    found = np.asarray(threshold(file)["case_seg.nii.gz"].dataobj)
    assert dice(found == 1, array > THRESHOLD_HU) > 0.95


def test_the_oracle_notices_swapped_and_flipped_axes() -> None:
    truth = blob((40, 40, 40)) > THRESHOLD_HU
    for axes in ((1, 0, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0)):
        assert dice(truth, truth.transpose(axes)) < 0.9
    for axis in range(3):
        assert dice(truth, np.flip(truth, axis)) < 0.9


def test_the_network_sees_one_orientation_however_the_image_is_stored(segment, tmp_path: Path) -> None:
    # With noise, so that the random network has something to see in every corner.
    array = blob() + np.random.default_rng(0).normal(0, 40, blob().shape)
    affine = affine_of((8, 8, 10))
    for axcodes in ORIENTATIONS:
        save(tmp_path / "images" / f"{axcodes}.nii.gz", *stored_as(axcodes, array, affine))
    found = segment(tmp_path / "images")
    maps = {name[:3]: np.asarray(nib.as_closest_canonical(label).dataobj) for name, label in found.items()}
    assert len(np.unique(maps["RAS"])) > 1
    for axcodes in ORIENTATIONS:
        np.testing.assert_array_equal(maps[axcodes], maps["RAS"], err_msg=axcodes)


def test_intensities_are_read_with_their_scale(threshold, tmp_path: Path) -> None:
    array = blob()
    nifti = nib.Nifti1Image(np.round((array + 1024) / 0.5).astype(np.int16), affine_of((8, 8, 10)))
    nifti.header.set_slope_inter(0.5, -1024)
    nib.save(nifti, tmp_path / "scaled.nii.gz")
    found = np.asarray(threshold(tmp_path / "scaled.nii.gz")["scaled_seg.nii.gz"].dataobj)
    assert dice(found == 1, array > THRESHOLD_HU) > 0.95


def test_images_and_model_stay_as_they_were(segment, model_file: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "images" / "case.nii", blob(), affine_of((8, 8, 10)))
    before = file.read_bytes(), model_file.read_bytes()
    segment(file)
    assert (file.read_bytes(), model_file.read_bytes()) == before
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("dataset_dir", ["missing", "broken"])
def test_missing_model_is_named_before_an_image_is_looked_for(segment, tmp_path: Path, dataset_dir: str) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "case.nii").write_bytes(b"not an image")
    with pytest.raises(RuntimeError) as error:
        segment(tmp_path / dataset_dir, model_file=str(tmp_path / "nowhere" / "model.pt"))
    with pytest.raises(FileNotFoundError, match=r"model_file must be .* got .*nowhere/model\.pt, .* Train first"):
        raise root_of(error.value)


@pytest.mark.parametrize(
    ("dataset_dir", "message"),
    [("empty", "folder with such files, got .*empty"), ("none", "none, which does not exist")],
)
def test_folder_without_images_is_an_error_that_says_so(
    segment, tmp_path: Path, dataset_dir: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError) as error:
        segment(tmp_path / dataset_dir)
    with pytest.raises(FileNotFoundError, match=f"dataset_dir must be .*{message}"):
        raise root_of(error.value)


def test_model_with_another_number_of_classes_is_refused(segment, model_file: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "images" / "case.nii", blob(), affine_of((8, 8, 10)))
    # Without its names a model is taken for one of the phantom's organs.
    model_file.with_name("labels.json").unlink()
    for labels in (None, ["background", "one"], ["background", "one", "two", "three"]):
        if labels:
            write_class_names(model_file, labels)
        with pytest.raises(RuntimeError) as error:
            segment(file)
        with pytest.raises(ValueError, match=r"the weights of the configured network, got .* head\.bias"):
            raise root_of(error.value)
    assert not list((tmp_path / "output").glob("*.nii.gz"))


def test_model_that_lacks_weights_is_refused(segment, model_file: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "images" / "case.nii", blob(), affine_of((8, 8, 10)))
    weights = torch.load(model_file, weights_only=True)
    del weights["stem.0.weight"]
    torch.save(weights, model_file)
    with pytest.raises(RuntimeError) as error:
        segment(file)
    with pytest.raises(ValueError, match=r"the weights of the configured network, got .* has the shape None"):
        raise root_of(error.value)


def test_the_stock_way_gives_the_same_label_map(workflow, model_file: Path, tmp_path: Path) -> None:
    scan = save(tmp_path / "scan.nii.gz", blob((60, 50, 40)), affine_of((4, 5, 6)))

    def label_of(folder: Path, *patches: str, **settings: object) -> np.ndarray:
        paths = {"model_file": str(model_file), "dataset_dir": str(scan), "output_dir": str(folder)}
        built = workflow("inference", *patches, kind="infer", **paths, **settings)
        built.initialize()
        built.run()
        return nib.load(folder / "scan_seg.nii.gz").get_fdata()

    stock = label_of(tmp_path / "stock", "../../benchmarks/configs/stock_inference")
    assert len(np.unique(stock)) > 1
    assert (label_of(tmp_path / "own", amp=False) != stock).mean() < 1e-4
    assert (label_of(tmp_path / "half", amp=True) != stock).mean() < 2e-2
