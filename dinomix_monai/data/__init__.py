"""Data sets: datalists, their check, the procedural phantom and published protocols."""

from __future__ import annotations

from dinomix_monai.data.case_check import CaseCheck
from dinomix_monai.data.datalist import (
    Datalist,
    class_weights,
    dataset_root,
    open_datalist,
    read_datalist,
    relative_name,
)
from dinomix_monai.data.dataset_check import check_dataset, verify_dataset
from dinomix_monai.data.finding import Finding, findings_table
from dinomix_monai.data.layouts import case_name, patient_name
from dinomix_monai.data.new_datalist import NewDatalist, make_datalist
from dinomix_monai.data.original_scans import OriginalScans
from dinomix_monai.data.patch_counts import patch_voxels
from dinomix_monai.data.phantom import make_phantom
from dinomix_monai.data.preparation import prepare_dataset
from dinomix_monai.data.protocol import Protocol, read_protocol
from dinomix_monai.data.scan_folder import image_files
from dinomix_monai.data.site_split import split_dataset
from dinomix_monai.data.streams import PatchStream, cases_of_rank, patch_stream

__all__ = [
    "CaseCheck",
    "Datalist",
    "Finding",
    "NewDatalist",
    "OriginalScans",
    "PatchStream",
    "Protocol",
    "case_name",
    "cases_of_rank",
    "check_dataset",
    "class_weights",
    "dataset_root",
    "findings_table",
    "image_files",
    "make_datalist",
    "make_phantom",
    "open_datalist",
    "patch_stream",
    "patch_voxels",
    "patient_name",
    "prepare_dataset",
    "read_datalist",
    "read_protocol",
    "relative_name",
    "split_dataset",
    "verify_dataset",
]
