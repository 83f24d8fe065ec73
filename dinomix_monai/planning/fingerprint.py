"""What the scans of a data set are like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from monai.transforms import Compose
from monai.utils.enums import CommonKeys as Keys
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from dinomix_monai.data import Datalist
from dinomix_monai.planning.calibration import Calibration, calibration_of
from dinomix_monai.transforms import LabelOnGridd, LoadVolumed
from dinomix_monai.volumes import Annotation, first_file, open_volume, read_geometry

__all__ = ["DatasetFingerprint", "take_fingerprint"]

# Foreground voxels of a case that count: enough for a percentile, and no case outvotes the others.
_SAMPLED = 20000
_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class DatasetFingerprint:
    """
    What the scans of a data set are like; axes are R, A and S.

    Args:
        class_names: names by label value, background first.
        shapes: voxels of each training scan along each axis, labeled and unlabeled, shape (scans, 3).
        spacings: voxel sizes in mm, same shape.
        class_mm3: of each foreground class, the median volume in mm³ over the labeled cases that have it; NaN for none.
            Of a class that was looked for in some slices it is estimated for those between them as well.
        ranges: least and greatest intensity of each labeled image, shape (labeled cases, channels, 2).
        at_ends: share of the voxels that have either, same shape.
        foreground: of each channel, the 0.5th and the 99.5th percentile of the intensities of all labeled organs, shape
            (channels, 2).
        channel_names: names of the channels.
    """

    class_names: tuple[str, ...]
    shapes: np.ndarray
    spacings: np.ndarray
    class_mm3: np.ndarray
    ranges: np.ndarray
    at_ends: np.ndarray
    foreground: np.ndarray
    channel_names: tuple[str, ...] = ("image",)

    @property
    def spacing_mm(self) -> np.ndarray:
        """Median voxel size along each axis."""
        return np.median(self.spacings, axis=0)

    @property
    def extent_mm(self) -> np.ndarray:
        """Median extent of a scan along each axis."""
        return np.median(self.shapes * self.spacings, axis=0)

    @property
    def smallest_class(self) -> int:
        """Value of the class with the least volume."""
        return int(np.nanargmin(self.class_mm3)) + 1

    @property
    def calibrations(self) -> list[Calibration]:
        """For each channel, whether one intensity means the same tissue in all scans, as in CT."""
        ends = zip(self.ranges.swapaxes(0, 1), self.at_ends.swapaxes(0, 1))
        return [calibration_of(name, *one) for name, one in zip(self.channel_names, ends)]


def take_fingerprint(datalist: Datalist) -> DatasetFingerprint:
    """
    Reads the headers of all training scans, labeled and unlabeled, and the voxels of the labeled ones.

    Test cases are not looked at, nor are validation cases.

    Raises:
        ValueError: When there is no labeled case, no label has a class, or a file cannot be read.
    """
    if not datalist.training:
        raise ValueError(
            f"dataset_dir must have labeled cases under `training`, got {datalist.describe()}: spacing and intensities "
            "go by the organs."
        )
    cases = (*datalist.training, *datalist.unlabeled)
    shapes, spacings = zip(*(read_geometry(open_volume(first_file(case[Keys.IMAGE])).header).on_body for case in cases))
    labels = LabelOnGridd(Keys.LABEL, datalist.num_classes, partial_labels=datalist.partial_labels)
    load = Compose([LoadVolumed([Keys.IMAGE, Keys.LABEL]), labels])
    volumes, ranges, at_ends, intensities = [], [], [], []
    for case in tqdm(datalist.training, "Reading labeled cases", unit="case", disable=None):
        sizes, limits, shares, inside = _labeled_case(load(dict(case)), datalist.num_classes)
        volumes.append(sizes / _densities(datalist, case[Keys.LABEL]))
        ranges.append(limits)
        at_ends.append(shares)
        intensities.append(inside)
    found = np.where(np.array(volumes) > 0, volumes, np.nan)
    if np.isnan(found).all():
        raise ValueError(
            f"dataset_dir must have labels with {', '.join(datalist.class_names[1:])}, got nothing but background."
        )
    present = ~np.isnan(found).all(axis=0)
    class_mm3 = np.full(found.shape[1], np.nan)
    class_mm3[present] = np.nanmedian(found[:, present], axis=0)
    return DatasetFingerprint(
        datalist.class_names,
        np.array(shapes),
        np.array(spacings),
        class_mm3,
        np.array(ranges),
        np.array(at_ends),
        np.percentile(np.concatenate(intensities, axis=1), _PERCENTILES, axis=1).T,
        datalist.channel_names,
    )


def _densities(datalist: Datalist, file: str) -> np.ndarray:
    """For each foreground class the share of slices in which it was looked for."""
    annotations = {} if datalist.partial_labels is None else datalist.partial_labels.annotations
    annotation = annotations.get(file, Annotation())
    return np.array([annotation.density(value) for value in range(1, datalist.num_classes)])


def _labeled_case(sample: Mapping, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Volume of each class in mm³; range of each channel, and the share of its ends; intensities in organs, shape
    (channels, voxels).
    """
    image, label = sample[Keys.IMAGE].numpy(force=True), sample[Keys.LABEL].numpy(force=True)[0]
    voxel_mm3 = float(np.prod(voxel_sizes(np.asarray(sample[Keys.IMAGE].affine))))
    # What nobody has looked for has greater values.
    voxels = np.bincount(label.astype(np.intp).ravel(), minlength=num_classes)[:num_classes]
    inside = image[:, (label > 0) & (label < num_classes)]
    step = max(1, inside.shape[1] // _SAMPLED)
    flat = image.reshape(len(image), -1)
    limits = np.stack([flat.min(axis=1), flat.max(axis=1)], axis=1)
    shares = np.stack([(flat == end[:, None]).mean(axis=1) for end in limits.T], axis=1)
    return voxels[1:] * voxel_mm3, limits, shares, inside[:, ::step]
