"""A trained model in Python, and the command ``predict``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from monai.utils import convert_to_tensor
from monai.utils.enums import CommonKeys as Keys
from tqdm import tqdm

from dinomix_monai.bundle import Bundle
from dinomix_monai.core.files import check_writable
from dinomix_monai.data import image_files
from dinomix_monai.engines import ScanLabeler
from dinomix_monai.models import load_model
from dinomix_monai.transforms import scaling_window, to_label_volume
from dinomix_monai.volumes import (
    Image,
    channel_windows,
    first_file,
    label_path,
    nifti_stem,
    uncertainty_volume,
    write_volume,
)

__all__ = ["Prediction", "TrainedModel"]


class Prediction(NamedTuple):
    """
    What a model says of a scan, on the grid of the scan's file.

    Args:
        label: label map, ``uint8``.
        uncertainty: of each voxel the entropy of the class probabilities, 0 for certain and 1 for all classes alike.
    """

    label: nib.Nifti1Image
    uncertainty: nib.Nifti1Image


class TrainedModel:
    """
    A trained model with all that belongs to it, as it lies in the bundle of a training.

    Args:
        bundle_root: folder of the bundle, the ``output_dir`` of a training.
        **settings: ids of its ``configs/inference.json`` with other values, such as ``device``, ``amp`` or
            ``teacher_weights``.

    Attributes:
        root: the folder.
        class_names: names by label value, background first.
        network: the network, in evaluation mode.
        device: where it is.
        patch_size: voxels of the patches that it sees.
        num_channels: channels of the images that it sees.
        windows: of each channel, the intensities that become 0 and 1; ``None`` for percentiles of each image.

    Raises:
        FileNotFoundError: When the folder is no bundle of a training, or the training has left no model in it.
        ValueError: When the model is damaged, or a setting is none.
        RuntimeError: When the model is asked with its teacher, whose weights are not found.
    """

    def __init__(self, bundle_root: str | Path, **settings: Any) -> None:
        root = Path(os.path.abspath(Path(bundle_root).expanduser()))
        config = root / "configs" / "inference.json"
        if not config.is_file():
            raise FileNotFoundError(
                f"bundle_root must be the output_dir of a training, got {root}, which has no configs/inference.json. "
                "Train with --output_dir, which makes a bundle of it."
            )
        parser = Bundle(root).parser("inference", **settings)
        self.root = root
        self.class_names = tuple(parser.get_parsed_content("class_names"))
        self.network = load_model(parser.get_parsed_content("network"), parser.get_parsed_content("model_file")).eval()
        self.device = torch.device(parser.get_parsed_content("device"))
        self.patch_size = tuple(parser.get_parsed_content("patch_size"))
        self.num_channels = int(parser.get_parsed_content("num_channels"))
        self.windows = channel_windows(scaling_window(parser.get_parsed_content("scale_intensity")), self.num_channels)
        self._preprocessing = parser.get_parsed_content("preprocessing")
        self._inferer = parser.get_parsed_content("inferer")
        self._label = self.labeler(self.network)

    def labeler(self, network: Callable[[torch.Tensor], torch.Tensor]) -> ScanLabeler:
        """
        What segments scans as this model does, by another network.

        Args:
            network: gives logits, shape (B, C, H, W, D), of patches (B, num_channels, H, W, D) on the device of
                the model.
        """
        return ScanLabeler(self._preprocessing, lambda image: self._inferer(image.to(self.device), network))

    def predict(self, scan: Image) -> Prediction:
        """
        Segments a scan.

        Args:
            scan: NIfTI file of one volume; of several channels a list of files, one for each, or one of those that
                :func:`dinomix_monai.data.image_files` finds by their names.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When it is no scan.
        """
        if Path(first_file(scan)).is_dir():
            raise ValueError(f"scan must be one NIfTI file, got {scan}, a folder, which predict_all segments.")
        (case,) = image_files(scan, num_channels=self.num_channels)
        return self._predict(case["image"])

    def predict_all(
        self, scans: str | Path, output_dir: str | Path, uncertainty: bool = False
    ) -> Iterator[tuple[Path, dict[str, float]]]:
        """
        Segments a scan, or all in a folder, and writes the label maps, ``NAME_seg.nii.gz`` for ``NAME.nii.gz``.

        Args:
            scans: NIfTI file, or folder of such.
            output_dir: folder of the label maps.
            uncertainty: whether ``NAME_uncertainty.nii.gz`` is written beside each.

        Yields:
            The label map of each scan, once it is written, and the volume of each of its classes in ml.

        Raises:
            FileNotFoundError: When there is no scan.
            ValueError: When a file is no scan, or a label map would be written over what is none.
            OSError: When ``output_dir`` cannot be written to, which is known before the first scan, or a file cannot.
        """
        cases = image_files(scans, output_dir, self.num_channels)
        check_writable(Path(output_dir).expanduser())
        for case in tqdm(cases, "Segmenting", unit="scan", disable=None):
            found = self._predict(case["image"])
            file = first_file(case["image"])
            path = write_volume(found.label, label_path(output_dir, file))
            if uncertainty:
                write_volume(found.uncertainty, path.with_name(f"{nifti_stem(file)}_uncertainty.nii.gz"))
            yield path, self._volumes(found.label)

    def _volumes(self, label: nib.Nifti1Image) -> dict[str, float]:
        voxels = np.bincount(np.asanyarray(label.dataobj).ravel(), minlength=len(self.class_names))
        voxel_ml = float(np.prod(nib.affines.voxel_sizes(label.affine))) / 1000
        return {name: count * voxel_ml for name, count in zip(self.class_names[1:], voxels[1:].tolist())}

    def _predict(self, scan: Image) -> Prediction:
        found = self._label(scan)
        label, image = found[Keys.PRED], found[Keys.IMAGE]
        volume = to_label_volume(label)
        logits = convert_to_tensor(found["logits"], track_meta=False).float().movedim(0, -1)
        entropy = torch.distributions.Categorical(logits=logits).entropy()[None] / math.log(len(self.class_names))
        to_file = SpatialResample(mode="bilinear", padding_mode="border", dtype="float32")
        on_file = to_file(
            MetaTensor(entropy, affine=image.affine), dst_affine=label.affine, spatial_size=label.shape[1:]
        )
        array = convert_to_tensor(on_file, track_meta=False)[0].cpu().numpy().clip(0, 1)
        return Prediction(volume, uncertainty_volume(array, volume))
