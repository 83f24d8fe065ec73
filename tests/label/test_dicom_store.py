"""Scans and labels of a DICOMweb server, which is a list of DICOM files here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi import HTTPException
from pydicom import dcmread
from pydicom.dataset import Dataset

from tests.label.dicom_series import dicom_series

NAMES = ["background", "spleen", "liver", "pancreas"]


class Server:
    """What ``DICOMwebClient`` is asked for, answered by the standard's rules."""

    base_url = "http://pacs/dicom-web"

    def __init__(self, folder: Path) -> None:
        self.files = [dcmread(file) for file in folder.iterdir()]

    def search_for_series(self, search_filters: dict[str, str]) -> list[dict[str, Any]]:
        matching = [one for one in self.files if all(one.get(key) == value for key, value in search_filters.items())]
        series = {one.SeriesInstanceUID: one for one in matching}
        return [self.metadata(one, ("StudyInstanceUID", "SeriesInstanceUID", "Modality")) for one in series.values()]

    def retrieve_series_metadata(self, study: str, series: str) -> list[dict[str, Any]]:
        return [self.metadata(one, set(one.dir()) - {"PixelData"}) for one in self.retrieve_series(study, series)]

    def retrieve_series(self, study: str, series: str) -> list[Dataset]:
        return [one for one in self.files if (one.StudyInstanceUID, one.SeriesInstanceUID) == (study, series)]

    def store_instances(self, datasets: list[Dataset]) -> Dataset:
        self.files += datasets
        answer = Dataset()
        answer.RetrieveURL = f"{self.base_url}/studies/1/series/{datasets[0].SeriesInstanceUID}/instances/1"
        return answer

    @staticmethod
    def metadata(one: Dataset, names: Any) -> dict[str, Any]:
        part = Dataset()
        for name in names:
            setattr(part, name, one[name].value)
        return part.to_json_dict()

    @property
    def segmentations(self) -> list[Dataset]:
        return [one for one in self.files if one.Modality == "SEG"]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A server with one CT."""
    (tmp_path / "series").mkdir()
    dicom_series(tmp_path / "series")
    return Server(tmp_path / "series")


@pytest.fixture
def ct(server: Server) -> str:
    return str(server.files[0].SeriesInstanceUID)


@pytest.fixture
def open_store(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """Opens the store of an app, each with a folder of its own, and with pydicom-seg in the place of dcmqi."""
    from monailabel.config import settings
    from monailabel.datastore import dicom as monailabel_dicom

    from dinomix_monai.label import dicom_store

    monkeypatch.setattr(dicom_store, "_client", lambda url: server)
    without_dcmqi = partial(monailabel_dicom.nifti_to_dicom_seg, use_itk=False)
    monkeypatch.setattr(monailabel_dicom, "nifti_to_dicom_seg", without_dcmqi)

    def open_(name: str = "app") -> dicom_store.DicomStore:
        monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / name))
        dicom_store.DicomStore.list_images.cache_clear()
        return dicom_store.DicomStore(server.base_url, NAMES)

    return open_


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., str]:
    """A label of some classes on the grid of a scan."""

    def write(image: str, *values: int) -> str:
        scan = nib.load(image)
        label = np.zeros(scan.shape, np.uint8)
        for value in values:
            label[8:20, 4 * value : 4 * value + 4, 3:8] = value
        nib.save(nib.Nifti1Image(label, scan.affine), tmp_path / "drawn.nii.gz")
        return str(tmp_path / "drawn.nii.gz")

    return write


def voxels(file: str) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def test_a_label_becomes_a_seg_that_names_its_classes_and_counts_at_once(open_store, server, ct: str, draw) -> None:
    store = open_store()
    assert (store.status()["completed"], store.get_unlabeled_images()) == (0, [ct])
    store.save_label(ct, draw(store.get_image_uri(ct), 1, 3), "final", {"annotated": ["spleen", "pancreas"]})
    (seg,) = server.segmentations
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["spleen", "pancreas"]
    assert seg.SeriesDescription == "DINO-Mix: final label"
    assert (store.status()["completed"], store.get_unlabeled_images()) == (1, [])
    assert store.get_label_info(ct, "final")["annotated"] == ["spleen", "pancreas"]


def test_a_seg_of_the_server_is_a_label_by_the_names_of_its_segments(open_store, server, ct: str, draw) -> None:
    from dinomix_monai.label.checked_labels import labeled_scans

    first = open_store("first")
    first.save_label(ct, draw(first.get_image_uri(ct), 1, 3), "final", {})
    (seg,) = server.segmentations
    # Segment 1, which is not class 1.
    seg.SegmentSequence[0].SegmentLabel = "liver"
    second = open_store("second")
    (case,) = labeled_scans(second)
    saved = voxels(first.get_label_uri(ct, "final"))
    np.testing.assert_array_equal(voxels(case["label"]), np.where(saved == 1, 2, saved))
    np.testing.assert_array_equal(nib.load(case["label"]).affine, nib.load(case["image"]).affine)
    # The spleen has no segment: whether anybody has looked for it, the SEG does not say.
    assert case["annotated"] == ["liver", "pancreas"]
    assert "annotated" not in labeled_scans(first)[0]


def test_the_latest_seg_counts_and_one_of_other_names_does_not(open_store, server, ct: str, draw) -> None:
    store = open_store()
    for value in (1, 2, 3):
        store.save_label(ct, draw(store.get_image_uri(ct), value), "final", {})
    first, second, third = server.segmentations
    first.ContentDate, first.ContentTime = "20990101", "120000"
    second.ContentDate, second.ContentTime = "20990101", "115959"
    third.SegmentSequence[0].SegmentLabel = "bone"
    third.ContentDate = "20990102"
    store = open_store("elsewhere")
    (case,) = store.datalist()
    assert np.unique(voxels(case["label"])).tolist() == [0, 1]
    # And is fetched anew where there was another one.
    second.ContentTime = "120001"
    changed = open_store("elsewhere")
    assert np.unique(voxels(changed.datalist()[0]["label"])).tolist() == [0, 2]
    server.files = [one for one in server.files if one.Modality == "CT"]
    assert changed.datalist() == []


def test_a_scan_is_fetched_once_and_leaves_nothing_behind(
    open_store, server, ct: str, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    store = open_store()
    image = store.get_image_uri(ct)
    assert nib.load(image).shape == (40, 36, 12)
    assert Path(image).is_relative_to(tmp_path / "app")
    server.retrieve_series = None
    assert store.get_image_uri(ct) == image
    assert list((tmp_path / "tmp").iterdir()) == []
    assert store.get_image_uri("../../etc") == ""


def test_what_cannot_be_a_seg_is_refused(open_store, server, ct: str, draw, monkeypatch) -> None:
    store = open_store()
    empty = draw(store.get_image_uri(ct))
    with pytest.raises(HTTPException, match="a DICOM SEG cannot be empty"):
        store.save_label(ct, empty, "final", {})

    def full(datasets: list[Dataset]) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(server, "store_instances", full)
    with pytest.raises(HTTPException, match=r"502: The DICOMweb server must take .*, which failed: no space left\."):
        store.save_label(ct, draw(store.get_image_uri(ct), 1), "final", {})
    assert store.status()["completed"] == 0


def test_two_segments_of_one_name_are_one_class(open_store, server, ct: str, draw) -> None:
    store = open_store()
    store.save_label(ct, draw(store.get_image_uri(ct), 1, 3), "final", {})
    for segment in server.segmentations[0].SegmentSequence:
        segment.SegmentLabel = "liver"
    (case,) = open_store("elsewhere").datalist()
    drawn = voxels(store.get_label_uri(ct, "final")) > 0
    np.testing.assert_array_equal(voxels(case["label"]), 2 * drawn)
