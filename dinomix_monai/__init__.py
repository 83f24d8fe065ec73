"""DINO-Mix for MONAI: semi-supervised 3D segmentation that does not lose the small organs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinomix_monai.prediction import TrainedModel

__all__ = ["load_model"]


def load_model(bundle_root: str | Path, **settings: Any) -> TrainedModel:
    """
    Opens a trained model, from the folder that ``--output_dir`` of its training has named.

    Args:
        bundle_root: see :class:`dinomix_monai.prediction.TrainedModel`.
        **settings: likewise.

    Example:
        >>> model = load_model("OUT")  # doctest: +SKIP
        >>> model.predict("scan.nii.gz").label.to_filename("scan_seg.nii.gz")  # doctest: +SKIP
    """
    # PyTorch and MONAI take seconds, which whoever imports another part need not wait for.
    from dinomix_monai.prediction import TrainedModel

    return TrainedModel(bundle_root, **settings)
