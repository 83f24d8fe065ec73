"""The bundle, as the benchmarks train and run it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

__all__ = ["CONFIGS", "TOY", "make_toy_phantom", "open_workflow"]

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "bundle" / "configs"
TOY: dict[str, Any] = {"patch_size": [32, 32, 16], "network_def#n_filters": 4, "spacing_mm": [8.0, 8.0, 10.0]}
"""Settings that shrink patches and network until a step takes no time."""


def open_workflow(*configs: str, workflow_type: str = "train", **settings: Any) -> Any:
    """
    Builds and initializes a workflow.

    Args:
        configs: configs of the bundle by name, or files that end in ``.json``.
        workflow_type: as MONAI has it.
        **settings: ids with other values.

    Returns:
        A ``monai.bundle.ConfigWorkflow``.
    """
    # Imported here: the process that only starts others needs none of it.
    from monai.bundle import ConfigWorkflow

    sys.path.insert(0, str(ROOT))
    workflow = ConfigWorkflow(
        config_file=[name if name.endswith(".json") else str(CONFIGS / f"{name}.json") for name in configs],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=workflow_type,
        bundle_root=str(ROOT / "bundle"),
        **settings,
    )
    workflow.initialize()
    return workflow


def make_toy_phantom(folder: Path, cases: tuple[int, int, int, int]) -> Path:
    """A phantom of the toy's voxels; returns its folder."""
    from dinomix_monai.data import make_phantom

    return make_phantom(folder, cases=cases, size=(40, 40, 28), spacing_mm=(8.0, 8.0, 10.0)).parent
