"""Scans and labels of a DICOMweb server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813  # the name that everybody gives it
from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials
from dicomweb_client.session_utils import create_session_from_user_pass
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom_seg import SegmentReader

from dinomix_monai.label.checked_labels import CheckedLabels
from dinomix_monai.label.label_door import LabelDoor
from dinomix_monai.label.refusal import Refusal
from dinomix_monai.volumes import label_on_grid, open_volume, write_volume

__all__ = ["DicomStore", "label_of_segmentation"]

_FINAL = DefaultLabelTag.FINAL.value

_SERIES = "DINO-Mix: final label"
"""What a SEG is called in the list of a viewer. MONAI Label calls every one AIName."""


class DicomStore(CheckedLabels, DICOMWebDatastore):
    """
    ``DICOMWebDatastore`` whose labels keep their classes on the way to the server and back.

    A DICOM SEG numbers its segments from 1 on, whatever values a label had. So its segments go by their names: a
    label of the tag ``final`` becomes a SEG that names the app's classes, and a SEG that names any of them is a label
    of the scan that it refers to. A class without a segment is one that nobody has looked for, unless the label was
    saved by this app, which knows. Of several SEG of a scan the latest counts.

    Args:
        url: address of the server; how to speak to it is in MONAI Label's settings.
        class_names: names by label value, background first.
    """

    def __init__(self, url: str, class_names: Sequence[str]) -> None:
        self.door = LabelDoor(class_names)
        # What a SEG says never changes: the scan, its time, and whether it has a class of the app.
        self._known: dict[str, tuple[str, str, bool]] = {}
        super().__init__(
            _client(url),
            settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER,
            settings.MONAI_LABEL_DICOMWEB_CACHE_PATH,
            settings.MONAI_LABEL_DICOMWEB_FETCH_BY_FRAME,
        )

    def get_image_uri(self, image_id: str) -> str:
        """Path of a scan, which is fetched and converted to NIfTI at first; empty where there is none."""
        if image_id not in self.list_images():
            return ""
        kept = os.path.realpath(os.path.join(self._datastore.image_path(), f"{image_id}.nii.gz"))
        if not os.path.exists(kept):
            # MONAI Label keeps a copy of this one.
            os.unlink(super().get_image_uri(image_id))
        return kept

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Path of a label, by the series of its scan; empty where there is none."""
        return LocalDatastore.get_label_uri(self, label_id, label_tag)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Series of the scans with a SEG, as the server has them now."""
        return sorted(self._segmentations())

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Paths of ``image`` and ``label`` of each scan with a SEG, of which those that are new are fetched."""
        current = self._segmentations()
        for image, series in current.items():
            if self.get_label_info(image, _FINAL).get("SeriesInstanceUID") != series:
                self._fetch(series, image)
        return [
            {"image": self.get_image_uri(image), "label": self.get_label_uri(image, _FINAL)}
            for image in sorted(current)
        ]

    def _on_any_event(self, event: Any) -> None:
        """Nothing: this app alone writes to the folder, and to read it anew empties the list for moments."""

    def _keep(self, image_id: str, file: str, tag: str, info: dict[str, Any]) -> str:
        if tag == _FINAL:
            if not info["label_info"]:
                raise Refusal("label must have a class that is drawn, because a DICOM SEG cannot be empty, got none.")
            info = {**info, "label_info": [{**one, "model_name": _SERIES} for one in info["label_info"]]}
        try:
            return super()._keep(image_id, file, tag, info)
        except OSError as error:  # as those of requests are, and what follows where dcmqi makes no file
            raise Refusal(
                f"The DICOMweb server must take the label of {image_id} as a DICOM SEG, which failed: {error}. What "
                "dcmqi and the server said is in the log.",
                502,
            ) from error

    def _segmentations(self) -> dict[str, str]:
        """Series of the SEG that counts for each scan, by the series of the scan."""
        # A training in a process of its own may have fetched some.
        self._init_from_datastore_file()
        found = [Dataset.from_json(one) for one in self._client.search_for_series(search_filters={"Modality": "SEG"})]
        series = {str(one.SeriesInstanceUID): str(one.StudyInstanceUID) for one in found}
        for uid in series.keys() - self._known.keys():
            self._known[uid] = self._read(self._client.retrieve_series_metadata(series[uid], uid)[0])
        latest: dict[str, tuple[str, str]] = {}
        for uid in series:
            image, time, is_ours = self._known[uid]
            if is_ours and image in self.list_images():
                latest[image] = max(latest.get(image, ("", "")), (time, uid))
        return {image: uid for image, (_, uid) in latest.items()}

    def _read(self, metadata: dict[str, Any]) -> tuple[str, str, bool]:
        content = Dataset.from_json(metadata)
        (referenced, *_) = content.get("ReferencedSeriesSequence") or [Dataset()]
        time = f"{content.get('ContentDate') or ''} {content.get('ContentTime') or ''}"
        names = {str(segment.get("SegmentLabel")) for segment in content.get("SegmentSequence") or []}
        return str(referenced.get("SeriesInstanceUID", "")), time, not names.isdisjoint(self.door.class_names[1:])

    def _fetch(self, series: str, image: str) -> None:
        """Keeps the label that a SEG is."""
        with TemporaryDirectory() as folder:
            dicom_web_download_series(None, series, folder, self._client, self._fetch_by_frame)
            segmentation = dcmread(next(Path(folder).iterdir()))
            label, names = label_of_segmentation(segmentation, self.get_image_uri(image), self.door.class_names)
            file = write_volume(label, Path(folder) / "label.nii.gz")
            said = {} if names == self.door.class_names[1:] else {"annotated": names}
            LocalDatastore.save_label(self, image, str(file), _FINAL, {**self._dicom_info(series), **said})


def _client(url: str) -> DICOMwebClientX:
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    session = create_session_from_user_pass(user, password) if user and password else None
    if "googleapis.com" in url:
        session = create_session_from_gcp_credentials()
    return DICOMwebClientX(
        url,
        session,
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )


def label_of_segmentation(
    segmentation: Dataset, image: str, class_names: Sequence[str]
) -> tuple[nib.Nifti1Image, list[str]]:
    """
    The label map that a DICOM SEG is, on the grid of its scan, and the classes that have a segment, in their order.

    Args:
        segmentation: the SEG; segments with other names are left out.
        image: NIfTI file of the scan.
        class_names: names by label value, background first.
    """
    read = SegmentReader().read(segmentation)
    grid = sitk.ReadImage(image)
    values = np.zeros(grid.GetSize()[::-1], dtype=np.uint8)
    names = {number: str(about.SegmentLabel) for number, about in read.segment_infos.items()}
    ours = {number: name for number, name in names.items() if name in class_names[1:]}
    for number, name in ours.items():
        segment = sitk.Cast(read.segment_image(number), sitk.sitkFloat32)
        drawn = sitk.GetArrayFromImage(sitk.Resample(segment, grid, sitk.Transform(), sitk.sitkNearestNeighbor))
        values[drawn >= 0.5] = list(class_names).index(name)
    # From SimpleITK's order of the axes to that of NIfTI.
    label = label_on_grid(values.T, open_volume(image).header)
    return label, [name for name in class_names if name in ours.values()]
