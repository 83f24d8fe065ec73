"""Data sets: datalists and the procedural phantom."""

from __future__ import annotations

from dinomix_monai.data.datalist import Datalist, image_files, open_datalist
from dinomix_monai.data.labels import check_model_file, read_labels, write_labels
from dinomix_monai.data.phantom import make_phantom
from dinomix_monai.data.streams import PatchStream, patch_stream

__all__ = [
    "Datalist",
    "PatchStream",
    "check_model_file",
    "image_files",
    "make_phantom",
    "open_datalist",
    "patch_stream",
    "read_labels",
    "write_labels",
]
