"""Files of volumes: opened with distrust, and one rule for where their voxels lie."""

from __future__ import annotations

from dinomix_monai.volumes.channels import (
    Image,
    Window,
    as_image,
    channel_files,
    channel_windows,
    first_file,
    image_name,
    joined_channels,
    packed_channels,
    split_names,
)
from dinomix_monai.volumes.geometry import (
    Geometry,
    geometry_of_meta,
    label_orientation,
    read_geometry,
    resampled_shape,
    write_placement,
)
from dinomix_monai.volumes.nifti_file import (
    MOST_VOXELS,
    LabelValues,
    image_values,
    is_answer,
    is_class,
    is_label_map,
    is_nifti_name,
    is_single_volume,
    label_values,
    nifti_stem,
    open_volume,
    voxels_of,
)
from dinomix_monai.volumes.partial_labels import (
    ANNOTATION,
    Annotation,
    PartialLabels,
    class_number,
    named_annotation,
    read_annotation,
)
from dinomix_monai.volumes.reader import VolumeReader
from dinomix_monai.volumes.volume_error import VolumeError
from dinomix_monai.volumes.writer import label_on_grid, label_path, label_volume, uncertainty_volume, write_volume

__all__ = [
    "ANNOTATION",
    "MOST_VOXELS",
    "Annotation",
    "Geometry",
    "Image",
    "LabelValues",
    "PartialLabels",
    "VolumeError",
    "VolumeReader",
    "Window",
    "as_image",
    "channel_files",
    "channel_windows",
    "class_number",
    "first_file",
    "geometry_of_meta",
    "image_name",
    "image_values",
    "is_answer",
    "is_class",
    "is_label_map",
    "is_nifti_name",
    "is_single_volume",
    "joined_channels",
    "label_on_grid",
    "label_orientation",
    "label_path",
    "label_values",
    "label_volume",
    "named_annotation",
    "nifti_stem",
    "open_volume",
    "packed_channels",
    "read_annotation",
    "read_geometry",
    "resampled_shape",
    "split_names",
    "uncertainty_volume",
    "voxels_of",
    "write_placement",
    "write_volume",
]
