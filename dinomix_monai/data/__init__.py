"""Data sets: datalists, the procedural phantom and published protocols."""

from __future__ import annotations

from dinomix_monai.data.datalist import Datalist, image_files, open_datalist
from dinomix_monai.data.labels import check_model_file, read_labels, write_labels
from dinomix_monai.data.phantom import make_phantom
from dinomix_monai.data.preparation import prepare_dataset
from dinomix_monai.data.protocol import Protocol, read_protocol
from dinomix_monai.data.streams import PatchStream, patch_stream

__all__ = [
    "Datalist",
    "PatchStream",
    "Protocol",
    "check_model_file",
    "image_files",
    "make_phantom",
    "open_datalist",
    "patch_stream",
    "prepare_dataset",
    "read_labels",
    "read_protocol",
    "write_labels",
]
