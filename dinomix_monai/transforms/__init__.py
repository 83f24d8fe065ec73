"""Transforms that MONAI lacks."""

from __future__ import annotations

from dinomix_monai.transforms.add_to_token_cache import AddToTokenCached
from dinomix_monai.transforms.donor_bank import DonorBank
from dinomix_monai.transforms.finite_voxels import FiniteVoxelsd
from dinomix_monai.transforms.intensity import AIR_HU, ScaleChannelsd, intensity_scaling, scaling_window
from dinomix_monai.transforms.invert_to_label import InvertToLabeld, interpolated_argmax
from dinomix_monai.transforms.kept_volumes import KeptVolumesd
from dinomix_monai.transforms.load_volume import LabelOnGridd, LoadVolumed
from dinomix_monai.transforms.partial_classes_to_indices import PartialClassesToIndicesd
from dinomix_monai.transforms.patch_position import PatchPositiond
from dinomix_monai.transforms.patch_to_device import PatchToDeviced
from dinomix_monai.transforms.pic_curriculum import ClassCurriculum, class_probabilities, imbalance
from dinomix_monai.transforms.pic_cutmix import PICCutMix
from dinomix_monai.transforms.pic_cutmix_dictionary import PICCutMixd
from dinomix_monai.transforms.pic_recipe import MixRecipe, Paste, apply_recipes
from dinomix_monai.transforms.pic_sampler import DIRECTIONS, RecipeSampler, Recipient
from dinomix_monai.transforms.rand_tensor_noise import RandTensorNoised
from dinomix_monai.transforms.safe_spacing import SafeSpacingd
from dinomix_monai.transforms.save_label import SaveLabeld, to_label_volume
from dinomix_monai.transforms.source_coordinates import SourceCoordinatesd

__all__ = [
    "AIR_HU",
    "DIRECTIONS",
    "AddToTokenCached",
    "ClassCurriculum",
    "DonorBank",
    "FiniteVoxelsd",
    "InvertToLabeld",
    "KeptVolumesd",
    "LabelOnGridd",
    "LoadVolumed",
    "MixRecipe",
    "PICCutMix",
    "PICCutMixd",
    "PartialClassesToIndicesd",
    "Paste",
    "PatchPositiond",
    "PatchToDeviced",
    "RandTensorNoised",
    "RecipeSampler",
    "Recipient",
    "SafeSpacingd",
    "SaveLabeld",
    "ScaleChannelsd",
    "SourceCoordinatesd",
    "apply_recipes",
    "class_probabilities",
    "imbalance",
    "intensity_scaling",
    "interpolated_argmax",
    "scaling_window",
    "to_label_volume",
]
