"""Transforms that MONAI lacks."""

from __future__ import annotations

from dinomix_monai.transforms.add_to_token_cache import AddToTokenCacheD, AddToTokenCached, AddToTokenCacheDict
from dinomix_monai.transforms.donor_bank import DonorBank
from dinomix_monai.transforms.finite_voxels import FiniteVoxelsD, FiniteVoxelsd, FiniteVoxelsDict
from dinomix_monai.transforms.invert_to_label import (
    InvertToLabelD,
    InvertToLabeld,
    InvertToLabelDict,
    interpolated_argmax,
)
from dinomix_monai.transforms.load_volume import LabelOnGridd, LoadVolumed
from dinomix_monai.transforms.memory_map import MemoryMapD, MemoryMapd, MemoryMapDict
from dinomix_monai.transforms.patch_position import PatchPositionD, PatchPositiond, PatchPositionDict
from dinomix_monai.transforms.pic_cutmix import DIRECTIONS, PICCutMix, class_probabilities, imbalance
from dinomix_monai.transforms.pic_cutmix_dictionary import PICCutMixD, PICCutMixd, PICCutMixDict
from dinomix_monai.transforms.rand_tensor_noise import RandTensorNoiseD, RandTensorNoised, RandTensorNoiseDict
from dinomix_monai.transforms.safe_spacing import SafeSpacingD, SafeSpacingd, SafeSpacingDict
from dinomix_monai.transforms.save_label import SaveLabeld
from dinomix_monai.transforms.source_coordinates import SourceCoordinatesD, SourceCoordinatesd, SourceCoordinatesDict

__all__ = [
    "DIRECTIONS",
    "AddToTokenCacheD",
    "AddToTokenCacheDict",
    "AddToTokenCached",
    "DonorBank",
    "FiniteVoxelsD",
    "FiniteVoxelsDict",
    "FiniteVoxelsd",
    "InvertToLabelD",
    "InvertToLabelDict",
    "InvertToLabeld",
    "LabelOnGridd",
    "LoadVolumed",
    "MemoryMapD",
    "MemoryMapDict",
    "MemoryMapd",
    "PICCutMix",
    "PICCutMixD",
    "PICCutMixDict",
    "PICCutMixd",
    "PatchPositionD",
    "PatchPositionDict",
    "PatchPositiond",
    "RandTensorNoiseD",
    "RandTensorNoiseDict",
    "RandTensorNoised",
    "SafeSpacingD",
    "SafeSpacingDict",
    "SafeSpacingd",
    "SaveLabeld",
    "SourceCoordinatesD",
    "SourceCoordinatesDict",
    "SourceCoordinatesd",
    "class_probabilities",
    "imbalance",
    "interpolated_argmax",
]
