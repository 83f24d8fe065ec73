"""The trainers and their parts."""

from __future__ import annotations

from dinomix_monai.engines.feature_distiller import FeatureDistiller, TaughtStudent
from dinomix_monai.engines.patch_batch import PatchBatch
from dinomix_monai.engines.probed_inferer import ProbedInferer
from dinomix_monai.engines.pseudo_labeler import PseudoLabeler
from dinomix_monai.engines.scan_labeler import ScanLabeler
from dinomix_monai.engines.semi_supervised_trainer import SemiSupervisedTrainer
from dinomix_monai.engines.token_probe import ScanTokens, TokenProbe, add_probe, open_probe, probe_cell
from dinomix_monai.engines.trainer import DinoMixTrainer
from dinomix_monai.engines.window_inferer import WindowInferer

__all__ = [
    "DinoMixTrainer",
    "FeatureDistiller",
    "PatchBatch",
    "ProbedInferer",
    "PseudoLabeler",
    "ScanLabeler",
    "ScanTokens",
    "SemiSupervisedTrainer",
    "TaughtStudent",
    "TokenProbe",
    "WindowInferer",
    "add_probe",
    "open_probe",
    "probe_cell",
]
