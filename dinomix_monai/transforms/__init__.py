"""Transforms that MONAI lacks."""

from __future__ import annotations

from dinomix_monai.transforms.donor_bank import DonorBank
from dinomix_monai.transforms.patch_position import PatchPositionD, PatchPositiond, PatchPositionDict
from dinomix_monai.transforms.pic_cutmix import DIRECTIONS, PICCutMix, class_probabilities, imbalance
from dinomix_monai.transforms.pic_cutmix_dictionary import PICCutMixD, PICCutMixd, PICCutMixDict

__all__ = [
    "DIRECTIONS",
    "DonorBank",
    "PICCutMix",
    "PICCutMixD",
    "PICCutMixDict",
    "PICCutMixd",
    "PatchPositionD",
    "PatchPositionDict",
    "PatchPositiond",
    "class_probabilities",
    "imbalance",
]
