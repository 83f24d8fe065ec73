"""Loading of volumes, and of label maps that belong to them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImaged, MapTransform
from monai.utils import ImageMetaKey
from monai.utils.enums import CommonKeys
from nibabel.orientations import apply_orientation

from dinomix_monai.volumes import (
    PartialLabels,
    VolumeReader,
    channel_files,
    geometry_of_meta,
    is_class,
    is_nifti_name,
    joined_channels,
    label_orientation,
)

__all__ = ["LabelOnGridd", "LoadVolumed"]


class LoadVolumed(LoadImaged):
    """
    ``monai.transforms.LoadImaged`` that reads NIfTI by :class:`dinomix_monai.volumes.VolumeReader`; takes one sample.

    Volumes come channel first. An image of several channels is a list of NIfTI files, one for each, and all of them
    must have the voxels of the first one. Files of other formats, such as a series of DICOM files, go to MONAI's own
    readers.

    Args:
        keys: paths, or lists of them, replaced by volumes.
        allow_missing_keys: whether a key may be missing.
        **kwargs: see ``monai.transforms.LoadImaged``.

    Raises:
        ValueError: When a NIfTI file is damaged, not one volume, or its header contradicts itself; or a channel does
            not lie on the grid of the first one.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, **kwargs: Any) -> None:
        super().__init__(keys, ensure_channel_first=True, allow_missing_keys=allow_missing_keys, **kwargs)
        # The reader that is registered last is asked first.
        self.register(VolumeReader())

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with paths.
            reader: see ``monai.transforms.LoadImaged``.
        """
        several = {key: channel_files(data[key]) for key in self.key_iterator(dict(data)) if _is_several(data[key])}
        result = super().__call__({**data, **{key: files[0] for key, files in several.items()}}, reader)
        for key, files in several.items():
            others = [self._loader(file, reader) for file in files[1:]]
            result[key] = joined_channels([result[key], *others])
        return result


def _is_several(files: Any) -> bool:
    return isinstance(files, (list, tuple)) and all(is_nifti_name(file) for file in files)


class LabelOnGridd(MapTransform):
    """
    Makes sure that a label map fits its image, and stores it along the axes of the image; takes one sample.

    A label map may be stored in another orientation, at the same places: it is turned, so that its voxels are those of
    the image. One that lies elsewhere, or has values that are no classes, is refused. Put it right behind
    :class:`LoadVolumed`, before anything moves the image.

    Args:
        keys: label maps.
        num_classes: labels are whole numbers from 0 to below this.
        image_key: image that they belong to.
        allow_missing_keys: whether a key may be missing.
        partial_labels: what of the label maps somebody has looked for, whose codes stand in the result; ``None`` where
            all are complete.

    Raises:
        ValueError: When a label map does not fit.
        RuntimeError: When the image has been moved since it was loaded.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int,
        image_key: str = CommonKeys.IMAGE,
        allow_missing_keys: bool = False,
        partial_labels: PartialLabels | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes, self.image_key, self.partial_labels = num_classes, image_key, partial_labels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with image and label maps, each of shape (1, H, W, D), as they were loaded.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self._fitted(result[key], result[self.image_key])
        return result

    def _fitted(self, label: MetaTensor, image: MetaTensor) -> MetaTensor:
        file = label.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "one")
        values = label.as_tensor().numpy()
        num_values = self.num_classes if self.partial_labels is None else self.partial_labels.num_file_values
        has_class = is_class(values, num_values)
        if not has_class.all():
            strays = values[~has_class]
            raise ValueError(
                f"Labels must be whole numbers from 0 to {num_values - 1}, got {file} with {strays.size} voxels "
                f"of others, from {np.fmin.reduce(strays):g} to {np.fmax.reduce(strays):g}. Export it anew, or give "
                "each class a name under `labels`."
            )
        if self.partial_labels is not None:
            # Along the axes of the file, in which slices are counted.
            values = self.partial_labels.coded(values[0], file)[None]
        target = geometry_of_meta(image.meta)
        if not np.allclose(image.affine.numpy(), target.affine, atol=1e-4) or tuple(image.shape[1:]) != target.shape:
            raise RuntimeError("LabelOnGridd must come before transforms that move the image, got one that was moved.")
        source = geometry_of_meta(label.meta)
        orientation = label_orientation(source, target)
        if orientation is None:
            difference = source.difference_from_image(target)
            raise ValueError(
                f"Labels must have the voxels of their image, got {file}, which {difference}. Export it on the grid of "
                "its image."
            )
        voxels = np.ascontiguousarray(apply_orientation(values[0], orientation))[None]
        places = {name: image.meta[name] for name in ("affine", "original_affine", "spatial_shape")}
        return MetaTensor(torch.from_numpy(voxels), meta={**label.meta, **places})
